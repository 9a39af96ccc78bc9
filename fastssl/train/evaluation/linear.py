"""Linear classifiers on frozen features: scikit-learn's optimum, and stochastic gradients."""

import math
import warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Of the linear probe: passes over the labels, samples per step, and fewest steps.
EPOCHS, BATCH, FEWEST = 90, 256, 100

#: Peak rate of the linear probe.
RATE = 0.1


def logistic(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions of scikit-learn's logistic regression, with its default penalty.

    Args:
        train: standardised features [N, D].
        labels: int64 [N], of two classes or more.
        test: standardised features [M, D].

    Returns:
        int64 [M].
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=300)
    with warnings.catch_warnings():
        # On all labels the last digits of the optimum cost more time than they are worth.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train, labels)
    return model.predict(test)


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Tensor:
    """Predictions of one linear layer trained by stochastic gradients.

    The protocol of He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, table 10,
    at small scale: features normalised without learned scale, 90 epochs, base rate 0.1 for 256
    samples that falls along a cosine, momentum 0.9, no weight decay; SGD in place of LARS, which is
    for batches of 16,384. Features are computed once, so views are not augmented.

    Args:
        train: standardised features [N, D], float32.
        labels: int64 [N], on the same device, none negative.
        test: standardised features [M, D].
        seed: fixes the order of samples.

    Returns:
        int64 [M].
    """
    count = len(train)
    batch = min(BATCH, count)
    layer = zero_layer(train.shape[1], labels).to(train.device)
    steps = max(FEWEST, EPOCHS * (count // batch))
    optimizer = torch.optim.SGD(layer.parameters(), RATE * batch / BATCH, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for ids in batches(count, batch, steps, seed):
        ids = ids.to(train.device)
        optimizer.zero_grad()
        F.cross_entropy(layer(train[ids]), labels[ids]).backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        return layer(test).argmax(1)


def zero_layer(features: int, labels: Tensor) -> nn.Linear:
    """A layer from features to the classes of labels, all zero; draws no random numbers."""
    layer = nn.utils.skip_init(nn.Linear, features, int(labels.max()) + 1)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def batches(count: int, batch: int, steps: int, seed: int):
    """Yields int64 [batch], `steps` times: passes in random order over 0 to count - 1, on the CPU.

    What does not fill a batch is left out of its pass.
    """
    generator = torch.Generator().manual_seed(seed)
    per_pass = count // batch
    for _ in range(math.ceil(steps / per_pass)):
        order = torch.randperm(count, generator=generator)[: per_pass * batch]
        yield from order.split(batch)[: min(steps, per_pass)]
        steps -= per_pass

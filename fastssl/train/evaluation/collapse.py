"""While a run trains: what its features are worth, and whether they collapse."""

import numpy as np
import torch
from torch import nn

from fastssl.train.data import Data
from fastssl.train.evaluation.features import encode
from fastssl.train.evaluation.knn import knn
from fastssl.train.evaluation.labels import measurable

#: Most training and test samples that `online` looks at.
TRAIN, TEST = 2000, 1000

#: Neighbours of the online accuracy.
NEIGHBOURS = 20

#: Below these features count as collapsed: RankMe, and deviation as a part of 1 / sqrt(D). On the
#: digits untrained encoders have 3.3 and 0.09 or more; a vision transformer, trained to make two
#: views agree and nothing else, had 1.2 and 0.008 after 40 steps.
LEAST_RANK, LEAST_DEVIATION = 1.5, 0.02


def rank_me(features: np.ndarray) -> float:
    """How many directions features fill: exp of the entropy of their singular values.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised
    Representations by Their Rank", 2023, equations 1 and 2. Features are not centred.

    Args:
        features: [N, D], floating-point.

    Returns:
        From 1 to min(N, D); 1 where all features are zero.
    """
    features = features.astype(np.float64)
    if len(features) < features.shape[1]:
        features = features.T
    # The small Gram matrix is cheaper than the singular values themselves; those that are lost,
    # below 1e-8 of the largest, add nothing to the entropy.
    squares = np.linalg.eigvalsh(features.T @ features)
    values = np.sqrt(squares.clip(min=0))
    shares = values / max(values.sum(), np.finfo(np.float64).tiny)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def deviation(features: np.ndarray) -> float:
    """The standard deviation of normalised features, mean over their D dimensions.

    Chen and He, "Exploring Simple Siamese Representation Learning", 2021, section 4.1: 0 where all
    features are the same, 1 / sqrt(D) where they are spread evenly on the sphere.

    Args:
        features: [N, D], floating-point.
    """
    features = features.astype(np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return float((features / lengths.clip(min=1e-12)).std(0).mean())


def online(
    backbone: nn.Module,
    data: Data,
    device: torch.device | str,
    train: int = TRAIN,
    test: int = TEST,
) -> dict[str, float]:
    """Cheap indicators of an encoder in training, on samples that are always the same.

    Args:
        backbone: inputs to features [N, D]; its mode is restored.
        data: samples without a label are left out where there are classes.
        device: where the encoder computes.
        train: most training samples to look at, evenly spaced; RankMe and deviation are theirs.
        test: most test samples.

    Returns:
        "rank_me" and "deviation", see there, and "knn": accuracy of 20 nearest neighbours, 0 to 1,
        absent without labels of two classes.

    Raises:
        UsageError: a feature is not finite.
    """
    labelled = measurable(data)
    chosen = _spaced(data.train.labels, train, labelled)
    features = encode(backbone, data.train.inputs, device, chosen)
    values = {}
    if labelled:
        tested = _spaced(data.test.labels, test, labelled)
        others = encode(backbone, data.test.inputs, device, tested)
        predicted = knn(features, data.train.labels[chosen], others, NEIGHBOURS)
        values["knn"] = float((predicted == data.test.labels[tested]).float().mean())
    array = features.numpy()
    return values | {"rank_me": rank_me(array), "deviation": deviation(array)}


def _spaced(labels: torch.Tensor, most: int, labelled: bool) -> torch.Tensor:
    """Ids evenly spaced, since samples may be sorted by class."""
    ids = torch.nonzero(labels >= 0)[:, 0] if labelled else torch.arange(len(labels))
    count = min(most, len(ids))
    return ids[torch.arange(count) * len(ids) // count]


def warning(values: dict[str, float], features: int) -> str | None:
    """A sentence where the indicators of `online` say that features have collapsed, else None.

    Where only a projector collapses, its input may keep what it had before training; then the
    accuracy does not rise, and there is no warning.

    Args:
        values: from `online`.
        features: D, their number.
    """
    spread = values["deviation"] * features**0.5
    if spread < LEAST_DEVIATION:
        return (
            f"features have collapsed to a point: their deviation is {values['deviation']:.2g}, "
            f"{100 * spread:.1f} % of that of evenly spread features"
        )
    if values["rank_me"] < LEAST_RANK:
        return (
            f"features have collapsed to a line: they fill {values['rank_me']:.2f} of {features} "
            f"directions (RankMe)"
        )
    return None

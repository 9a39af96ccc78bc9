"""What frozen features are worth: logistic regression from few labels and from all."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from fastssl.train.data import Data
from fastssl.train.views import to_float

LABELS_PER_CLASS = (1, 5, 10)
DRAWS = 5


@dataclass(frozen=True)
class Score:
    """Mean accuracy, 0 to 1, and sample standard deviation over the draws (0 for one draw)."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Row:
    """Accuracies from `labels` labels per class, or from all where that is None."""

    labels: int | None
    untrained: Score
    pretrained: Score

    @property
    def gain(self) -> float:
        """What pretraining adds to the mean accuracy."""
        return self.pretrained.mean - self.untrained.mean

    @property
    def deviation(self) -> float:
        """The larger of both standard deviations."""
        return max(self.untrained.deviation, self.pretrained.deviation)


def is_clear(row: Row) -> bool:
    """Whether pretraining beats the untrained encoder by more than the larger deviation."""
    return row.gain > row.deviation


@dataclass(frozen=True)
class Features:
    """Features [N, D], float32, of the training and test images, by training's mean and scale."""

    train: np.ndarray
    test: np.ndarray


@torch.inference_mode()
def extract(backbone: nn.Module, data: Data, device: torch.device, batch: int = 500) -> Features:
    """Standardised features of a data set under a frozen encoder, in evaluation mode."""
    training = backbone.training
    backbone = backbone.to(device).eval()

    def of(images: Tensor) -> np.ndarray:
        parts = [backbone(to_float(part.to(device))).float().cpu() for part in images.split(batch)]
        return torch.cat(parts).numpy()

    train, test = of(data.train.inputs), of(data.test.inputs)
    backbone.train(training)
    # Of all training images: standardising takes no labels.
    scaler = StandardScaler().fit(train)
    return Features(scaler.transform(train), scaler.transform(test))


def compare(untrained: Features, pretrained: Features, data: Data) -> list[Row]:
    """Accuracy on the test images of logistic regressions on the features of two encoders.

    Both encoders get the same labels, and every run gets the same: draws do not depend on its seed.
    A number of labels that some class does not have is left out.
    """
    labels, test = data.train.labels.numpy(), data.test.labels.numpy()
    smallest = np.unique(labels, return_counts=True)[1].min()
    rows = []
    for count in (*LABELS_PER_CLASS, None):
        if count is None:
            draws = [np.arange(len(labels))]
        elif count > smallest:
            continue
        else:
            draws = [_draw(labels, count, seed) for seed in range(DRAWS)]
        scores = [
            _score([_accuracy(features, labels, test, rows_of) for rows_of in draws])
            for features in (untrained, pretrained)
        ]
        rows.append(Row(count, *scores))
    return rows


def _draw(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    kinds = np.unique(labels)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:count] for k in kinds])


def _accuracy(features: Features, labels: np.ndarray, test: np.ndarray, rows: np.ndarray) -> float:
    model = LogisticRegression(max_iter=300)
    with warnings.catch_warnings():
        # On all labels the last digits of the optimum cost more time than they are worth.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features.train[rows], labels[rows])
    return float(model.score(features.test, test))


def _score(accuracies: list[float]) -> Score:
    deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
    return Score(float(np.mean(accuracies)), deviation)

"""Accuracies of two encoders side by side, and when their difference counts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """Mean accuracy, 0 to 1, and sample standard deviation over the draws (0 for one draw)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, accuracies: Sequence[float]) -> "Score":
        """The score of one accuracy or more."""
        deviation = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
        return cls(float(np.mean(accuracies)), deviation)


@dataclass(frozen=True)
class Row:
    """What a probe reaches on the test samples.

    Attributes:
        probe: a name from `fastssl.train.evaluation.PROBES`.
        labels: how many it was shown: "all", a percentage such as "1%", or a number per class.
        untrained: of the encoder as it was before the first step.
        pretrained: of the encoder that was trained.
    """

    probe: str
    labels: str
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

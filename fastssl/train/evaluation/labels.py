"""Which training samples show their labels: the semi-supervised setting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastssl.train.data import Data
from fastssl.train.errors import UsageError

#: Draws of labels over which accuracies are averaged.
DRAWS = 5


def measurable(data: Data) -> bool:
    """Whether there is something to predict: labels of two classes to learn from, and a test."""
    train, test = data.train.labels, data.test.labels
    return bool(data.classes and train[train >= 0].unique().numel() > 1 and (test >= 0).any())


@dataclass(frozen=True)
class Budget:
    """How many labels are shown.

    Attributes:
        text: as the user wrote it.
        share: of each class's labels, 0 to 1, or None.
        count: labels of each class, or None.
    """

    text: str
    share: float | None = None
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads "all", a percentage such as "1%" or "0.5 %", or a number per class such as "5".

        Raises:
            UsageError: it is none of these.
        """
        stripped = "".join(str(text).split())
        try:
            if stripped == "all":
                return cls("all", share=1.0)
            if stripped.endswith("%"):
                share = float(stripped[:-1]) / 100
                if 0 < share <= 1:
                    return cls(stripped, share=share)
            elif int(stripped) > 0:
                return cls(str(int(stripped)), count=int(stripped))
        except ValueError:
            pass
        raise UsageError(
            f"labels: got {text!r}, must be 'all', a percentage such as '1%', or a number of "
            f"labels per class such as '5'"
        )

    def draws(self, labels: np.ndarray, classes: Sequence[str] = ()) -> list[np.ndarray]:
        """The samples whose labels are shown, in each draw.

        Draws are stratified: of each class that has labels the same number, or the same share and
        at least one (as Chen et al. 2020, section 6, take 1 % and 10 % of ImageNet). They depend on
        nothing but the labels: every encoder and every run gets the same.

        Args:
            labels: int64 [N], -1 where a sample has none.
            classes: their names, for the error.

        Returns:
            `DRAWS` times int64 [n], or once where there is nothing to choose.

        Raises:
            UsageError: a class has fewer labels than are wanted of each.
        """
        members = [np.flatnonzero(labels == kind) for kind in np.unique(labels[labels >= 0])]
        if self.share == 1:
            return [np.sort(np.concatenate(members))]
        counts = [self.count or max(1, round(self.share * len(of))) for of in members]
        for of, count in zip(members, counts, strict=True):
            if count > len(of):
                kind = int(labels[of[0]])
                name = repr(classes[kind]) if kind < len(classes) else kind
                raise UsageError(
                    f"labels: got {self.text} per class, class {name} has {len(of)} labelled "
                    f"training samples"
                )
        if all(count == len(of) for of, count in zip(members, counts, strict=True)):
            return [np.sort(np.concatenate(members))]
        drawn = []
        for seed in range(DRAWS):
            rng = np.random.default_rng(seed)
            chosen = [rng.permutation(of)[:n] for of, n in zip(members, counts, strict=True)]
            drawn.append(np.concatenate(chosen))
        return drawn

"""What a run has learned: accuracies from few labels and from all, beside the untrained encoder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.evaluation.features import Features, Subject, extract
from fastssl.train.evaluation.labels import DRAWS, Budget, measurable
from fastssl.train.evaluation.probes import PROBES, find
from fastssl.train.evaluation.scores import Row, Score, is_clear

if TYPE_CHECKING:
    from fastssl.train.saved import Saved

__all__ = [
    "DRAWS",
    "LABELS",
    "MANY_LABELS",
    "PROBES",
    "THOROUGH",
    "USUAL",
    "Features",
    "Row",
    "Score",
    "evaluate",
    "extract",
    "is_clear",
    "measurable",
    "rows",
]

#: The probes after training, where none are named: those that take seconds.
USUAL = ("knn-20", "knn-200", "logistic")

#: The labels after training, where none are given.
LABELS = ("1", "5", "10", "all")

#: The same where a run is opened to be evaluated.
THOROUGH = (*USUAL, "linear")
MANY_LABELS = ("1", "5", "10", "1%", "10%", "all")


def evaluate(
    saved: "Saved",
    probes: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Measures a run that `fastssl.train.saved.open_run` has opened.

    Args:
        saved: the run.
        probes: as for `rows`; None for `THOROUGH`.
        labels: as for `rows`; None for those of `MANY_LABELS` that every class has.
        device: where to compute.

    Raises:
        UsageError: as by `rows`, or the data has no two classes.
    """
    if not measurable(saved.data):
        raise UsageError(f"data: {saved.data.name} has no labels of two classes to be told apart")
    encoders = (saved.untrained, saved.model.backbone)
    asked = labels or MANY_LABELS
    return rows(*encoders, saved.data, probes or THOROUGH, asked, device, skip=not labels)


def rows(
    untrained: nn.Module,
    pretrained: nn.Module,
    data: Data,
    probes: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    features: Sequence[Features | None] = (None, None),
    skip: bool = False,
) -> list[Row]:
    """Accuracies of two encoders on the test samples that have a label.

    Both encoders get the same labels, and every run gets the same: draws do not depend on its seed.

    Args:
        untrained: encodes inputs, scaled by `fastssl.train.views.to_float`, to features [N, D].
        pretrained: the same after training. Both are moved to the device, and not changed.
        data: training samples with labels, and test samples.
        probes: names from `PROBES`; None for `USUAL`. Fine-tuning is for encoders whose batch norm
            does not wait for other processes.
        labels: "all", percentages such as "1%", numbers per class such as "5"; None for `LABELS`
            with `skip`.
        device: where to compute.
        features: of both encoders, raw, where they are known already.
        skip: leave out numbers of labels that a class does not have.

    Returns:
        Probe by probe, from few labels to many as given. Nearest neighbours are left out where
        there are fewer labels than neighbours. Empty where the data is not `measurable`.

    Raises:
        UsageError: no such probe, labels that cannot be read, a class with fewer labels than were
            asked for, or no probe that so few labels are enough for.
    """
    chosen = {name: find(name) for name in probes or USUAL}
    budgets = dict.fromkeys(Budget.parse(text) for text in labels or LABELS)
    if not measurable(data):
        return []
    known = data.train.labels.numpy()
    draws = {}
    for budget in budgets:
        try:
            draws[budget.text] = budget.draws(known, data.classes)
        except UsageError:
            if labels and not skip:
                raise
    device = torch.device(device)
    subjects = [
        Subject(encoder, data, device, of)
        for encoder, of in zip((untrained, pretrained), features, strict=True)
    ]
    test = data.test.labels.numpy()
    made = []
    for name, probe in chosen.items():
        for text, drawn in draws.items():
            if len(drawn[0]) < probe.least:
                continue
            scores = [
                Score.of([_accuracy(probe.predict(s, ids, i), test) for i, ids in enumerate(drawn)])
                for s in subjects
            ]
            made.append(Row(name, text, *scores))
    if not made:
        most = max(len(drawn[0]) for drawn in draws.values())
        raise UsageError(f"probes: {', '.join(chosen)} need more labels than {most}")
    return made


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    known = labels >= 0
    return float((predicted[known] == labels[known]).mean())

"""Numbers of labels on an axis."""

from collections.abc import Iterable

from fastssl.train.evaluation.labels import Budget

#: What the axis is called.
AXIS = "labels per class, or share of all"


def in_order(labels: Iterable[str]) -> list[str]:
    """Different numbers of labels from few to all: counts per class, shares in percent, "all"."""

    def key(text: str) -> tuple[bool, float]:
        budget = Budget.parse(text)
        return budget.count is None, budget.share or budget.count

    return sorted(set(labels), key=key)

"""Which samples are for testing, and what classes are called, where the data does not say."""

import torch
from torch import Tensor

#: Every fifth sample of a class is for testing.
FIFTH = 5


def ranks(labels: Tensor) -> Tensor:
    """How many earlier samples have a sample's label, int64 [N], for labels int64 [N]."""
    ordered, order = labels.sort(stable=True)
    places = torch.arange(len(labels)) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(places).scatter_(0, order, places)


def held_out(labels: Tensor) -> Tensor:
    """Whether a sample is for testing, bool [N]: every fifth of those that share a label."""
    return ranks(labels) % FIFTH == FIFTH - 1


def by_number(*labels: Tensor) -> tuple[tuple[str, ...], list[Tensor]]:
    """Classes that are called by their numbers.

    Args:
        *labels: of each split, int64 [N]; below 0 where a sample has none.

    Returns:
        Names of the classes in the order of their numbers, none where there are less than two; and
        each split's labels, which count the classes that there are, -1 where a sample has none.
    """
    numbers = torch.cat(labels).unique()
    numbers = numbers[numbers >= 0]
    counted = [
        torch.where(of < 0, -1, torch.searchsorted(numbers, of.contiguous())) for of in labels
    ]
    names = tuple(str(number) for number in numbers.tolist())
    return names if len(names) > 1 else (), counted

"""Pairs for the contrastive family, in every combination that losses make of them."""

from typing import NamedTuple

import torch

from fastssl._checks import compute_dtype
from fastssl.ops.contrast.pairs import LABELLED, PAIRED, SIGMOID, SOFTMAX, Pairs


class Case(NamedTuple):
    """What is compared with what; `labels` is how many classes there are, 0 for none."""

    kind: int = SOFTMAX
    symmetric: bool = False
    columns: bool = False
    labels: int = 0
    partner: bool = False
    excluded: bool = False
    window: bool = False
    metrics: bool = False

    def __str__(self):
        on = [f for f in self._fields[1:] if getattr(self, f)]
        return "-".join([("softmax", "sigmoid", "labelled", "paired")[self.kind], *on])


CASES = [
    Case(symmetric=True, partner=True),
    Case(symmetric=True, partner=True, labels=5),
    Case(symmetric=True, partner=True, window=True),
    Case(symmetric=True, partner=True, metrics=True),
    Case(symmetric=True),
    Case(),
    Case(partner=True),
    Case(columns=True, partner=True),
    Case(columns=True, excluded=True),
    Case(columns=True, partner=True, excluded=True, labels=4),
    Case(columns=True, partner=True, excluded=True, window=True, metrics=True),
    Case(SIGMOID, partner=True),
    Case(SIGMOID, partner=True, labels=3),
    Case(LABELLED, symmetric=True, labels=4),
    Case(LABELLED, symmetric=True, labels=4, metrics=True),
    Case(LABELLED, symmetric=True, labels=1),
    Case(LABELLED, symmetric=True, labels=1000),
    Case(LABELLED, columns=True, labels=4, excluded=True),
    Case(LABELLED, labels=4),
    Case(PAIRED, symmetric=True, labels=4),
    Case(PAIRED, symmetric=True, labels=1),
    Case(PAIRED, symmetric=True, labels=1000),
    Case(PAIRED, columns=True, labels=4, excluded=True),
    Case(PAIRED, labels=4),
]


def some_columns(rows, columns, g):
    """A column for as many rows as there are columns for, in any order; none for the others."""
    chosen = torch.full((rows,), -1)
    count = min(rows, columns)
    chosen[:count] = torch.randperm(columns, generator=g)[:count]
    return chosen


def pairs_of(case, rows, columns, depth, dtype, scale, normalize, seed=0):
    """The arguments of the raw operators, and the same in float64."""
    g = torch.Generator().manual_seed(seed)
    columns = rows if case.symmetric else columns
    x = torch.randn(rows, depth, generator=g, dtype=torch.float64)
    y = None if case.symmetric else torch.randn(columns, depth, generator=g, dtype=torch.float64)
    if not normalize:
        x, y = x / depth**0.5, None if y is None else y / depth**0.5
    x, y = x.to(dtype), None if y is None else y.to(dtype)
    labels = partner = excluded = window = column_labels = column_window = None
    if case.labels:
        # Beyond 2^31, so that they cannot be taken for what lanes hold.
        labels = torch.randint(case.labels, (rows,), generator=g) * 2**40 - 2**41
        if not case.symmetric:
            column_labels = torch.randint(case.labels, (columns,), generator=g) * 2**40 - 2**41
    if case.partner and case.symmetric:
        half = torch.arange(rows // 2)
        alone = torch.full((rows % 2,), -1)
        partner = torch.cat([half + rows // 2, half, alone])
    elif case.partner:
        partner = some_columns(rows, columns, g)
    if case.excluded:
        excluded = some_columns(rows, columns, g)
    if case.window:
        low, high = -0.1 - torch.rand(rows, generator=g), 0.1 + torch.rand(rows, generator=g)
        window = torch.stack([low, high]).double() * abs(scale)
        if case.columns:
            column_window = torch.tensor([[-0.3], [0.2]]).double().repeat(1, columns) * abs(scale)
    bias = -1.5 if case.kind == SIGMOID else None

    def build(x, y):
        kind = compute_dtype(x.dtype)
        return Pairs(
            x, y, None, scale, None if bias is None else torch.tensor(bias, dtype=kind), case.kind,
            normalize, normalize, case.columns, case.metrics, excluded, partner, labels,
            column_labels, window, column_window, None,
        )  # fmt: skip

    return build(x, y), build(x.double(), None if y is None else y.double())

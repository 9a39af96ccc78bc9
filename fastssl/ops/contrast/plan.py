"""What the ranks of a process group tell each other before any row travels."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl._checks import FLOATING
from fastssl.ops.contrast.checks import STRATEGIES
from fastssl.ops.contrast.pairs import Pairs
from fastssl.ops.contrast.ranks import Ranks


class Plan(NamedTuple):
    """What all ranks know of the call."""

    ranks: Ranks
    strategy: str
    rows: list[int]  # of x, by rank
    columns: list[int]  # of y, or of x where y is None
    x: bool  # whether any rank wants the gradient of x, of the scale or of the bias
    y: bool

    def blocks(self, side, sizes, kept=None, more=None) -> Iterator[tuple[int | None, list]]:
        """A side's tensors (and `more`) of all ranks at once, or in a ring rank by rank.

        First comes where this rank's own rows begin: None where its own are not among them.
        """
        if self.strategy == "ring":
            for step, found in enumerate(self.ranks.around([*side, more], sizes)):
                yield (None if step else 0), found
            return
        kept = self.keep(side, sizes) if kept is None else kept
        yield self.start(sizes), [*kept, *self.ranks.gather([more], sizes)]

    def start(self, sizes: list[int]) -> int:
        """Where this rank's rows begin among all ranks'."""
        return sum(sizes[: self.ranks.rank])

    def cut(self, gathered, sizes: list[int], first: int, last: int) -> list[Tensor | None]:
        """The rows of ranks first to last - 1."""
        begin, end = sum(sizes[:first]), sum(sizes[:last])
        return [None if x is None else x[begin:end] for x in gathered]

    def keep(self, side, sizes) -> list[Tensor | None] | None:
        """What the backward pass need not gather again; None in a ring."""
        return None if self.strategy == "ring" else self.ranks.gather(side, sizes)


def agreed(p: Pairs, ranks: Ranks, strategy: str, names) -> Plan:
    """Tells the other ranks of this call; raises on all of them where the calls do not fit."""
    needs = [
        isinstance(z, Tensor) and z.requires_grad and torch.is_grad_enabled()
        for z in (p.x, p.y, p.scale, p.bias)
    ]
    facts = {
        "kind of loss": p.kind,
        f"{names[1]} given": p.y is not None,
        "normalize": 2 * p.normalize_x + p.normalize_y,
        "symmetric": p.columns,
        "return_metrics": p.metrics,
        "strategy": STRATEGIES.index(strategy),
        "learned temperature or scale": p.scale is not None,
        "partner given": p.partner is not None,
        "labels given": p.row_labels is not None,
        "margins given": (p.row_window is not None) + 2 * (p.column_window is not None),
        "requires_grad of any input": any(needs),
    }
    shape = [len(p.x), p.x.shape[1], FLOATING.index(p.x.dtype)]
    shape.append(len(p.x if p.y is None else p.y))
    scale = torch.tensor([p.factor]) if p.scale is None else p.scale.detach().reshape(1)
    scale = scale.to(device=p.x.device, dtype=torch.float64).view(torch.int64)
    mine = torch.tensor([*shape, *needs, *facts.values()], dtype=torch.int64, device=p.x.device)
    every = list(zip(*ranks.integers(torch.cat([mine, scale])), strict=True))
    rows, widths, dtypes, columns, *needs = every[: len(shape) + len(needs)]
    _same(f"{names[0]}: got D =", widths)
    _same(f"{names[0]}: got dtype", [FLOATING[k] for k in dtypes], TypeError)
    for name, values in zip(facts, every[-1 - len(facts) : -1], strict=True):
        _same(f"process_group: got {name} =", values)
    not_empty(names[0], rows)
    not_empty(names[1], columns)
    scales = torch.tensor(every[-1]).view(torch.float64)
    if ((scales - scales[0]).abs() > 1e-5 * scales[0].abs()).any():
        _same("process_group: got temperature or scale (what cosines are multiplied by)", scales)
    want = [any(ranks_need) for ranks_need in needs]
    return Plan(ranks, strategy, list(rows), list(columns), want[0] or want[2] or want[3], want[1])


def _same(what: str, values, error: type[Exception] = ValueError) -> None:
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    if any(value != values[0] for value in values):
        listed = ", ".join(str(value) for value in values)
        raise error(f"{what} {listed} on ranks 0 to {len(values) - 1}, must be the same on all")


def not_empty(name: str, sizes) -> int:
    """How many rows all ranks have; raises where one has none."""
    if not all(sizes):
        empty = [rank for rank, n in enumerate(sizes) if n == 0]
        raise ValueError(
            f"{name}: got no rows on ranks {empty} of the process group, each must have at least 1"
        )
    return sum(sizes)

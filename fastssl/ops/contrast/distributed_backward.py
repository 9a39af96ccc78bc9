"""The gradient of this rank's rows, from the statistics of all ranks' and their gradients."""

import torch
from torch import Tensor

from fastssl._checks import compute_dtype
from fastssl.ops.contrast.block import columns_side, facing, rows_side
from fastssl.ops.contrast.pairs import ROWS, Pairs
from fastssl.ops.contrast.plan import Plan


def _packed(found: Tensor, grad: Tensor) -> Tensor:
    """[n, 8]: statistics that have a gradient, and the gradients."""
    return torch.cat([found[:ROWS], grad[:ROWS]]).T.contiguous()


def _unpacked(packed: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    if packed is None:
        return like.new_zeros(ROWS, 0), like.new_zeros(ROWS, 0)
    both = packed.T.contiguous()
    return both[:ROWS], both[ROWS:]


def gradient_of_rows(p: Pairs, raw, plan: Plan, kept, of_rows, of_columns) -> list[Tensor]:
    """Gradients of x, scale and bias; `of_rows`, `of_columns`: (statistics, gradients).

    Summed over the ranks, those of the numbers are the whole: where y is None, two ranks see a pair
    of their rows, each of them with both rows' shares, and it counts half.
    """
    symmetric = p.y is None
    more = _packed(*(of_rows if symmetric else of_columns)) if symmetric or p.columns else None
    total = None
    for start, (y, labels, window, packed) in plan.blocks(
        columns_side(p), plan.columns, kept, more
    ):
        q = facing(p, start, y, labels, window, more is not None)
        theirs = _unpacked(None if q.y is None else packed, of_rows[0])
        x, _, *numbers = raw(*q, *of_rows, *theirs, True, False)
        count = 0.5 if symmetric and q.y is not None else 1
        part = [x.to(compute_dtype(x.dtype)), *(count * number for number in numbers)]
        total = part if total is None else [a + b for a, b in zip(total, part, strict=True)]
    return [total[0].to(p.x.dtype), *total[1:]]


def gradient_of_columns(p: Pairs, raw, plan: Plan, of_rows, of_columns) -> Tensor:
    """The gradient of y, from all ranks' rows."""
    side, more = rows_side(p.x, p.row_labels, p.row_window), _packed(*of_rows)
    total = None
    for start, (x, labels, window, packed) in plan.blocks(side, plan.rows, None, more):
        partner = None
        if p.partner is not None and start is not None:
            partner = p.partner.new_full((len(x),), -1)
            partner[start : start + len(p.x)] = p.partner
        q = p._replace(
            x=x,
            partner=partner,
            row_labels=labels,
            row_window=None if window is None else window.T.contiguous(),
        )
        _, y, _, _ = raw(*q, *_unpacked(packed, of_rows[0]), *of_columns, False, True)
        y = y.to(compute_dtype(y.dtype))
        total = y if total is None else total + y
    return total.to(p.y.dtype)

"""The statistics of rows that the ranks of a process group hold together, and their gradient.

A rank computes the statistics of its own rows of x against all ranks' columns (and, where
statistics of columns are asked for, of its own columns against all rows of x). The gradient of its
own rows needs the statistics of all columns and the gradients with respect to them, eight numbers a
column: no gradient of a row travels. docs/distributed.md has the whole account.

Collective: every rank of the group calls `statistics` with the same options, and calls backward.
"""

import torch
from torch import Tensor

from fastssl._checks import compute_dtype
from fastssl.ops.contrast import core
from fastssl.ops.contrast.merge import merged, with_the_rest
from fastssl.ops.contrast.pairs import (
    BEST,
    NEGATIVES,
    PAIRED,
    POSITIVE,
    POSITIVES,
    ROWS,
    SIGMOID,
    Pairs,
)
from fastssl.ops.contrast.plan import Plan, agreed, not_empty
from fastssl.ops.contrast.ranks import Ranks


@torch.compiler.disable
def statistics(p: Pairs, impl: str, group, strategy: str, names=("x", "y")) -> core.Statistics:
    """`core.statistics` over all ranks of `group`; `names` are x's and y's in errors.

    Raises:
        TypeError: `group` is no process group of this rank; on all ranks: dtypes differ.
        ValueError: on all ranks: one has no rows, or shapes or options differ between them.
    """
    if p.excluded is not None:
        raise ValueError("excluded: with a process group only a row itself is left out")
    ranks = Ranks(group, p.x.device)
    plan = agreed(p, ranks, strategy, names)
    if plan.strategy == "ring" and p.metrics and p.kind in (SIGMOID, PAIRED):
        raise ValueError("strategy: 'ring' has no metrics of losses without a softmax over a row")
    # One rank needs no other: the kernels of one process, and second derivatives.
    call = core._differentiable if ranks.world == 1 else _Statistics.apply
    rows, columns = call(impl, *p) if ranks.world == 1 else call(plan, impl, *p)
    return core.Statistics(
        rows, columns, sum(plan.rows) / ranks.world, sum(plan.columns) / ranks.world
    )


@torch.compiler.disable
def mean_rows(n: int, device: torch.device, group, name: str = "query") -> float:
    """All ranks' rows over the number of ranks; ValueError on all ranks where one has none."""
    ranks = Ranks(group, device)
    sizes = ranks.integers(torch.tensor([n], device=device))
    return not_empty(name, [n for (n,) in sizes]) / ranks.world


@torch.compiler.disable
def mean_count(count: Tensor, group) -> Tensor:
    """The sum of all ranks' counts (0-d), at least 1, over the number of ranks."""
    ranks = Ranks(group, count.device)
    total = count.detach().clone()
    torch.distributed.all_reduce(total, group=group)
    return total.clamp(min=1) / ranks.world


def _side(z: Tensor, labels: Tensor | None, window: Tensor | None) -> list[Tensor | None]:
    """What travels of some rows."""
    return [z, labels, None if window is None else window.T]


def _columns_side(p: Pairs) -> list[Tensor | None]:
    if p.y is None:
        return _side(p.x, p.row_labels, p.row_window)
    return _side(p.y, p.column_labels, p.column_window)


def _facing(p: Pairs, start: int | None, y, labels, window, columns: bool = False) -> Pairs:
    """Rows of x against columns that came; this rank's own begin at `start`."""
    if p.y is None and start == 0 and len(y) == len(p.x):
        return p  # with itself: half the work
    excluded = partner = None
    if start is not None:
        if p.y is None:
            excluded = torch.arange(start, start + len(p.x), device=y.device)
        if p.partner is not None:
            partner = torch.where(p.partner < 0, -1, p.partner + start)
    return p._replace(
        y=y,
        normalize_y=p.normalize_x if p.y is None else p.normalize_y,
        columns=columns,
        excluded=excluded,
        partner=partner,
        column_labels=labels,
        column_window=None if window is None else window.T.contiguous(),
    )


def _swapped(p: Pairs) -> Pairs:
    """Columns as rows."""
    partner = p.partner
    if partner is not None:
        c = len(p.y)
        index = torch.arange(len(partner), device=partner.device)
        partner = partner.new_full((c + 1,), -1)
        partner = partner.scatter(0, torch.where(p.partner < 0, c, p.partner), index)[:c]
    return p._replace(
        x=p.y,
        y=p.x,
        normalize_x=p.normalize_y,
        normalize_y=p.normalize_x,
        columns=False,
        partner=partner,
        row_labels=p.column_labels,
        column_labels=p.row_labels,
        row_window=p.column_window,
        column_window=p.row_window,
        threshold=None,
    )


def _rows(p: Pairs, raw, plan: Plan, sizes: list[int], kept) -> Tensor:
    """The statistics of rows against all ranks' columns."""
    matrix, labels, _ = _columns_side(p)
    side = [matrix, labels, None]
    found, here = None, []
    for start, (y, labels, _, _) in plan.blocks(side, sizes, kept):
        q = _facing(p, start, y, labels, None)
        if p.metrics and p.threshold is None and found is not None:
            q = q._replace(threshold=found[BEST])  # the partner is among this rank's own columns
        one, _ = raw(*q)
        here.append(one[NEGATIVES])
        found = one if found is None else merged(p.kind, found, one)
    if p.kind != PAIRED or len(here) == 1:
        return found
    # A second trip: a positive meets all negatives, which no rank knew during the first.
    found[[POSITIVE, POSITIVES]] = 0
    blocks = zip(here, plan.blocks(side, sizes), strict=True)
    for negatives, (start, (y, labels, _, _)) in blocks:
        q = _facing(p, start, y, labels, None)
        one, _ = raw(*with_the_rest(q, found[NEGATIVES], negatives))
        found[[POSITIVE, POSITIVES]] += one[[POSITIVE, POSITIVES]]
    return found


def _packed(found: Tensor, grad: Tensor) -> Tensor:
    """[n, 8]: statistics that have a gradient, and the gradients."""
    return torch.cat([found[:ROWS], grad[:ROWS]]).T.contiguous()


def _unpacked(packed: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    if packed is None:
        return like.new_zeros(ROWS, 0), like.new_zeros(ROWS, 0)
    both = packed.T.contiguous()
    return both[:ROWS], both[ROWS:]


def _gradient_of_rows(p: Pairs, raw, plan: Plan, kept, of_rows, of_columns) -> list[Tensor]:
    """Gradients of x, scale and bias; `of_rows`, `of_columns`: (statistics, gradients).

    Summed over the ranks, those of the numbers are the whole: where y is None, two ranks see a pair
    of their rows, each of them with both rows' shares, and it counts half.
    """
    symmetric = p.y is None
    more = _packed(*(of_rows if symmetric else of_columns)) if symmetric or p.columns else None
    total = None
    for start, (y, labels, window, packed) in plan.blocks(
        _columns_side(p), plan.columns, kept, more
    ):
        q = _facing(p, start, y, labels, window, more is not None)
        theirs = _unpacked(None if q.y is None else packed, of_rows[0])
        x, _, *numbers = raw(*q, *of_rows, *theirs, True, False)
        count = 0.5 if symmetric and q.y is not None else 1
        part = [x.to(compute_dtype(x.dtype)), *(count * number for number in numbers)]
        total = part if total is None else [a + b for a, b in zip(total, part, strict=True)]
    return [total[0].to(p.x.dtype), *total[1:]]


def _gradient_of_columns(p: Pairs, raw, plan: Plan, kept, of_rows, of_columns) -> Tensor:
    """The gradient of y, from all ranks' rows."""
    side, more = _side(p.x, p.row_labels, p.row_window), _packed(*of_rows)
    total = None
    for start, (x, labels, window, packed) in plan.blocks(side, plan.rows, kept, more):
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


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, impl, *pairs):
        p, (raw, _) = Pairs(*pairs), core.kernels(impl)
        ys = plan.keep(_columns_side(p), plan.columns)
        rows, columns, xs = (
            _rows(p, raw, plan, plan.columns, ys),
            p.x.new_zeros(4, 0).double(),
            None,
        )
        if p.columns:
            xs = plan.keep(_side(p.x, p.row_labels, p.row_window), plan.rows)
            columns = _rows(_swapped(p), raw, plan, plan.rows, xs)
        ctx.plan, ctx.impl = plan, impl
        ctx.plain = [None if isinstance(a, Tensor) else a for a in pairs]
        ctx.kept = ys is not None, xs is not None
        ctx.save_for_backward(
            *(a if isinstance(a, Tensor) else None for a in pairs),
            rows,
            columns,
            *(ys or [None] * 3),
            *(xs or [None] * 3),
        )
        return rows, columns

    @staticmethod
    def backward(ctx, rows_grad, columns_grad):
        plan, (_, raw), count = ctx.plan, core.kernels(ctx.impl), len(Pairs._fields)
        pairs = [b if a is None else a for a, b in zip(ctx.saved_tensors, ctx.plain, strict=False)]
        rows, columns, *kept = ctx.saved_tensors[count:]
        ys, xs = (
            side if was else None for side, was in zip((kept[:3], kept[3:]), ctx.kept, strict=True)
        )
        p = Pairs(*pairs)._replace(metrics=False, threshold=None)
        of_rows = rows[:ROWS], rows_grad[:ROWS].contiguous()
        of_columns = columns[:ROWS], columns_grad[:ROWS].contiguous()
        grads = [None] * 4
        with torch.no_grad():
            # Whether rows travel is decided by what any rank wants: all must take part.
            if plan.x:
                grads[0], *grads[2:] = _gradient_of_rows(p, raw, plan, ys, of_rows, of_columns)
            if plan.y:
                grads[1] = _gradient_of_columns(p, raw, plan, xs, of_rows, of_columns)
        need = [ctx.needs_input_grad[2 + k] for k in (0, 1, 2, 4)]
        grads = [g if n else None for g, n in zip(grads, need, strict=True)]
        if torch.is_grad_enabled():
            grads = _NoSecondDerivative.apply(*grads, *pairs[:3], pairs[4], rows_grad)
        result = [None] * (2 + count)
        for place, grad in zip((0, 1, 2, 4), grads, strict=True):
            result[2 + place] = grad
        return tuple(result)


class _NoSecondDerivative(torch.autograd.Function):
    """Passes gradients on; theirs would need another exchange, and raises instead."""

    @staticmethod
    def forward(ctx, *tensors):
        return tuple(None if g is None else g.clone() for g in tensors[:4])

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "process_group: a loss over several ranks has no second derivative "
            "(create_graph=True); without a process group it has one"
        )

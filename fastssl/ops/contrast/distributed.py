"""The statistics of rows that the ranks of a process group hold together, and their gradient.

A rank computes the statistics of its own rows of x against all ranks' columns (and, where
statistics of columns are asked for, of its own columns against all rows of x). The gradient of its
own rows needs the statistics of all columns and the gradients with respect to them, eight numbers a
column: no gradient of a row travels. docs/distributed.md has the whole account.

Collective: every rank of the group calls `statistics` with the same options, and calls backward.
"""

import torch
from torch import Tensor

from fastssl.ops.contrast import core, distributed_backward, distributed_forward
from fastssl.ops.contrast.block import columns_side
from fastssl.ops.contrast.pairs import PAIRED, ROWS, SIGMOID, Pairs
from fastssl.ops.contrast.plan import agreed, not_empty
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
    alone = ranks.world == 1
    rows, columns = core.in_one_process(p, impl) if alone else _Statistics.apply(plan, impl, *p)
    return core.Statistics(
        rows, columns, sum(plan.rows) / ranks.world, sum(plan.columns) / ranks.world
    )


@torch.compiler.disable
def mean_rows(n: int, device: torch.device, group) -> float:
    """All ranks' rows over the number of ranks; ValueError on all ranks where one has none."""
    ranks = Ranks(group, device)
    sizes = ranks.integers(torch.tensor([n], device=device))
    return not_empty("query", [n for (n,) in sizes]) / ranks.world


@torch.compiler.disable
def mean_count(count: Tensor, group) -> Tensor:
    """The sum of all ranks' counts (0-d), at least 1, over the number of ranks."""
    ranks = Ranks(group, count.device)
    total = count.detach().clone()
    torch.distributed.all_reduce(total, group=group)
    return total.clamp(min=1) / ranks.world


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, impl, *pairs):
        p, (raw, _) = Pairs(*pairs), core.kernels(impl)
        kept = plan.keep(columns_side(p), plan.columns)
        rows, columns = distributed_forward.statistics(p, raw, plan, kept)
        ctx.plan, ctx.impl, ctx.kept = plan, impl, kept is not None
        ctx.plain = [None if isinstance(a, Tensor) else a for a in pairs]
        tensors = [a if isinstance(a, Tensor) else None for a in pairs]
        ctx.save_for_backward(*tensors, rows, columns, *(kept or []))
        return rows, columns

    @staticmethod
    def backward(ctx, rows_grad, columns_grad):
        plan, (_, raw), count = ctx.plan, core.kernels(ctx.impl), len(Pairs._fields)
        pairs = [b if a is None else a for a, b in zip(ctx.saved_tensors, ctx.plain, strict=False)]
        rows, columns, *kept = ctx.saved_tensors[count:]
        kept = kept if ctx.kept else None
        p = Pairs(*pairs)._replace(metrics=False, threshold=None)
        of_rows = rows[:ROWS], rows_grad[:ROWS].contiguous()
        of_columns = columns[:ROWS], columns_grad[:ROWS].contiguous()
        grads = [None] * 4
        with torch.no_grad():
            # Whether rows travel is decided by what any rank wants: all must take part.
            if plan.x:
                grads[0], *grads[2:] = distributed_backward.gradient_of_rows(
                    p, raw, plan, kept, of_rows, of_columns
                )
            if plan.y:
                grads[1] = distributed_backward.gradient_of_columns(
                    p, raw, plan, of_rows, of_columns
                )
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

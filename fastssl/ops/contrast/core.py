"""`statistics`: what every loss of the family is made of, through the raw operators."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._autograd import applied, no_third_derivative
from fastssl._checks import compute_dtype
from fastssl.ops.contrast import cuda, reference, schema  # noqa: F401 (both register operators)
from fastssl.ops.contrast.pairs import NEGATIVES, SOFTMAX, Pairs

_dispatch.register("contrast", cpu="cpu", cuda="triton")


class Statistics(NamedTuple):
    """What `statistics` returns; pairs.py names the rows of the tensors."""

    rows: Tensor  # float64, [4, R], or [10, R] with metrics
    columns: Tensor  # [4, C] or [10, C]; [4, 0] where they are not asked for
    #: What a sum of losses over the rows is divided by for "mean": how many rows there are; with a
    #: process group, all ranks' rows over the number of ranks.
    row_share: float
    column_share: float


def statistics(
    x: Tensor,
    y: Tensor | None = None,
    *,
    scale: float | Tensor,
    bias: Tensor | None = None,
    kind: int = SOFTMAX,
    normalize: bool | tuple[bool, bool] = True,
    columns: bool = False,
    metrics: bool = False,
    excluded: Tensor | None = None,
    partner: Tensor | None = None,
    row_labels: Tensor | None = None,
    column_labels: Tensor | None = None,
    row_window: Tensor | None = None,
    column_window: Tensor | None = None,
    threshold: Tensor | None = None,
    process_group=None,
    strategy: str = "gather",
    impl: str = "auto",
    names: tuple[str, str] = ("x", "y"),
    alike: bool = False,
) -> Statistics:
    """Sums over the negatives and the positives of each row of scale * x yT + bias.

    With a process group, x and y are this rank's rows, and each of them is compared with all ranks'
    (rows of x with all columns, columns with all rows of x); `partner` numbers this rank's
    columns, and errors that ranks find together call x and y by `names`. `alike`: the caller's loss
    has the same gradient with respect to every row's NEGATIVES. Differentiable in x, y, scale and
    bias.
    """
    normalize = (normalize, normalize) if isinstance(normalize, bool) else normalize
    learned = isinstance(scale, Tensor)
    dtype = compute_dtype(x.dtype)
    p = Pairs(
        x,
        y,
        scale.to(device=x.device, dtype=dtype) if learned else None,
        0.0 if learned else float(scale),
        None if bias is None else bias.to(device=x.device, dtype=dtype),
        kind,
        *normalize,
        columns and y is not None,
        metrics,
        excluded,
        partner,
        row_labels,
        column_labels,
        row_window,
        column_window,
        threshold,
    )
    chosen = _dispatch.choose("contrast", impl, x.device)
    if process_group is not None:
        from fastssl.ops.contrast import distributed

        return distributed.statistics(p, chosen, process_group, strategy, names)
    rows, columns_ = in_one_process(p, chosen, alike)
    return Statistics(rows, columns_, len(x), len(x if y is None else y))


def in_one_process(p: Pairs, impl: str, alike: bool = False) -> tuple[Tensor, Tensor]:
    """The statistics of rows and of columns, differentiable."""
    if impl == "reference":
        return reference.statistics(p)
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in p):
        keep = impl == "cpu" and schema.worth_keeping(p)
        keep = keep or impl == "triton" and alike and schema.gradients_worth_keeping(p)
        return _differentiable(impl, keep, *p)[:2]
    # torch.compile takes no Function with *arguments where nothing requires a gradient.
    return kernels(impl)[0](*p)


def kernels(impl: str, kept: bool = False):
    """The raw operators, or Triton's launchers where they run on CPU tensors in its interpreter."""
    if impl == "reference":
        return schema._forward, schema._backward
    end = "_kept" if kept else ""
    if impl == "triton" and _dispatch.INTERPRET:
        from fastssl.ops.contrast import triton

        return getattr(triton, f"forward{end}"), getattr(triton, f"backward{end}")
    raw = torch.ops.fastssl
    return getattr(raw, f"contrast_forward{end}"), getattr(raw, f"contrast_backward{end}")


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(impl, keep, *pairs):
        forward, _ = kernels(impl, keep)
        if keep:
            return forward(*pairs)
        return *forward(*pairs), pairs[0].new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.impl, _, *pairs = inputs
        ctx.mark_non_differentiable(output[2])
        ctx.set_materialize_grads(False)  # or zeros are made for what is kept
        ctx.plain = [None if isinstance(a, Tensor) else a for a in pairs]
        tensors = [a if isinstance(a, Tensor) else None for a in pairs]
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx, rows_grad, columns_grad, _):
        *tensors, rows, columns, kept = ctx.saved_tensors
        rows_grad = torch.zeros_like(rows) if rows_grad is None else rows_grad
        columns_grad = torch.zeros_like(columns) if columns_grad is None else columns_grad
        if _dispatch.INTERPRET and kept.numel() and ctx.impl == "triton":
            # Not asked on a GPU, where the host would wait for the answer.
            uniform = rows_grad[NEGATIVES] == rows_grad[NEGATIVES, :1]
            assert uniform.all() or rows_grad.isnan().any(), "`alike` was promised"
        pairs = [b if a is None else a for a, b in zip(tensors, ctx.plain, strict=True)]
        need = ctx.needs_input_grad[2:]
        want_x = need[0] or need[2] or need[4]  # the numbers' gradients come with x's
        arguments = (*pairs, rows, rows_grad, columns, columns_grad, want_x, need[1])
        # A graph of the gradient is only wanted where grad mode is on (create_graph=True).
        gradient = _Gradient.apply if torch.is_grad_enabled() else _Gradient.forward
        grads = gradient(ctx.impl, kept, *arguments)
        result = [None] * len(pairs)
        for place, grad in zip((0, 1, 2, 4), grads, strict=True):
            result[place] = grad if need[place] else None
        return None, None, *result


class _Gradient(torch.autograd.Function):
    """The gradient as a function of its own, so that it has one: that of the reference."""

    @staticmethod
    def forward(impl, kept, *arguments):
        _, backward = kernels(impl, kept.numel() > 0)
        return backward(kept, *arguments) if kept.numel() else backward(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, *arguments = inputs
        ctx.plain = [None if isinstance(a, Tensor) else a for a in arguments]
        ctx.save_for_backward(*(a if isinstance(a, Tensor) else None for a in arguments))

    @staticmethod
    def backward(ctx, *grads):
        no_third_derivative()
        count = len(Pairs._fields)
        arguments = [
            b if a is None else a for a, b in zip(ctx.saved_tensors, ctx.plain, strict=True)
        ]
        pairs, (_, rows_grad, _, columns_grad, *_) = arguments[:count], arguments[count:]
        places = [k for k in (0, 1, 2, 4) if pairs[k] is not None]
        with torch.enable_grad():
            # Detached: gradients of the statistics depend on x, too, by way of the loss.
            upstream = [g.detach().requires_grad_() for g in (rows_grad, columns_grad)]
            for k in places:
                pairs[k] = pairs[k].detach().requires_grad_()
            outputs = reference.statistics(Pairs(*pairs))
            wanted = [pairs[k] for k in places]
            asked = [k for k in (0, 1) if outputs[k].requires_grad]
            first = torch.autograd.grad(
                [outputs[k] for k in asked],
                wanted,
                [upstream[k] for k in asked],
                create_graph=True,
                materialize_grads=True,
            )
        # An output that was not wanted came back empty.
        outer = [grads[(0, 1, 2, 4).index(k)] for k in places]
        meet = [
            (f, g)
            for f, g in zip(first, outer, strict=True)
            if f.requires_grad and g.shape == f.shape
        ]
        second = torch.autograd.grad(
            [f for f, _ in meet],
            [*upstream, *wanted],
            [g for _, g in meet],
            allow_unused=True,
        )
        result = [None] * len(arguments)
        for k, g in zip((count + 1, count + 3, *places), second, strict=True):
            result[k] = g
        return None, None, *result


_differentiable = applied(_Statistics)

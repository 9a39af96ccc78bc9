"""The raw operators: schemas, the fallback for devices without a kernel, shapes for tracing.

contrast_forward returns the statistics of rows and of columns, float64, [4, R] and [4, C] ([10, .]
with metrics, [4, 0] for columns that are not asked for); pairs.py says what they are.

contrast_backward takes the statistics that gradients refer to and the gradients with respect to
them, of rows and, where `columns` or where y is None, of columns: G_ij = dL/ds_ij is a sum over
both. They need not come from the same call: a process that holds some rows may be given the
statistics of columns that were computed against all rows. It returns the gradients of x, y, scale
and bias; x's (with scale's) only where `want_x`, y's only where `want_y`, empty otherwise. Where y
is None, x's is of both sides.
"""

import torch
from torch import Tensor

from fastssl._autograd import without_autocast
from fastssl._checks import compute_dtype
from fastssl._library import LIBRARY
from fastssl.ops.contrast import reference
from fastssl.ops.contrast.pairs import (
    COUNT,
    LABELLED,
    NEGATIVES,
    PAIRED,
    POSITIVE,
    POSITIVES,
    ROWS,
    ROWS_WITH_METRICS,
    SIGMOID,
    Pairs,
    masks,
)
from fastssl.ops.nt_xent.reference import normalize_rows
from fastssl.ops.nt_xent.triton_tiles import ROW_UNIT, padded_depth

_PAIRS = (
    "Tensor x, Tensor? y, Tensor? scale, float factor, Tensor? bias, int kind, bool normalize_x, "
    "bool normalize_y, bool columns, bool metrics, Tensor? excluded, Tensor? partner, "
    "Tensor? row_labels, Tensor? column_labels, Tensor? row_window, Tensor? column_window, "
    "Tensor? threshold"
)
LIBRARY.define(f"contrast_forward({_PAIRS}) -> (Tensor, Tensor)")
_GRADIENT = (
    f"{_PAIRS}, Tensor rows, Tensor rows_grad, Tensor columns_, Tensor columns_grad, bool want_x, "
    "bool want_y) -> (Tensor, Tensor, Tensor, Tensor"
)
LIBRARY.define(f"contrast_backward({_GRADIENT})")
#: The same with what the backward pass would compute again in between. On a CPU: the exponentials
#: of all pairs, for few rows, where they are no more than the rows themselves. On a GPU: gradients,
#: for which the backward pass takes rows_grad's first NEGATIVES for all of them.
LIBRARY.define(f"contrast_forward_kept({_PAIRS}) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(f"contrast_backward_kept(Tensor kept, {_GRADIENT})")
#: Log-sum-exp, float64 [R], of the rows of scale * z yT, z [R, D] in the compute type; and where
#: `want_mean` the mean of y under their softmax, [R, D], with which the gradient is known: [0]
#: else.
LIBRARY.define(
    "contrast_queue(Tensor z, Tensor y, Tensor? scale, float factor, bool normalize, "
    "bool want_mean) -> (Tensor, Tensor)"
)


def _forward(*pairs):
    return reference.statistics(Pairs(*pairs))


def _side_gradient(p: Pairs, s: Tensor, negative, positive, found: Tensor, grad: Tensor) -> Tensor:
    """dL/ds_ij through the statistics of the rows of `s`."""
    found, grad = found.to(s.dtype)[:, :, None], grad.to(s.dtype)[:, :, None]
    n = found[NEGATIVES].masked_fill(found[NEGATIVES].isneginf(), 0)
    of_negatives, of_positives = grad[NEGATIVES], grad[POSITIVE]
    if p.kind == PAIRED:
        of_negatives = of_negatives + of_positives * found[POSITIVES]
        miss = torch.where(found[NEGATIVES].isneginf(), 0, (n - s).sigmoid())
        of_positives = -of_positives * miss
    elif p.kind == LABELLED:
        of_positives = of_positives + grad[POSITIVES] * (
            s - found[POSITIVES].masked_fill(found[COUNT] == 0, 0)
        ).exp().masked_fill(~positive, 0)
    share = s.sigmoid() if p.kind == SIGMOID else (s - n).masked_fill(~negative, -torch.inf).exp()
    return torch.where(negative, of_negatives * share, 0) + torch.where(positive, of_positives, 0)


@without_autocast
def _backward(*arguments):
    *pairs, rows, rows_grad, columns, columns_grad, want_x, want_y = arguments
    p = Pairs(*pairs)
    other = p.x if p.y is None else p.y
    dtype = compute_dtype(p.x.dtype)
    scale = torch.full((), p.factor, dtype=dtype) if p.scale is None else p.scale.to(dtype)
    with torch.enable_grad():
        leaves = [z.detach().requires_grad_() for z in (p.x, other)]
        flags = p.normalize_x, p.normalize_x if p.y is None else p.normalize_y
        x, y = (
            normalize_rows(z) if normalize else z.to(dtype)
            for z, normalize in zip(leaves, flags, strict=True)
        )
    cosines = x.detach() @ y.detach().T
    s = cosines * scale
    s = s if p.bias is None else s + p.bias.to(dtype)
    of_rows, of_columns = masks(p, s)
    g = _side_gradient(p, s, *of_rows, rows, rows_grad)
    if p.y is None:
        both, g_scale = g + g.T, (g * cosines).sum()
        (grad_x,) = torch.autograd.grad(x, leaves[0], both @ x.detach() * scale)
        return grad_x, grad_x.new_empty(0), g_scale, g.sum()
    if p.columns:
        g = g + _side_gradient(p, s.T, *of_columns, columns, columns_grad).T
    grads = [p.x.new_empty(0), p.y.new_empty(0)]
    if want_x:
        (grads[0],) = torch.autograd.grad(x, leaves[0], g @ y.detach() * scale)
    if want_y:
        (grads[1],) = torch.autograd.grad(y, leaves[1], g.T @ x.detach() * scale)
    return *grads, (g * cosines).sum(), g.sum()


@without_autocast
def queue(z, y, scale, factor, normalize, want_mean):
    """contrast_queue in plain PyTorch."""
    y = normalize_rows(y) if normalize else y.to(z.dtype)
    s = z @ y.T * (factor if scale is None else scale.to(z.dtype))
    mean = s.softmax(1) @ y if want_mean else z.new_empty(0)
    return s.logsumexp(1).double(), mean


def _count(p: Pairs) -> int:
    return ROWS_WITH_METRICS if p.metrics else ROWS


def kept_size(p: Pairs) -> int:
    """How many numbers `kept` has: rows and columns as padded by the kernels, and one more."""
    columns = (p.x if p.y is None else p.y).shape[0]
    if p.x.device.type == "cuda":
        padded = sum(-(-count // ROW_UNIT) * ROW_UNIT for count in (p.x.shape[0], columns))
        return padded * padded_depth(p.x.shape[1]) + 1
    return (p.x.shape[0] + 16) * ((columns + 63) // 64 * 64) + 1


def worth_keeping(p: Pairs) -> bool:
    """Whether the exponentials of all pairs take no more memory than O((R + C) D)."""
    columns, depth = (p.x if p.y is None else p.y).shape
    rows = p.x.shape[0]
    plain = p.kind != PAIRED and not p.metrics
    windows = p.row_window is not None or p.column_window is not None
    return plain and not windows and kept_size(p) <= 2 * (rows + columns) * depth


def gradients_worth_keeping(p: Pairs) -> bool:
    """Whether both gradients of sums of softplus are to come with the sums: see triton_kept.py."""
    if p.y is None or not (p.x.requires_grad and p.y.requires_grad):
        return False
    masked = p.excluded is not None or p.row_labels is not None
    plain = p.kind == SIGMOID and not (p.columns or p.metrics or masked)
    deep = p.x.dtype == torch.bfloat16 and p.x.shape[1] > 256
    return plain and deep and p.x.numel() > 0 and p.y.numel() > 0


def _forward_kept(*pairs):
    p = Pairs(*pairs)
    kept = p.x.new_full((kept_size(p),), -1.0, dtype=compute_dtype(p.x.dtype))  # nothing is kept
    return *_forward(*pairs), kept


def _backward_kept(kept, *arguments):
    return _backward(*arguments)


def _forward_kept_fake(*pairs):
    p = Pairs(*pairs)
    kept = p.x.new_empty(kept_size(p), dtype=compute_dtype(p.x.dtype))
    return *_forward_fake(*pairs), kept


def _backward_kept_fake(kept, *arguments):
    return _backward_fake(*arguments)


def _forward_fake(*pairs):
    p = Pairs(*pairs)
    columns = (_count(p), p.y.shape[0]) if p.columns else (4, 0)
    rows = p.x.new_empty(_count(p), p.x.shape[0], dtype=torch.float64)
    return rows, p.x.new_empty(columns, dtype=torch.float64)


def _backward_fake(*arguments):
    *pairs, _, _, _, _, want_x, want_y = arguments
    p = Pairs(*pairs)
    number = p.x.new_empty((), dtype=compute_dtype(p.x.dtype))
    return (
        p.x.new_empty(p.x.shape if want_x or p.y is None else 0),
        p.x.new_empty(0) if p.y is None else p.y.new_empty(p.y.shape if want_y else 0),
        number,
        torch.empty_like(number),
    )


def _queue_fake(z, y, scale, factor, normalize, want_mean):
    return z.new_empty(len(z), dtype=torch.float64), z.new_empty(z.shape if want_mean else 0)


LIBRARY.impl("contrast_queue", queue, "CompositeExplicitAutograd")
torch.library.register_fake("fastssl::contrast_queue", _queue_fake, lib=LIBRARY)
LIBRARY.impl("contrast_forward", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("contrast_backward", _backward, "CompositeExplicitAutograd")
LIBRARY.impl("contrast_forward_kept", _forward_kept, "CompositeExplicitAutograd")
LIBRARY.impl("contrast_backward_kept", _backward_kept, "CompositeExplicitAutograd")
torch.library.register_fake("fastssl::contrast_forward_kept", _forward_kept_fake, lib=LIBRARY)
torch.library.register_fake("fastssl::contrast_backward_kept", _backward_kept_fake, lib=LIBRARY)
torch.library.register_fake("fastssl::contrast_forward", _forward_fake, lib=LIBRARY)
torch.library.register_fake("fastssl::contrast_backward", _backward_fake, lib=LIBRARY)

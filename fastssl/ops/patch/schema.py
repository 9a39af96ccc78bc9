"""The raw operators on patches: schemas, the fallback for devices without a kernel, fake shapes.

A plan comes apart into shuffle and restore, int64 [B, L]; keep, K; and lengths, int64 [B] or None:
patch l of sample b is kept where restore[b, l] < (lengths[b] if lengths else keep). `images` are
[B, C, *space], uint8 or floating-point, of any strides; `patch` has one size for each axis of
space; a pixel x (a level of uint8 over 255) becomes (x - mean) / std with C numbers each. `order`,
`kind`, `statistics` are indices of ORDERS, KINDS, STATISTICS; `dtype` of DTYPES.

patch_gather: visible patches [B, K, P]; rows from lengths[b] on are zeros.
patch_gather_tokens: x [B, prefix + L, D] (plus pos [prefix + L, D]) to [B, prefix + K, D], rows
  beyond lengths[b] zeros.
patch_restore_tokens: visible [B, prefix + K, D] to [B, prefix + L, D], removed rows `token` [D]
  (zeros for None), plus pos. token and pos are in the compute type, dtype is the result's.
patch_sum_removed: the sum [D] over all removed rows of x [B, prefix + L, D], in the compute type.
patch_loss: (loss [], gradient of pred); pred is [B, L, P] in raster order, or [B, L - K, P] with
  row j for patch shuffle[b, K + j]. The gradient is that of the loss times `upstream`, or empty
  where that is 0. The loss is in
  the compute type, the gradient in pred's.
patch_scale_: multiplies x by a 0-d `by` in place, and leaves it alone where that is 1.

The compute type is float64 for float64, float32 otherwise.
"""

import torch

from fastssl._checks import compute_dtype
from fastssl._library import LIBRARY
from fastssl.ops.patch import reference
from fastssl.ops.patch.layout import ORDERS
from fastssl.ops.patch.plan import MaskPlan

KINDS = ("mse", "l1", "smooth_l1", "cosine")
STATISTICS = ("patch", "patch_channel")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_PLAN = "Tensor shuffle, Tensor restore, Tensor? lengths, int keep"
LIBRARY.define(
    f"patch_gather(Tensor images, {_PLAN}, int[] patch, float[] mean, float[] std, int order, "
    "int dtype) -> Tensor"
)
LIBRARY.define(f"patch_gather_tokens(Tensor x, Tensor? pos, {_PLAN}, int prefix) -> Tensor")
LIBRARY.define(
    f"patch_restore_tokens(Tensor visible, Tensor? token, Tensor? pos, {_PLAN}, int prefix, "
    "int dtype) -> Tensor"
)
LIBRARY.define(f"patch_sum_removed(Tensor x, {_PLAN}, int prefix) -> Tensor")
LIBRARY.define(
    f"patch_loss(Tensor images, Tensor pred, {_PLAN}, int[] patch, float[] mean, float[] std, "
    "bool norm_pix, int kind, int statistics, int order, float upstream) -> (Tensor, Tensor)"
)
LIBRARY.define("patch_scale_(Tensor(a!) x, Tensor by) -> ()")


def plan_of(shuffle, restore, lengths, keep) -> MaskPlan:
    """The plan that came apart into these."""
    limit = keep if lengths is None else lengths.unsqueeze(1)
    return MaskPlan(shuffle, restore, restore >= limit, keep, (restore.shape[1],), lengths)


def _gather(images, shuffle, restore, lengths, keep, patch, mean, std, order, dtype):
    plan = plan_of(shuffle, restore, lengths, keep)
    x = reference.gather_patches(images, plan, patch, mean, std, ORDERS[order], DTYPES[dtype])
    return x.contiguous()


def _gather_tokens(x, pos, shuffle, restore, lengths, keep, prefix):
    plan = plan_of(shuffle, restore, lengths, keep)
    return reference.gather_tokens(x, plan, pos, prefix).to(x.dtype)


def _restore_tokens(visible, token, pos, shuffle, restore, lengths, keep, prefix, dtype):
    plan, compute = plan_of(shuffle, restore, lengths, keep), compute_dtype(DTYPES[dtype])
    token = visible.new_zeros(visible.shape[-1], dtype=compute) if token is None else token
    x = reference.restore_tokens(visible.to(compute), plan, token, pos, prefix)
    return x.to(DTYPES[dtype])


def _sum_removed(x, shuffle, restore, lengths, keep, prefix):
    removed = plan_of(shuffle, restore, lengths, keep).mask.unsqueeze(-1)
    return torch.where(removed, x[:, prefix:].to(compute_dtype(x.dtype)), 0).sum((0, 1))


def _loss(
    images, pred, shuffle, restore, lengths, keep, patch, mean, std, norm_pix, kind, statistics,
    order, upstream,
):  # fmt: skip
    plan = plan_of(shuffle, restore, lengths, keep)
    how = (patch, norm_pix, KINDS[kind], STATISTICS[statistics], mean, std, ORDERS[order])
    with torch.enable_grad():
        leaf = pred.detach().requires_grad_(upstream != 0)
        loss = reference.masked_patch_loss(images, leaf, plan, *how)
    if not upstream:
        return loss, pred.new_empty(0)
    return loss.detach(), torch.autograd.grad(loss, leaf, loss.new_full((), upstream))[
        0
    ].contiguous()


def _scale(x, by):
    x.copy_(x.to(by.dtype) * by)  # `by` may be no number of x's type


def _gather_fake(images, shuffle, restore, lengths, keep, patch, mean, std, order, dtype):
    width = images.shape[1]
    for size in patch:
        width *= size
    return images.new_empty((images.shape[0], keep, width), dtype=DTYPES[dtype])


def _gather_tokens_fake(x, pos, shuffle, restore, lengths, keep, prefix):
    return x.new_empty((x.shape[0], prefix + keep, x.shape[2]))


def _restore_tokens_fake(visible, token, pos, shuffle, restore, lengths, keep, prefix, dtype):
    shape = (visible.shape[0], prefix + restore.shape[1], visible.shape[2])
    return visible.new_empty(shape, dtype=DTYPES[dtype])


def _sum_removed_fake(x, shuffle, restore, lengths, keep, prefix):
    return x.new_empty(x.shape[2], dtype=compute_dtype(x.dtype))


def _loss_fake(
    images, pred, shuffle, restore, lengths, keep, patch, mean, std, norm_pix, kind, statistics,
    order, upstream,
):  # fmt: skip
    loss = pred.new_empty((), dtype=compute_dtype(pred.dtype))
    return loss, pred.new_empty(pred.shape if upstream else 0)


for _name, _fallback, _fake in (
    ("patch_gather", _gather, _gather_fake),
    ("patch_gather_tokens", _gather_tokens, _gather_tokens_fake),
    ("patch_restore_tokens", _restore_tokens, _restore_tokens_fake),
    ("patch_sum_removed", _sum_removed, _sum_removed_fake),
    ("patch_loss", _loss, _loss_fake),
    ("patch_scale_", _scale, lambda x, by: None),
):
    LIBRARY.impl(_name, _fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastssl::{_name}", _fake, lib=LIBRARY)

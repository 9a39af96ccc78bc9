"""From images to visible patches in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._autograd import applied
from fastssl._checks import FLOATING
from fastssl._library import raw
from fastssl.ops.patch import reference, schema
from fastssl.ops.patch.checks import (
    checked_images,
    checked_normalization,
    checked_plan,
)
from fastssl.ops.patch.layout import ORDERS, checked_order, checked_patch, grid_of, unpatchify
from fastssl.ops.patch.plan import MaskPlan
from fastssl.ops.patch.tokens import restored


def gather_patches(
    images: Tensor,
    plan: MaskPlan,
    patch_size: int | Sequence[int],
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    order: str = "cpq",
    *,
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> Tensor:
    """The kept patches of a batch, normalised, ready for the product that embeds them.

    Removed patches are not read. With "cpq", `gather_patches(x, plan, p) @ w.flatten(1).T` is what
    a convolution with weights `w`, kernel and stride p, gives at the kept places.

    Args:
        images: [B, C, *space], one to three axes of space, any strides: uint8, of which a level
            counts as its 255th part, or floating-point.
        plan: which patches to keep; B and L those of the images.
        patch_size: one number, or one for each axis of space.
        mean: subtracted, a number for each channel or for all, in units of [0, 1]; None for 0.
        std: divided by; None for 1.
        order: of the numbers in a patch, "cpq" or "pqc"; see `patchify`.
        dtype: of the result; None for float32 from uint8, and for the images' own otherwise.
        impl: "auto", or one of "reference", "cpu", "cuda" by name.

    Returns:
        [B, K, P], contiguous, row k of sample b for patch `plan.ids_keep[b, k]`; zeros from
        keep_lengths[b] on where the plan has them. Differentiable with respect to floating-point
        images.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    patch = checked_patch(images, patch_size)
    checked_images(images)
    index = ORDERS.index(checked_order(order))
    parts = checked_plan(plan, "images", images, grid=grid_of(images, patch))
    mean, std = checked_normalization(mean, std, images.shape[1])
    if dtype is None:
        dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    elif dtype not in FLOATING:
        raise TypeError(f"dtype: got {dtype}, must be float16, bfloat16, float32 or float64")
    _dispatch.choose("patch", impl, images.device)
    if impl == "reference":
        return reference.gather_patches(images, plan, patch, mean, std, order, dtype)
    return _gather(images, *parts, patch, mean, std, index, schema.DTYPES.index(dtype))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(images, shuffle, restore, lengths, keep, patch, mean, std, order, dtype):
        return raw("patch_gather")(
            images, shuffle, restore, lengths, keep, patch, mean, std, order, dtype
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        images, *ctx.ids, ctx.keep, ctx.patch, _, ctx.std, ctx.order, _ = inputs
        ctx.grid, ctx.dtype = grid_of(images, ctx.patch), images.dtype

    @staticmethod
    def backward(ctx, grad):
        plan = (*ctx.ids, ctx.keep)
        patches = restored(grad, None, None, *plan, 0, schema.DTYPES.index(grad.dtype))
        images = unpatchify(patches, ctx.patch, ctx.grid, ORDERS[ctx.order])
        channels = zip(images.split(1, 1), ctx.std, strict=True)  # by numbers: nothing is copied
        return torch.cat([x / std for x, std in channels], 1).to(ctx.dtype), *[None] * 9


_gather = applied(_Gather)

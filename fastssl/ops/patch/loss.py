"""The reconstruction loss of masked image modelling, without its target."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._autograd import applied
from fastssl._checks import checked_bool, checked_floating
from fastssl._library import raw
from fastssl.ops.patch import reference
from fastssl.ops.patch.checks import (
    checked_images,
    checked_normalization,
    checked_plan,
)
from fastssl.ops.patch.layout import ORDERS, checked_order, checked_patch, grid_of
from fastssl.ops.patch.plan import MaskPlan
from fastssl.ops.patch.schema import KINDS, STATISTICS, plan_of


def masked_patch_loss(
    images: Tensor,
    pred: Tensor,
    plan: MaskPlan,
    patch_size: int | Sequence[int],
    norm_pix: bool = True,
    kind: str = "mse",
    statistics: str = "patch",
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    *,
    order: str = "pqc",
    impl: str = "auto",
) -> Tensor:
    """Mean reconstruction loss over the removed patches of a batch; gradient in the same pass.

    The target is `patchify((images - mean) / std)`, with `norm_pix` each patch made zero-mean and
    of variance one. It is never stored, and nothing is read of kept patches. The gradient is
    computed along with the loss and kept until `backward`. With uint8 images the statistics of a
    patch come from exact sums of whole numbers.

    Args:
        images: [B, C, *space], one to three axes of space, any strides: uint8, of which a level
            counts as its 255th part, or floating-point. Where they require a gradient, the
            reference computes the loss, and "cpu" or "cuda" are refused.
        pred: of all patches, [B, L, P] in raster order; or of the removed ones alone,
            [B, L - K, P] in the order of `plan.ids_removed` (where K is 0, which is both, raster
            order counts). float16, bfloat16, float32 or float64.
        plan: which patches were removed.
        patch_size: one number, or one for each axis of space.
        norm_pix: normalise the pixels of each patch.
        kind: "mse"; "l1"; "smooth_l1" (beta 1); each a mean over the P numbers of a patch; or
            "cosine", 1 - cosine of prediction and target.
        statistics: of a patch's normalisation. "patch": over all channels together,
            (x - mean) / sqrt(var + 1e-6), as MAE (He et al. 2022) has it; "patch_channel": for each
            channel, (x - mean) / (sqrt(var) + 1e-6), as VideoMAE (Tong et al. 2022). Both with the
            unbiased variance.
        mean: subtracted from the images, a number for each channel or for all, in units of [0, 1];
            None for 0.
        std: divided by; None for 1.
        order: of the numbers in a patch, "pqc" as MAE, or "cpq"; see `patchify`.
        impl: "auto", or one of "reference", "cpu", "cuda" by name.

    Returns:
        0-d, float64 for float64 predictions and float32 otherwise. 0 where no patch is removed (a
        mean over nothing, NaN, elsewhere). Sums are made in a fixed order: the same bits from call
        to call and for any number of threads. The second derivative goes through the reference,
        and so do float16 predictions with "cosine" that require a gradient. torch.func.grad works,
        vmap and jvp do not.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    patch = checked_patch(images, patch_size)
    checked_images(images)
    checked_floating("pred", pred, 3, "[B, L, P] or [B, L - K, P]")
    parts = checked_plan(plan, "images", images, grid=grid_of(images, patch))
    width, removed = images.shape[1] * math.prod(patch), plan.length - plan.keep
    if pred.shape[0] != images.shape[0] or pred.device != images.device:
        got = f"B = {pred.shape[0]} on {pred.device}"
        raise ValueError(f"pred: got {got}, images have {images.shape[0]} on {images.device}")
    if pred.shape[2] != width:
        raise ValueError(f"pred: got width {pred.shape[2]}, must be P = {width}")
    if pred.shape[1] != plan.length and (plan.keep_lengths is not None or pred.shape[1] != removed):
        masked_only = "" if plan.keep_lengths is not None else f" or L - K = {removed}"
        raise ValueError(
            f"pred: got {pred.shape[1]} patches, must be L = {plan.length}{masked_only}"
        )
    for name, value, known in (("kind", kind, KINDS), ("statistics", statistics, STATISTICS)):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, must be one of {', '.join(known)}")
    checked_bool("norm_pix", norm_pix)
    sample = width if statistics == "patch" else math.prod(patch)
    if norm_pix and sample < 2:
        raise ValueError("patch_size: norm_pix needs at least two numbers to take a variance of")
    mean, std = checked_normalization(mean, std, images.shape[1])
    index = ORDERS.index(checked_order(order))
    _dispatch.choose("patch", impl, images.device)
    how = (patch, norm_pix, kind, statistics, mean, std, order)
    of_images, of_pred = (x.requires_grad and torch.is_grad_enabled() for x in (images, pred))
    if of_images and impl not in ("auto", "reference"):
        raise ValueError(f"images: requires a gradient, impl={impl!r} has none; detach it")
    # A cosine's gradient has no size that is known beforehand: see `_scale`.
    unsized = of_pred and kind == "cosine" and pred.dtype == torch.float16
    if impl == "reference" or of_images or unsized:
        return reference.masked_patch_loss(images, pred, plan, *how)
    numbers = (norm_pix, KINDS.index(kind), STATISTICS.index(statistics), index)
    options = (patch, mean, std, *numbers)
    if not of_pred:
        return raw("patch_loss")(images, pred, *parts, *options, 0.0)[0]
    return _loss(pred, images, *parts, *options, _scale(pred, removed))[0]


def _scale(pred: Tensor, removed: int) -> float:
    """What the loss is multiplied by before its gradient is made.

    Elements of the gradient of a mean are too small for float16, where a loss is scaled for that
    reason. The power of two brings them near 1 / 64; it leaves when the upstream gradient comes.
    """
    if pred.dtype != torch.float16:
        return 1.0
    numbers = pred.shape[0] * max(removed, 1) * pred.shape[2]
    return 2.0 ** (math.floor(math.log2(max(numbers, 1))) - 6)


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(pred, images, *options):
        return raw("patch_loss")(images, pred, *options)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pred, *ctx.data, ctx.keep = inputs[:6]
        ctx.options = inputs[6:]
        _, gradient = output
        ctx.mark_non_differentiable(gradient)
        ctx.set_materialize_grads(False)  # or backward gets zeros as large as the gradient
        ctx.traced = torch.compiler.is_compiling()
        if ctx.traced:
            ctx.save_for_backward(pred, gradient)
        else:
            # Images and plan beside the graph: a buffer of pixels may be filled anew before the
            # backward, which seldom needs them, and either may come from inference mode.
            ctx.gradient, ctx.version = gradient, _version(ctx.data[0])
            ctx.save_for_backward(pred)

    @staticmethod
    def backward(ctx, upstream, _):
        pred, *kept = ctx.saved_tensors
        nothing = [None] * 13
        if upstream is None:
            return None, *nothing
        scale = ctx.options[-1]
        by = upstream if scale == 1 else upstream / scale
        if ctx.traced:
            (gradient,) = kept
            return (gradient.to(by.dtype) * by).to(gradient.dtype), *nothing
        if torch.is_grad_enabled():
            return _reference_gradient(ctx, pred, upstream), *nothing
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # used up by an earlier backward, which scaled it in place
            _check_version(ctx)
            arguments = (ctx.data[0], pred, *ctx.data[1:], ctx.keep, *ctx.options)
            gradient = raw("patch_loss")(*arguments)[1]
        raw("patch_scale_")(gradient, by)
        return gradient, *nothing


def _version(images: Tensor) -> int | None:
    """How often the images were changed; None where torch does not count."""
    functional = torch._C._are_functorch_transforms_active()
    return None if functional or images.is_inference() else images._version


def _check_version(ctx) -> None:
    if ctx.version != _version(ctx.data[0]):
        raise RuntimeError("images: were changed in place, and this backward needs them")


def _reference_gradient(ctx, pred: Tensor, upstream: Tensor) -> Tensor:
    """The gradient as a differentiable function of prediction and upstream."""
    _check_version(ctx)
    images, shuffle, restore, lengths = ctx.data
    patch, mean, std, norm_pix, kind, statistics, order, _ = ctx.options
    plan = plan_of(shuffle, restore, lengths, ctx.keep)
    names = (KINDS[kind], STATISTICS[statistics])
    loss = reference.masked_patch_loss(
        images, pred, plan, patch, norm_pix, *names, mean, std, ORDERS[order]
    )
    return torch.autograd.grad(loss, pred, upstream, create_graph=True)[0]


_loss = applied(_Loss)

"""Visible tokens out of all tokens, and all tokens out of visible ones: a decoder's input.

A plan is a permutation, so the gradient of a gather is a gather: nothing is scattered or added up
in an order that could vary. What backward needs of a plan is kept beside the graph, since a plan
may come from inference mode.
"""

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._autograd import applied
from fastssl._checks import checked_floating
from fastssl._library import raw
from fastssl.ops.patch import reference, schema
from fastssl.ops.patch.checks import (
    checked_plan,
    checked_positions,
    checked_prefix,
)
from fastssl.ops.patch.plan import MaskPlan


def gather_tokens(
    x: Tensor,
    plan: MaskPlan,
    pos_embed: Tensor | None = None,
    *,
    prefix: int = 0,
    impl: str = "auto",
) -> Tensor:
    """The kept tokens, with positions added: what MAE's `random_masking` hands to its encoder.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022.

    Args:
        x: tokens [B, prefix + L, D], any strides; float16, bfloat16, float32 or float64.
        plan: which of the L tokens to keep.
        pos_embed: added to the tokens, [prefix + L, D] or [1, prefix + L, D].
        prefix: class tokens in front, which are always kept.
        impl: "auto", or one of "reference", "cpu", "cuda" by name.

    Returns:
        [B, prefix + K, D], tokens in the order of `plan.ids_keep`, in the type that x + pos_embed
        has. Rows beyond keep_lengths are zeros. Differentiable.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    prefix = checked_prefix(prefix)
    checked_floating("x", x, 3, "[B, prefix + L, D]")
    parts = checked_plan(plan, "x", x, x.shape[1] - prefix)
    pos_embed = checked_positions(pos_embed, x.shape[1], x)
    _dispatch.choose("patch", impl, x.device)
    if impl == "reference":
        return reference.gather_tokens(x, plan, pos_embed, prefix)
    if pos_embed is not None:
        dtype = torch.promote_types(x.dtype, pos_embed.dtype)
        x, pos_embed = x.to(dtype), pos_embed.to(schema.compute_dtype(dtype)).contiguous()
    return gathered(x, pos_embed, *parts, prefix)


def restore_tokens(
    visible: Tensor,
    plan: MaskPlan,
    mask_token: Tensor,
    pos_embed: Tensor | None = None,
    *,
    prefix: int = 0,
    impl: str = "auto",
) -> Tensor:
    """Every token at its place: visible ones, the mask token elsewhere, positions added.

    The input of MAE's decoder (He et al. 2022) in one pass.

    Args:
        visible: tokens [B, prefix + K, D] in the order of `plan.ids_keep`, any strides; float16,
            bfloat16, float32 or float64.
        plan: the plan they were gathered with.
        mask_token: D elements, stands for each removed token.
        pos_embed: added to all tokens, [prefix + L, D] or [1, prefix + L, D].
        prefix: class tokens in front, which stay there.
        impl: "auto", or one of "reference", "cpu", "cuda" by name.

    Returns:
        [B, prefix + L, D], in the type that visible + mask_token + pos_embed has. Differentiable;
        all sums are made in a fixed order.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    prefix = checked_prefix(prefix)
    checked_floating("visible", visible, 3, "[B, prefix + K, D]")
    parts = checked_plan(plan, "visible", visible)
    if visible.shape[1] != prefix + plan.keep:
        got = f"{visible.shape[1]} tokens, must be prefix + K = {prefix} + {plan.keep}"
        raise ValueError(f"visible: got {got}")
    if not isinstance(mask_token, Tensor) or mask_token.numel() != visible.shape[2]:
        got = tuple(mask_token.shape) if isinstance(mask_token, Tensor) else type(mask_token)
        raise ValueError(f"mask_token: got {got}, must be a tensor of D = {visible.shape[2]}")
    token = checked_floating("mask_token", mask_token.reshape(-1), 1, "[D]")
    if token.device != visible.device:
        raise ValueError(f"mask_token: got device {token.device}, must be {visible.device}")
    pos_embed = checked_positions(pos_embed, prefix + plan.length, visible)
    _dispatch.choose("patch", impl, visible.device)
    if impl == "reference":
        return reference.restore_tokens(visible, plan, token, pos_embed, prefix)
    dtype = torch.promote_types(visible.dtype, token.dtype)
    dtype = dtype if pos_embed is None else torch.promote_types(dtype, pos_embed.dtype)
    compute = schema.compute_dtype(dtype)
    visible = visible.double() if compute == torch.float64 else visible
    pos_embed = None if pos_embed is None else pos_embed.to(compute).contiguous()
    token = token.to(compute).contiguous()
    return restored(visible, token, pos_embed, *parts, prefix, schema.DTYPES.index(dtype))


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(x, pos, shuffle, restore, lengths, keep, prefix):
        return raw("patch_gather_tokens")(x, pos, shuffle, restore, lengths, keep, prefix)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.pos, *ctx.ids, ctx.keep, ctx.prefix = inputs
        ctx.pos = None if ctx.pos is None else ctx.pos.dtype

    @staticmethod
    def backward(ctx, grad):
        plan = (*ctx.ids, ctx.keep)
        dtype = schema.DTYPES.index(grad.dtype)
        tokens = restored(grad, None, None, *plan, ctx.prefix, dtype)
        positions = tokens.sum(0, dtype=ctx.pos) if ctx.needs_input_grad[1] else None
        return tokens if ctx.needs_input_grad[0] else None, positions, *[None] * 5


class _RestoreTokens(torch.autograd.Function):
    @staticmethod
    def forward(visible, token, pos, shuffle, restore, lengths, keep, prefix, dtype):
        return raw("patch_restore_tokens")(
            visible, token, pos, shuffle, restore, lengths, keep, prefix, dtype
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        visible, _, ctx.pos, *ctx.ids, ctx.keep, ctx.prefix, _ = inputs
        ctx.visible, ctx.pos = visible.dtype, None if ctx.pos is None else ctx.pos.dtype

    @staticmethod
    def backward(ctx, grad):
        plan = (*ctx.ids, ctx.keep, ctx.prefix)
        visible = token = positions = None
        if ctx.needs_input_grad[0]:
            visible = gathered(grad, None, *plan).to(ctx.visible)
        if ctx.needs_input_grad[1]:
            token = _sum_removed(grad, *plan)
        if ctx.needs_input_grad[2]:
            positions = grad.sum(0, dtype=ctx.pos)
        return visible, token, positions, *[None] * 6


class _SumRemoved(torch.autograd.Function):
    @staticmethod
    def forward(x, shuffle, restore, lengths, keep, prefix):
        return raw("patch_sum_removed")(x, shuffle, restore, lengths, keep, prefix)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.ids, ctx.keep, ctx.prefix = inputs
        ctx.shape, ctx.dtype = (x.shape[0], ctx.prefix + ctx.keep, x.shape[2]), x.dtype

    @staticmethod
    def backward(ctx, grad):
        zeros = grad.new_zeros(ctx.shape)
        dtype = schema.DTYPES.index(ctx.dtype)
        plan = (*ctx.ids, ctx.keep)
        return restored(zeros, grad, None, *plan, ctx.prefix, dtype), *[None] * 5


gathered = applied(_GatherTokens)
restored = applied(_RestoreTokens)
_sum_removed = applied(_SumRemoved)

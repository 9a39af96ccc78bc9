"""What the functions on patches ask of their arguments; each check raises with the name."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl._checks import FLOATING, checked_floating, checked_integer
from fastssl.ops.patch.plan import MaskPlan


def checked_images(images: Tensor) -> None:
    """uint8 or floating-point with at least one channel; `checked_patch` has seen the shape."""
    if images.dtype != torch.uint8 and images.dtype not in FLOATING:
        raise TypeError(f"images: got dtype {images.dtype}, must be uint8 or floating-point")
    if images.shape[1] == 0:
        raise ValueError(f"images: got shape {tuple(images.shape)}, must have channels")


def checked_plan(plan, name: str, x: Tensor, length: int | None = None, grid=None) -> tuple:
    """(shuffle, restore, lengths, keep), what raw operators take of a plan.

    Args:
        plan: of the mask.
        name: of the tensor that must fit it.
        x: that tensor, [B, ...].
        length: its patches; None where that is checked otherwise.
        grid: patches along each axis, where those are known.
    """
    if not isinstance(plan, MaskPlan):
        raise TypeError(f"plan: got {type(plan).__name__}, must be a MaskPlan")
    if len(plan) != x.shape[0]:
        raise ValueError(f"plan: got a plan of B = {len(plan)}, {name} has B = {x.shape[0]}")
    length = length if grid is None else math.prod(grid)
    if length is not None and plan.length != length:
        raise ValueError(f"plan: got a plan of L = {plan.length}, {name} has {length} patches")
    if grid is not None and len(plan.grid) > 1 and plan.grid != grid:
        raise ValueError(f"plan: got a plan of grid {plan.grid}, {name} has grid {grid}")
    if plan.device != x.device:
        raise ValueError(f"plan: got device {plan.device}, must be that of {name}, {x.device}")
    tensors = plan.ids_shuffle, plan.ids_restore, plan.keep_lengths
    shuffle, restore, lengths = (t if t is None else t.contiguous() for t in tensors)
    return shuffle, restore, lengths, plan.keep


def checked_prefix(prefix) -> int:
    """The number of class tokens itself."""
    return checked_integer("prefix", prefix, 0)


def checked_positions(pos_embed, rows: int, like: Tensor) -> Tensor | None:
    """[rows, D] of the same device; None for None."""
    if pos_embed is None:
        return None
    if isinstance(pos_embed, Tensor) and pos_embed.dim() == 3 and pos_embed.shape[0] == 1:
        pos_embed = pos_embed[0]
    wanted = (rows, like.shape[-1])
    checked_floating("pos_embed", pos_embed, 2, f"{list(wanted)}")
    if pos_embed.shape != wanted:
        raise ValueError(f"pos_embed: got shape {tuple(pos_embed.shape)}, must be {wanted}")
    if pos_embed.device != like.device:
        raise ValueError(f"pos_embed: got device {pos_embed.device}, must be {like.device}")
    return pos_embed


def checked_normalization(mean, std, channels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel as numbers; 0 and 1 for None."""
    found = []
    for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
        if values is None:
            values = (default,) * channels
        elif isinstance(values, (int, float)):
            values = (values,) * channels
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise TypeError(f"{name}: got {type(values).__name__}, must be a list of numbers")
        if len(values) != channels:
            raise ValueError(f"{name}: got {len(values)} numbers, images has {channels} channels")
        found.append([float(value) for value in values])
    if not all(abs(value) > 0 for value in found[1]):
        raise ValueError(f"std: got {found[1]}, must not be 0 or NaN")
    return found[0], found[1]

"""The crops and flips alone, for masks and label maps."""

import torch
from torch import Tensor

from fastssl.ops.augment.params import AugmentParams
from fastssl.ops.augment.recipe import checked_settings


def apply_geometry(mask, params: AugmentParams, *, size) -> list[Tensor]:
    """Masks or label maps cropped, resized to the nearest pixel, and flipped as the images were.

    Pixel o of a view's side is pixel floor((o + 1/2) * crop / size) of the crop's: no value is made
    that was not there. Plain PyTorch.

    Args:
        mask: [B, H, W] or [B, C, H, W] of any dtype; or a list of B masks of different sizes, each
            [H, W] or [C, H, W].
        params: [views, B], on the masks' device.
        size: of the views: one number or (height, width), or a list with one per view.

    Returns:
        One tensor [B, height, width] or [B, C, height, width] per view, in the masks' dtype.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a shape, device or parameter is not acceptable.
    """
    if not isinstance(params, AugmentParams):
        raise TypeError(f"params: got {type(params).__name__}, must be AugmentParams")
    if isinstance(mask, (list, tuple)):
        if not mask or not all(isinstance(m, Tensor) for m in mask):
            raise TypeError("mask: must be a tensor, or a list of at least one tensor")
        if len(mask) != len(params):
            raise ValueError(f"mask: got {len(mask)} masks, must be {len(params)}, as in params")
        singles = [apply_geometry(m[None], params[i], size=size) for i, m in enumerate(mask)]
        return [torch.cat(views) for views in zip(*singles, strict=True)]
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask: got {type(mask).__name__}, must be a tensor or a list of tensors")
    if mask.dim() not in (3, 4) or 0 in mask.shape:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, must be [B, H, W] or [B, C, H, W]")
    params.check(params.views, mask.shape[0], mask.shape[-2:], mask.device)
    sizes = size if isinstance(size, list) else [size] * params.views
    if len(sizes) != params.views:
        raise ValueError(f"size: got {len(sizes)} values, must be {params.views}, one per view")
    channels = mask if mask.dim() == 4 else mask.unsqueeze(1)
    views = []
    for v, one in enumerate(sizes):
        height, width = checked_settings(one, "bilinear", True, False, None, 128)
        rows = _nearest(params.top[v], params.height[v], height, mask.shape[-2])
        columns = _nearest(params.left[v], params.width[v], width, mask.shape[-1])
        columns = torch.where(params.flip[v, :, None], columns.flip(1), columns)
        image = torch.arange(mask.shape[0], device=mask.device)[:, None, None]
        view = channels.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]]
        view = view.movedim(-1, 1).contiguous()
        views.append(view if mask.dim() == 4 else view.squeeze(1))
    return views


def _nearest(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """[B, size] indices; never outside, even with parameters that are (a GPU's go unchecked)."""
    o = torch.arange(size, device=start.device)
    found = start[:, None].long() + (2 * o + 1) * length[:, None].long() // (2 * size)
    return found.clamp(0, side - 1)

"""Crop, resize and flip as two products with dense weights, one matrix for each image and side.

The weights are those of torch.nn.functional.interpolate in float32 (ATen's UpSample.h), coordinates
rounded as there; or Pillow's (Resample.c): float64, then 22-bit integers, levels after each side.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

PORTION = 1 << 26  # numbers of the source at a time: 256 MiB of float32
BITS = 22  # of Pillow's weights


def portions(images: Tensor, shapes: Tensor | None, channels: int) -> Iterator[tuple]:
    """(index into the batch, images [b, C, H, W]) of equal sizes; packed images come one by one."""
    if shapes is None:
        few = max(1, PORTION // images[0].numel())
        for b in range(0, len(images), few):
            yield slice(b, b + few), images[b : b + few]
    else:
        for b, (offset, height, width) in enumerate(shapes.tolist()):
            image = images[offset : offset + channels * height * width]
            yield slice(b, b + 1), image.view(1, channels, height, width)


def quantized(x: Tensor, floats: bool) -> Tensor:
    """Levels 0 to 255 or numbers from 0 to 1, as torchvision's `to_dtype` converts the two."""
    if x.dtype == torch.uint8:
        return x.float() * (1.0 / 255) if floats else x.float()
    return x if floats else (x.clamp(0, 1) * 255.999).trunc()


def crop(x, geometry, flip, size, bicubic, antialias, floats, pil) -> Tensor:
    """Crops [4, B] of x [B, C, H, W], resized to (h, w), mirrored where `flip` [B, 1, 1, 1]."""
    top, left, height, width = geometry.long()
    dtype = torch.float64 if pil else torch.float32
    kind = _antialiased if antialias or pil else _interpolated
    rows = kind(top, height, x.shape[2], size[0], bicubic, dtype)  # [B, h, H]
    columns = kind(left, width, x.shape[3], size[1], bicubic, dtype)  # [B, w, W]
    columns = torch.where(flip.squeeze(-1), columns.flip(1), columns)
    if pil:
        rows_last = _pillow_rows(_pillow_columns(x.double(), columns), rows)
        rows_first = _pillow_columns(_pillow_rows(x.double(), rows), columns)
        less, narrower = height - size[0], width - size[1]
        first = (less > 0) & (less > 2 * narrower)  # Pillow 13: found by experiment, always right
        return torch.where(first.view(-1, 1, 1, 1), rows_first, rows_last).float()
    x = torch.einsum("bchw,bow->bcho", x, columns)
    x = torch.einsum("bchw,boh->bcow", x, rows)
    return x if floats else x.clamp(0, 255).round()  # half to even


def _antialiased(start, length, size_in, size_out, bicubic, dtype) -> Tensor:
    """[B, out, in]: a filter as wide as the step, cut off and normalised at the crop's border."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length.to(dtype) / size_out
    wide = scale.clamp(min=1)
    support = (2 if bicubic else 1) * wide
    o = torch.arange(size_out, dtype=dtype, device=start.device).view(-1, 1)
    center = scale * (o + 0.5)
    first = (center - support + 0.5).long().clamp(min=0)
    last = (center + support + 0.5).long().minimum(length)
    k = torch.arange(size_in, device=start.device) - start
    x = (k.to(dtype) - center + 0.5).mul(1 / wide).abs()
    weight = torch.where(x < 1, 1 - x, 0)
    if bicubic:  # Keys' kernel with a = -1/2
        near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
        weight = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    weight = torch.where((first <= k) & (k < last), weight, 0)
    return weight / weight.sum(-1, keepdim=True)


def _interpolated(start, length, size_in, size_out, bicubic, dtype) -> Tensor:
    """[B, out, in]: two or four taps around the centre, those beyond the crop on its border."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    o = torch.arange(size_out, dtype=dtype, device=start.device).view(-1, 1)
    x = length.to(dtype) / size_out * (o + 0.5) - 0.5
    x = x if bicubic else x.clamp(min=0)
    i = x.floor()
    t = x - i
    taps = {0: 1 - t, 1: t}
    if bicubic:  # Keys' kernel with a = -3/4
        taps = {-1: _far(t + 1), 0: _near(t), 1: _near(1 - t), 2: _far(2 - t)}
    k = torch.arange(size_in, device=start.device) - start
    weight = torch.zeros((), dtype=dtype, device=start.device)
    for offset, tap in taps.items():
        at = (i.long() + offset).clamp(min=0).minimum(length - 1)
        weight = weight + torch.where(k == at, tap, 0)
    return weight


def _near(x: Tensor) -> Tensor:
    return (1.25 * x - 2.25) * x * x + 1


def _far(x: Tensor) -> Tensor:
    return ((-0.75 * x + 3.75) * x - 6) * x + 3


def _pillow_columns(x: Tensor, weight: Tensor) -> Tensor:
    return _pillow_product("bchw,bow->bcho", x, weight)


def _pillow_rows(x: Tensor, weight: Tensor) -> Tensor:
    return _pillow_product("bchw,boh->bcow", x, weight)


def _pillow_product(equation: str, x: Tensor, weight: Tensor) -> Tensor:
    """Integer arithmetic; float64 holds all of it exactly."""
    weight = weight.sign() * (weight.abs() * (1 << BITS) + 0.5).floor()
    sums = torch.einsum(equation, x, weight)
    return ((sums + (1 << (BITS - 1))) / (1 << BITS)).floor().clamp(0, 255)

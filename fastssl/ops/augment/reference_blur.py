"""Gaussian blur with a sigma for each image: torchvision's, and Pillow's three box blurs."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

BITS = 24  # of Pillow's weights


def gaussian(x: Tensor, sigma: Tensor, taps: int, floats: bool) -> Tensor:
    """Images [B, C, h, w], `taps` taps in each direction, sigma [B]; borders are reflected.

    torchvision's weights, softmax(-(d / (sigma sqrt 2))^2); levels are rounded once, half to even.
    """
    d = torch.arange(taps, device=x.device) - taps // 2
    weight = torch.softmax(-((d / (math.sqrt(2) * sigma.double()[:, None])) ** 2), 1)  # [B, taps]
    weight = weight.float().T[..., None, None, None]  # [taps, B, 1, 1, 1]
    for dim in (3, 2):
        half = (taps // 2,) * 2
        half = (*half, 0, 0) if dim == 3 else (0, 0, *half)
        padded = F.pad(x, half, mode="reflect")
        x = sum(w * padded.narrow(dim, t, x.shape[dim]) for t, w in enumerate(weight))
    return x if floats else x.round()


def box(x: Tensor, sigma: Tensor) -> Tensor:
    """Images [B, C, h, w] in levels; three times along the rows, three times along the columns.

    Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering",
    2011, as Pillow has it (BoxBlur.c): float32, then 24-bit integers, levels after each pass.
    """
    radius = _radius(sigma.clamp(min=1e-3))  # what is not blurred may have any sigma
    for dim in (3, 2):
        weight = _box_weights(radius, x.shape[dim])
        equation = "bchw,bow->bcho" if dim == 3 else "bchw,boh->bcow"
        for _ in range(3):  # float64 holds all of it exactly
            sums = torch.einsum(equation, x.double(), weight)
            x = ((sums + (1 << (BITS - 1))) / (1 << BITS)).floor().float()
    return x


def _radius(sigma: Tensor) -> Tensor:
    """The box's radius for three passes; its fraction belongs to the two pixels beyond."""
    variance = sigma * sigma / 3
    length = (12.0 * variance.double() + 1.0).sqrt().float()
    whole = ((length.double() - 1.0) / 2.0).floor().float()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    return whole + part / (6 * (variance - (whole + 1) * (whole + 1)))


def _box_weights(radius: Tensor, size: int) -> Tensor:
    """[B, size, size]: the box around each pixel; what lies beyond the border counts for it."""
    radius = radius[:, None, None]
    whole = radius.long()
    near = ((1 << BITS) / (radius * 2 + 1)).long()
    far = ((1 << BITS) - (whole * 2 + 1) * near) // 2
    at = torch.arange(size, device=radius.device)
    distance = (at[:, None] - at).abs()
    weight = torch.where(distance <= whole, near, torch.where(distance == whole + 1, far, 0))
    for border, outside in ((0, at), (-1, size - 1 - at)):  # how many pixels away the border is
        outside = outside[None]
        beyond = near[..., 0] * (whole[..., 0] - outside).clamp(min=0)
        weight[..., border] += beyond + torch.where(outside <= whole[..., 0], far[..., 0], 0)
    return weight.double()

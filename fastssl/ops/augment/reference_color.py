"""Colour jitter and grayscale over a batch with factors and an order for each image.

Two families of rules: torchvision's on tensors (v2/functional/_color.py), in levels or on [0, 1],
and Pillow's (ImageEnhance.py, Blend.c, Convert.c), in levels. With one channel the image is its own
luma, and saturation and hue leave it alone, as in torchvision.
"""

import torch
from torch import Tensor

_GREEN, _BLUE = (torch.tensor(x).item() for x in (0.587, 0.114))  # rounded to float32


def jittered(x, gate, order, factors, floats: bool, pil: bool) -> Tensor:
    """Where the gate [B, 1, 1, 1] is set, four operations in the order [B, 4], factors [4, B].

    A neutral factor is the identity, and leaves no rounding behind.
    """
    operations = (brightness, contrast, saturation, pillow_hue if pil else hue)
    for slot in order.T[..., None, None, None]:
        for i, (operation, factor) in enumerate(zip(operations, factors, strict=True)):
            factor = factor.view(-1, 1, 1, 1)
            active = gate & (slot == i) & (factor != (0 if i == 3 else 1))
            if active.any():
                x = torch.where(active, operation(x, factor, floats, pil), x)
    return x


def luma(x: Tensor, floats: bool, pil: bool) -> Tensor:
    """[B, 1, h, w]; in levels rounded down, by Pillow's rule rounded to the nearest."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.split(1, 1)
    if pil:
        return ((r.long() * 19595 + g.long() * 38470 + b.long() * 7471 + 32768) >> 16).float()
    gray = fused(b, _BLUE, fused(g, _GREEN, r * 0.2989))
    return gray if floats else gray.floor()


def brightness(x: Tensor, factor: Tensor, floats: bool, pil: bool) -> Tensor:
    """All rules agree."""
    return _clipped(x * factor, floats)


def contrast(x: Tensor, factor: Tensor, floats: bool, pil: bool) -> Tensor:
    """Away from the mean luma of the image as it is at this point."""
    mean = luma(x, floats, pil).double().mean((1, 2, 3), keepdim=True)
    return _blend(x, (mean + 0.5).floor().float() if pil else mean.float(), factor, floats, pil)


def saturation(x: Tensor, factor: Tensor, floats: bool, pil: bool) -> Tensor:
    """Away from the luma of each pixel."""
    return x if x.shape[1] == 1 else _blend(x, luma(x, floats, pil), factor, floats, pil)


def hue(x: Tensor, factor: Tensor, floats: bool, pil: bool) -> Tensor:
    """A turn of the hue in float32, by the branches of colorsys."""
    if x.shape[1] == 1:
        return x
    h, s, v = _hsv(x if floats else x * (1.0 / 255))
    h = torch.remainder(torch.fmod(h * (1.0 / 6.0) + 1.0, 1.0) + factor, 1.0)
    sector = (h * 6).floor()
    f = h * 6 - sector
    p, q, t = 1.0 - s, 1.0 - s * f, s * f + (1.0 - s)
    p, q, t = ((y * v).clamp(0, 1) for y in (p, q, t))
    x = _sectors(sector, v, p, q, t)
    return x if floats else (x * 255.999).trunc()


def pillow_hue(x: Tensor, factor: Tensor, floats: bool, pil: bool) -> Tensor:
    """A turn of the hue through HSV in levels; an intermediate is float where Pillow's C has it so.

    torchvision adds to the hue the shift times 255, rounded towards zero, modulo 256.
    """
    if x.shape[1] == 1:
        return x
    h, s, v = _hsv(x, middle=torch.float64)
    h = torch.fmod(h.double() / 6.0 + 1.0, 1.0).float().double() * 255.0
    h, s = h.trunc().clamp(0, 255), (s.double() * 255.0).trunc().clamp(0, 255)
    h = torch.remainder(h + (factor.double() * 255).trunc(), 256)
    sector = (h * 6.0 / 255.0).floor()
    f = (h * 6.0 / 255.0 - sector).float().double()
    s, v = (s / 255.0).float().double(), v.double()
    p, q, t = 1.0 - s, 1.0 - (s * f).float().double(), 1.0 - s * (1.0 - f)
    p, q, t = ((v * y + 0.5).floor() for y in (p, q, t))  # half away from zero
    return torch.where(s == 0, v, _sectors(sector, v, p, q, t)).float()


def _hsv(x: Tensor, middle=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in sixths of a turn, before it is wrapped, saturation and value, each [B, 1, h, w]."""
    low, high = x.aminmax(dim=1, keepdim=True)
    flat = low == high
    s = (high - low) / torch.where(flat, 1, high)
    r, g, b = ((high - x) / torch.where(flat, 1, high - low)).to(middle).split(1, 1)
    red, green, _ = (high == x).split(1, 1)
    h = torch.where(red, b - g, torch.where(green, r + 2.0 - b, g + 4.0 - r))
    return h.float(), s, high


def _sectors(sector: Tensor, v: Tensor, p: Tensor, q: Tensor, t: Tensor) -> Tensor:
    """RGB from the six sectors of the hue."""
    sector = sector.long() % 6
    red, green, blue = (v, q, p, p, t, v), (t, v, v, q, p, p), (p, p, t, v, v, q)
    planes = (torch.stack(plane).gather(0, sector[None])[0] for plane in (red, green, blue))
    return torch.cat(tuple(planes), 1)


def _blend(x: Tensor, other: Tensor, factor: Tensor, floats: bool, pil: bool) -> Tensor:
    if pil:
        return _clipped(other + factor * (x - other), floats)
    return _clipped(fused(other, 1 - factor, x * factor), floats)


def _clipped(x: Tensor, floats: bool) -> Tensor:
    return x.clamp(0, 1) if floats else x.clamp(0, 255).trunc()


def fused(a: Tensor, b: Tensor | float, c: Tensor) -> Tensor:
    """The sum a * b + c rounded once, as torch's `add(alpha=)` has it on CPUs and on GPUs.

    It matters: on a gray image a blend is a whole number but for its rounding, and then truncated.
    A product of two float32 is exact in float64.
    """
    return (a.double() * b + c).float()

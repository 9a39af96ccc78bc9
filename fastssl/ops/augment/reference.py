"""The views in plain PyTorch, a batch at a time: the truth of the tests, and the baseline.

Between stages images are float32 [B, C, h, w]: whole levels 0 to 255 or, in "tv-float", [0, 1].
"""

import torch
from torch import Tensor

from fastssl.ops.augment import reference_blur as blurs
from fastssl.ops.augment import reference_color as colors
from fastssl.ops.augment import reference_resize as resizes


def augment(x, geometry, gates, order, factors, size, settings, floats, pil) -> Tensor:
    """One view of each image, before normalisation; what the stages are, and their order."""
    bicubic, antialias, gray_first, taps, threshold = settings
    flip, jitter, gray, blur, solarize = gates[..., None, None, None]  # each [B, 1, 1, 1]
    x = resizes.quantized(x, floats)
    x = resizes.crop(x, geometry, flip, size, bicubic, antialias, floats, pil)
    if gray_first:
        x = torch.where(gray, colors.luma(x, floats, pil), x)
    x = colors.jittered(x, jitter, order, factors[:4], floats, pil)
    if not gray_first:
        x = torch.where(gray, colors.luma(x, floats, pil), x)
    if blur.any():
        blurred = blurs.gaussian(x, factors[4], taps, floats) if taps else blurs.box(x, factors[4])
        x = torch.where(blur, blurred, x)
    top, threshold = (1.0, threshold / 255) if floats else (255.0, threshold)
    return torch.where(solarize & (x >= threshold), top - x, x)


def apply(images, shapes, geometry, gates, order, factors, settings, mean, std, semantics, out):
    """The raw operator `augment_apply`; see schema.py."""
    floats, pil = semantics == 1, semantics == 2
    for v, view in enumerate(out):
        channels, size, mine = view.shape[1], view.shape[2:], settings[5 * v : 5 * v + 5]
        for b, x in resizes.portions(images, shapes, channels):
            drawn = geometry[:, v, b], gates[:, v, b], order[v, b], factors[:, v, b]
            x = augment(x, *drawn, size, mine, floats, pil)
            if view.dtype == torch.uint8:
                view[b] = ((x.clamp(0, 1) * 255.999) if floats else x).to(torch.uint8)
            else:
                center, spread = (x.new_tensor(n).view(-1, 1, 1) for n in (mean, std))
                view[b] = ((x if floats else x / 255) - center) / spread

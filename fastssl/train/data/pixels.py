"""One image file as a square of levels, whatever its format, size and mode."""

from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


def decode(source: Path | BinaryIO, side: int) -> Tensor:
    """An image as RGB levels, uint8 [3, side, side].

    It is turned as its camera says, its shorter side is brought to `side` (bicubic, with
    antialiasing), and the middle kept. Of 16-bit levels the upper 8 bits count.

    Args:
        source: path of an image file, or a binary file that holds one.
        side: of the square.

    Raises:
        Exception: almost any, where the file is damaged, or holds other numbers than levels.
    """
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(source) as opened:
        # JPEGs are decoded no larger than needed: at least twice the size.
        opened.draft("RGB", (2 * side, 2 * side))
        image = _levels(ImageOps.exif_transpose(opened)).convert("RGB")
    image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def check_header(path: Path) -> None:
    """Reads only a file's header; one that passes may still be damaged further on.

    Raises:
        Exception: almost any, where the file is no image, or holds other numbers than levels.
    """
    from PIL import Image

    with Image.open(path) as opened:
        _refuse_numbers(opened)


def _levels(image):
    """An image of 8-bit levels; Pillow itself would cut 16-bit levels off at 255."""
    import numpy as np
    from PIL import Image

    _refuse_numbers(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


def _refuse_numbers(image) -> None:
    if image.mode in ("I", "F"):
        raise ValueError(f"numbers of mode {image.mode}, not levels")

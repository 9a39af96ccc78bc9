"""A picture of what an augmentation does."""

import torch
from torch import Tensor


def show(images, aug, *, step: int = 0, count: int = 8):
    """A grid, one row per image: the image, then its views, in levels.

    Args:
        images: as `aug` takes them.
        aug: an `Augment`, whose count of calls is left alone.
        step: which of its draws.
        count: how many images, the first ones.

    Returns:
        A Pillow image, mode RGB; all cells have the largest view's size, smaller ones lie in their
        middle.
    """
    from PIL import Image

    from fastssl.ops.augment import apply, draw
    from fastssl.ops.augment.images import PackedImages, batch

    if not isinstance(images, Tensor):
        images = images if isinstance(images, PackedImages) else list(images)
        images = [images[i] for i in range(min(count, len(images)))]
    else:
        images = images[:count]
    found = batch(images)
    params = draw(aug.recipes, images, seed=aug.seed, step=step, impl=aug.impl)
    names = ("size", "interpolation", "antialias", "gray_first", "blur_kernel")
    settings = {n: [getattr(r, n) for r in aug.recipes] for n in (*names, "solarize_threshold")}
    levels = {"dtype": torch.uint8, "mean": None, "std": None}
    views = apply(images, params, **settings, **levels, semantics=aug.semantics, impl=aug.impl)

    tall, wide = (max(view.shape[dim] for view in views) for dim in (2, 3))
    gap = 2
    width = (len(views) + 1) * (wide + gap) - gap
    picture = Image.new("RGB", (width, found.size * (tall + gap) - gap), "white")
    for b in range(found.size):
        original = _picture(
            PackedImages(found.images, found.shapes, found.channels)[b]
            if found.shapes is not None
            else found.images[b]
        )
        original.thumbnail((wide, tall))
        for column, cell in enumerate([original, *(_picture(view[b]) for view in views)]):
            x = column * (wide + gap) + (wide - cell.width) // 2
            y = b * (tall + gap) + (tall - cell.height) // 2
            picture.paste(cell, (x, y))
    return picture


def _picture(image: Tensor):
    from PIL import Image

    image = image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy())

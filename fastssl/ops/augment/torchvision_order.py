"""Parameters drawn as torchvision draws them, so that equal seeds give equal views."""

import math
from collections.abc import Sequence

import torch

from fastssl.ops.augment import images as _images
from fastssl.ops.augment.params import FACTORS, GATES, GEOMETRY, AugmentParams
from fastssl.ops.augment.recipe import Recipe


def torchvision_params(
    recipes: Sequence[Recipe], x, *, generator: torch.Generator | None = None
) -> AugmentParams:
    """What torchvision.transforms.v2 would draw, image by image and for each image view by view.

    A recipe stands for Compose([RandomResizedCrop, RandomHorizontalFlip, RandomApply([ColorJitter],
    p), RandomGrayscale, RandomApply([GaussianBlur], p), RandomSolarize]), gray before the jitter
    with `gray_first`; a stage whose probability is 0 is left out. After torch.manual_seed(s), or
    with a generator seeded by s, the draw is that of torchvision after torch.manual_seed(s). It is
    a loop in Python, for conformance; training draws with `draw`.

    Args:
        recipes: one per view.
        x: the images, as `apply` takes them; only their sizes and device matter.
        generator: a generator on the CPU; None for torch's own.

    Returns:
        Parameters on the images' device; where a stage is not applied, its factors are neutral.
    """
    batch = _images.batch(x)
    if batch.shapes is None:
        sides = [(batch.height, batch.width)] * batch.size
    else:
        sides = batch.shapes[:, 1:].tolist()
    drawn = [[_view(recipe, *side, generator) for recipe in recipes] for side in sides]
    drawn = list(zip(*drawn, strict=True))  # [views][B]

    def column(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([[image[name] for image in view] for view in drawn], dtype=dtype)

    return AugmentParams(
        **{name: column(name, torch.int32) for name in GEOMETRY},
        **{name: column(name, torch.bool) for name in GATES},
        order=column("order", torch.int8),
        **{name: column(name, torch.float32) for name in FACTORS},
    ).to(batch.images.device)


def _view(recipe: Recipe, height: int, width: int, generator) -> dict:
    def uniform(low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=generator).item()

    def happens(probability: float) -> bool:
        return probability > 0 and bool(torch.rand(1, generator=generator) < probability)

    view = dict(zip(GEOMETRY, _crop(recipe, height, width, uniform, generator), strict=True))
    view["flip"] = happens(recipe.flip)
    if recipe.gray_first:
        view["gray"] = happens(recipe.gray)
    view |= {"order": [0, 1, 2, 3], "brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}
    view["jitter"] = happens(recipe.jitter)
    if view["jitter"]:
        view["order"] = torch.randperm(4, generator=generator).tolist()
        for name in FACTORS[:4]:
            low, high = recipe.range(name)
            if not low == high == view[name]:  # a jitter that does nothing draws nothing
                view[name] = uniform(low, high)
    if not recipe.gray_first:
        view["gray"] = happens(recipe.gray)
    view["blur"] = happens(recipe.blur)
    view["sigma"] = uniform(*recipe.sigma) if view["blur"] else 1.0
    view["solarize"] = happens(recipe.solarize)
    return view


def _crop(recipe: Recipe, height: int, width: int, uniform, generator) -> tuple:
    """RandomResizedCrop.make_params, float32 where torchvision has it."""
    low, high = torch.log(torch.tensor(recipe.ratio)).tolist()
    for _ in range(10):
        area = height * width * uniform(*recipe.scale)
        ratio = torch.exp(torch.tensor(uniform(low, high))).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
            left = torch.randint(0, width - w + 1, (1,), generator=generator).item()
            return top, left, h, w
    least, most = recipe.ratio
    h, w = height, width
    if width / height < least:
        h = max(1, round(w / least))
    elif width / height > most:
        w = max(1, round(h * most))
    return (height - h) // 2, (width - w) // 2, h, w

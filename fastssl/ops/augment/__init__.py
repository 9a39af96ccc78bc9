"""Augmentation: all views of a batch of images in one call, with torchvision's definitions.

docs/augment.md has the semantics, stage by stage. `draw` makes parameters, `apply` makes views.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._library import raw
from fastssl._random import checked_ids, checked_seed, checked_step
from fastssl.ops.augment import images as _images
from fastssl.ops.augment import reference, reference_draw, schema  # noqa: F401 (registers both)
from fastssl.ops.augment.geometry import apply_geometry
from fastssl.ops.augment.images import PackedImages, pack
from fastssl.ops.augment.params import AugmentParams
from fastssl.ops.augment.recipe import Recipe
from fastssl.ops.augment.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Settings,
    normalization,
    outputs,
)
from fastssl.ops.augment.torchvision_order import torchvision_params

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AugmentParams",
    "PackedImages",
    "Recipe",
    "apply",
    "apply_geometry",
    "draw",
    "pack",
    "torchvision_params",
]

_dispatch.register("augment", cpu="cpu", cuda="cuda")


def draw(
    recipes: Sequence[Recipe],
    x,
    *,
    seed: int = 0,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    impl: str = "auto",
) -> AugmentParams:
    """The parameters of all views of a batch: a function of (seed, step, sample id, view) alone.

    An image gets the same views whatever the batch, the rank, the number of workers or the device:
    the bits are the same in every implementation. Philox4x32-10, Salmon et al., "Parallel Random
    Numbers: As Easy as 1, 2, 3", 2011.

    Args:
        recipes: one per view.
        x: the images, as `apply` takes them; only their sizes and device matter.
        seed: in [0, 2^63).
        step: in [0, 2^32), say the number of the training step or epoch; or a 0-d int64 tensor on
            the images' device, read when the draw runs, so that a CUDA graph can count.
        sample_ids: what identifies each image, int64 [B]; None for 0 to B - 1.
        impl: "auto", or one of "reference", "cpu", "cuda" by name.

    Returns:
        Parameters on the images' device.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    checked_recipes(recipes)
    batch = _images.batch(x)
    numbers = [number for recipe in recipes for number in recipe.numbers()]
    return AugmentParams.unpack(*raw_draw(batch, numbers, seed, step, sample_ids, impl))


def apply(
    x,
    params: AugmentParams,
    *,
    size,
    interpolation="bilinear",
    antialias=True,
    gray_first=False,
    blur_kernel=None,
    solarize_threshold=128,
    mean: Sequence[float] | None = IMAGENET_MEAN,
    std: Sequence[float] | None = IMAGENET_STD,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    semantics: str = "tv-uint8",
    out: Sequence[Tensor] | None = None,
    impl: str = "auto",
) -> list[Tensor]:
    """All views of a batch, with these parameters; the stateless function under `Augment`.

    Each of `size`, `interpolation`, `antialias`, `gray_first`, `blur_kernel`, `solarize_threshold`
    is one value for all views or a list with one per view; `Recipe` says what they mean. There is
    no gradient.

    Args:
        x: images, uint8 or floating-point in [0, 1], C = 1 or 3: a batch [B, C, H, W] or
            [B, H, W, C] of any strides (where both readings are possible, [B, C, H, W]);
            `PackedImages`; or a list of images of different sizes, which is packed at every call.
        params: [views, B] on the images' device. Their values are checked on the CPU only.
        size: of the view, one number or a tuple (height, width).
        interpolation: "bilinear" or "bicubic".
        antialias: Pillow's semantics always do.
        gray_first: gray before the jitter.
        blur_kernel: taps, an odd number; None for (min(height, width) // 10) | 1 or, with
            semantics "pil", Pillow's own blur.
        solarize_threshold: a level, 0 to 255.
        mean: one number per channel, in units of [0, 1]; None for 0.
        std: one number per channel; None for 1.
        dtype: of the views: float32, bfloat16 or float16, or uint8 for levels that are not
            normalised.
        memory_format: of the views, torch.contiguous_format or torch.channels_last.
        semantics: "tv-uint8", torchvision v2 on uint8 tensors; "tv-float", on float tensors; "pil",
            torchvision on Pillow images. Images of the other type are converted first as
            torchvision's `to_dtype` does it.
        out: tensors for the views to be written into, one per view.
        impl: "auto", or one of "reference", "cpu", "cuda" by name.

    Returns:
        One tensor [B, C, height, width] per view; `out` where it was given.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    if not isinstance(params, AugmentParams):
        raise TypeError(f"params: got {type(params).__name__}, must be AugmentParams")
    if not isinstance(params.top, Tensor) or params.top.dim() != 2 or not params.top.shape[0]:
        raise ValueError("params.top: must be a tensor [views, B]")
    batch = _images.batch(x)
    per_view = (size, interpolation, antialias, gray_first, blur_kernel, solarize_threshold)
    settings = Settings.of(semantics, params.views, *per_view)
    params.check(params.views, batch.size, batch.sides(), batch.images.device)
    norm = normalization(mean, std, batch.channels, dtype)
    like = (dtype, memory_format, batch.images)
    views = outputs(out, settings.sizes, batch.size, batch.channels, *like)
    return raw_apply(batch, params.packed(), settings, norm, views, impl)


def raw_draw(batch, numbers: list[float], seed: int, step, sample_ids, impl: str) -> tuple:
    """What `draw` does, in the raw operator's tensors."""
    images, size = batch.images, batch.size
    checked_seed(seed)
    counter, value = checked_step(step, images.device, "x")
    sample_ids = checked_ids(sample_ids, size, images.device)
    chosen = _dispatch.choose("augment", impl, images.device)
    function = reference_draw.draw if chosen == "reference" else raw("augment_draw")
    views = len(numbers) // reference_draw.NUMBERS
    sides = (batch.shapes, batch.height, batch.width)
    return function(sample_ids, *sides, counter, value, seed, numbers, views)


def raw_apply(batch, packed: tuple, settings: Settings, norm, views: list, impl: str) -> list:
    """What `apply` does, in the raw operator's tensors."""
    chosen = _dispatch.choose("augment", impl, batch.images.device)
    function = reference.apply if chosen == "reference" else raw("augment_apply")
    numbers, semantics = list(settings.numbers), settings.semantics
    function(batch.images, batch.shapes, *packed, numbers, *norm, semantics, views)
    return views


def checked_recipes(recipes) -> None:
    """Raise where these are not recipes, one per view."""
    if not isinstance(recipes, (tuple, list)) or not recipes:
        raise TypeError(f"recipes: got {recipes!r}, must be a list of Recipe, one per view")
    for i, recipe in enumerate(recipes):
        if not isinstance(recipe, Recipe):
            raise TypeError(f"recipes[{i}]: got {type(recipe).__name__}, must be a Recipe")
    if len(recipes) >= 1 << 16:
        raise ValueError(f"recipes: got {len(recipes)}, must be fewer than 65536")

"""What people augment with today, each in its best form with as many threads as torch has.

All are made from the same recipes as ours (fastssl.augment.Recipe), take the same uint8 images and
return the same list of normalised float32 views. They differ in what they compute:

- torchvision v2, on uint8 tensors and on Pillow images: the definitions that ours follows. Its
  parameters hold for a whole call, so that each image is a call; the images are shared among
  threads or forked processes. Views are normalised a batch at a time.
- kornia on float32 batches: parameters for each image, but one order of the jitter for a batch, and
  a crop without antialiasing.
- our reference (plain PyTorch, a batch at a time) under torch.compile: the same definitions.
"""

import functools
import importlib
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from benchmarks.measure import Missing
from fastssl.augment import Augment, Recipe
from fastssl.ops.augment import IMAGENET_MEAN, IMAGENET_STD, draw, reference


@functools.cache
def library(name: str):
    try:
        return importlib.import_module(name)
    except Exception as error:  # an installation may also be broken
        raise Missing(f"{name}: {error}") from error


def fastest(candidates: dict[str, Callable]) -> tuple[str, Callable]:
    """The quickest candidate and its name: in two calls after a first, unless that was hopeless."""

    def seconds(call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    best, least = "", math.inf
    for name, call in candidates.items():
        first = seconds(call)
        once = first if first > 4 * least else min(seconds(call), seconds(call))
        if once < least:
            best, least = name, once
    for name, call in candidates.items():
        if name != best and hasattr(call, "close"):
            call.close()
    return best, candidates[best]


def taps(recipe: Recipe) -> int:
    return recipe.blur_kernel or (min(pair(recipe.size)) // 10) | 1


def pair(size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


# torchvision


def torchvision_pipeline(recipe: Recipe, pillow: bool, resized_in_float: bool = False):
    """A view as levels, stage by stage; what has probability 0 is left out.

    On tensors torchvision resizes in integers where the processor has AVX2, else in float32, as on
    GPUs and as we do: `resized_in_float` makes it do that everywhere.
    """
    v2 = library("torchvision.transforms.v2")

    class FloatCrop(v2.RandomResizedCrop):
        def transform(self, image, params):
            return super().transform(image.float(), params).clamp(0, 255).round().byte()

    crop = FloatCrop if resized_in_float else v2.RandomResizedCrop
    mode = v2.InterpolationMode(recipe.interpolation)
    size = pair(recipe.size)
    stages = [crop(size, recipe.scale, recipe.ratio, mode, antialias=recipe.antialias)]
    if recipe.flip:
        stages.append(v2.RandomHorizontalFlip(recipe.flip))
    gray = [v2.RandomGrayscale(recipe.gray)] if recipe.gray else []
    jitter = []
    if recipe.jitter:
        strengths = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        jitter.append(v2.RandomApply([v2.ColorJitter(*strengths)], recipe.jitter))
    stages += gray + jitter if recipe.gray_first else jitter + gray
    if recipe.blur:
        blur = v2.GaussianBlur(taps(recipe), recipe.sigma)
        stages.append(v2.RandomApply([PillowBlur(recipe.sigma) if pillow else blur], recipe.blur))
    if recipe.solarize:
        stages.append(v2.RandomSolarize(recipe.solarize_threshold, recipe.solarize))
    return v2.Compose(stages) if len(stages) > 1 else stages[0]


class PillowBlur(nn.Module):
    """What recipes blur Pillow images with. torchvision's way, through a tensor, is slower."""

    def __init__(self, sigma: tuple[float, float]):
        super().__init__()
        self.sigma = sigma
        self.filter = library("PIL.ImageFilter").GaussianBlur

    def forward(self, image):
        """One image."""
        return image.filter(self.filter(torch.empty(1).uniform_(*self.sigma).item()))


class PerImage:
    """torchvision image by image, shared among "threads" or "processes".

    Each of them computes with one thread. Processes are forked, find the images in memory and write
    the views into shared memory: nothing is sent to and fro.
    """

    def __init__(self, recipes: Sequence[Recipe], images: Tensor, pillow: bool, kind: str):
        self.pipelines = [torchvision_pipeline(recipe, pillow) for recipe in recipes]
        self.images = _pillow(images) if pillow else list(images)
        count, workers = len(self.images), torch.get_num_threads()
        self.out = [torch.empty(count, 3, *pair(recipe.size)) for recipe in recipes]
        pieces = torch.linspace(0, count, 4 * workers + 1).round().int().tolist()
        self.pieces = [(a, b) for a, b in itertools.pairwise(pieces) if a < b]
        v2 = library("torchvision.transforms.v2")
        self.levels = v2.functional.pil_to_tensor if pillow else _same
        self.shift = torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 255
        self.scale = 1 / (torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255)
        if kind == "threads":
            self.pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=[1])
            self.close = self.pool.shutdown
            self.run = lambda: list(self.pool.map(self.piece, self.pieces))
        else:
            for view in self.out:
                view.share_memory_()
            context = multiprocessing.get_context("fork")
            self.pool = context.Pool(workers, initializer=_adopt, initargs=[self.piece])
            self.close = self.end
            self.run = lambda: self.pool.map(_call_adopted, self.pieces, chunksize=1)

    def piece(self, bounds: tuple[int, int]) -> None:
        """The views of the images [first, last)."""
        first, last = bounds
        for view, pipeline in zip(self.out, self.pipelines, strict=True):
            levels = torch.stack([self.levels(pipeline(x)) for x in self.images[first:last]])
            view[first:last].copy_(levels).sub_(self.shift).mul_(self.scale)

    def end(self) -> None:
        """Leave no process behind."""
        self.pool.terminate()
        self.pool.join()

    def __call__(self) -> list[Tensor]:
        """All views of all images."""
        self.run()
        return self.out


def _same(view: Tensor) -> Tensor:
    return view


def _adopt(work: Callable) -> None:
    global _work
    _work = work
    torch.set_num_threads(1)
    torch.manual_seed(os.getpid())


def _call_adopted(piece) -> None:
    _work(piece)


def _pillow(images: Tensor) -> list:
    image = library("PIL.Image")
    return [image.fromarray(x.permute(1, 2, 0).contiguous().numpy()) for x in images]


def torchvision(recipes: Sequence[Recipe], images: Tensor, pillow: bool):
    """(how, call): torchvision with threads or with processes, whichever is faster here."""
    library("torchvision")
    kinds = ("threads", "processes") if hasattr(os, "fork") else ("threads",)
    return fastest({kind: PerImage(recipes, images, pillow, kind) for kind in kinds})


def torchvision_levels(aug: Augment, images: Tensor, pillow: bool, seed: int) -> list[Tensor]:
    """The levels that torchvision makes after this seed, image by image as `generator=` draws."""
    v2 = library("torchvision.transforms.v2")
    pipelines = [torchvision_pipeline(recipe, pillow, not pillow) for recipe in aug.recipes]
    torch.manual_seed(seed)
    made = [[p(x) for p in pipelines] for x in (_pillow(images) if pillow else images)]
    if pillow:
        made = [[v2.functional.pil_to_tensor(view) for view in views] for views in made]
    return [torch.stack(views) for views in zip(*made, strict=True)]


# kornia


def kornia_pipeline(recipe: Recipe, cropping_mode: str) -> nn.Module:
    k = library("kornia.augmentation")
    mode = recipe.interpolation.upper()
    size = pair(recipe.size)
    crop = k.RandomResizedCrop(
        size, recipe.scale, recipe.ratio, mode, cropping_mode=cropping_mode, align_corners=False
    )
    stages = [crop, k.RandomHorizontalFlip(p=recipe.flip)]
    gray = [k.RandomGrayscale(p=recipe.gray)] if recipe.gray else []
    jitter = []
    if recipe.jitter:
        strengths = (recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        jitter.append(k.ColorJitter(*strengths, p=recipe.jitter))
    stages += gray + jitter if recipe.gray_first else jitter + gray
    if recipe.blur:
        stages.append(k.RandomGaussianBlur((taps(recipe),) * 2, recipe.sigma, p=recipe.blur))
    if recipe.solarize:
        threshold = (recipe.solarize_threshold / 255,) * 2
        stages.append(k.RandomSolarize(threshold, (0.0, 0.0), p=recipe.solarize))
    return nn.Sequential(*stages, k.Normalize(IMAGENET_MEAN, IMAGENET_STD))


def _kornia(recipes: Sequence[Recipe], images: Tensor, cropping_mode: str, portion: int):
    pipelines = [kornia_pipeline(recipe, cropping_mode) for recipe in recipes]

    @torch.inference_mode()
    def call() -> list[Tensor]:
        made: list[list[Tensor]] = [[] for _ in pipelines]
        for part in images.split(portion):
            part = part.float().div_(255)
            for views, pipeline in zip(made, pipelines, strict=True):
                views.append(pipeline(part))
        return [torch.cat(views) if len(views) > 1 else views[0] for views in made]

    return call


def kornia(recipes: Sequence[Recipe], images: Tensor):
    """(how, call): kornia with the way to crop and the batch that are fastest here."""
    library("kornia.augmentation")
    count = len(images)
    portions = sorted({count, min(count, max(8, count // 8))})
    return fastest(
        {
            f"{mode}, batches of {portion}": _kornia(recipes, images, mode, portion)
            for mode in ("resample", "slice")
            for portion in portions
        }
    )


# our reference


def compiled(aug: Augment, images: Tensor):
    """(how, call): our reference under torch.compile, with parameters drawn as ours are."""
    sizes = [pair(recipe.size) for recipe in aug.recipes]
    settings = [
        (r.interpolation == "bicubic", r.antialias, r.gray_first, taps(r), r.solarize_threshold)
        for r in aug.recipes
    ]
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    steps = itertools.count()

    @torch.compile(dynamic=False)
    def view(size, settings, geometry, gates, order, factors):
        drawn = (geometry, gates, order, factors)
        levels = reference.augment(images, *drawn, size, settings, floats=False, pil=False)
        return (levels / 255 - mean) / std

    def call() -> list[Tensor]:
        params = draw(aug.recipes, images, step=next(steps))
        geometry, gates, order, factors = params.packed()
        drawn = zip(geometry.unbind(1), gates.unbind(1), order, factors.unbind(1), strict=True)
        return [view(*fixed, *one) for *fixed, one in zip(sizes, settings, drawn, strict=True)]

    return "torch.compile", call

"""All views of a batch of uint8 images on the CPU: fastssl against what people use today.

Whole recipes beside the peers of augment_peers.py; then, ours alone, each operation beside a bare
crop, and the recipe with one operation less. The figure is views a second; what a peer computes
otherwise is said there.
"""

import dataclasses
import functools
import time

import pytest
import torch

from benchmarks import augment_peers, measure
from fastssl import augment
from fastssl.augment import Recipe

#: (views, side of the source, images in a batch)
CASES = {
    "SimCLR, 2 x 32": (functools.partial(augment.SimCLR, 32, blur=False), 32, 512),
    "SimCLR, 2 x 224": (augment.SimCLR, 256, 64),
    "DINO, 2 x 224 + 8 x 96": (augment.DINO, 256, 16),
}
SMALL, LARGE, MULTI_CROP = CASES
SINGLE = {
    "flip": {"flip": 1.0},
    "brightness": {"jitter": 1.0, "brightness": 0.8},
    "contrast": {"jitter": 1.0, "contrast": 0.8},
    "saturation": {"jitter": 1.0, "saturation": 0.8},
    "hue": {"jitter": 1.0, "hue": 0.2},
    "jitter": {"jitter": 1.0, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2},
    "gray": {"gray": 1.0},
    "blur": {"blur": 1.0},
    "solarize": {"solarize": 1.0},
}
SEED = 1


@functools.cache
def images(count: int, side: int) -> torch.Tensor:
    """Smooth colours, edges and noise, over all levels."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 7, 7, generator=g)
    x = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    x += 0.4 * (torch.nn.functional.interpolate(coarse.roll(3, 2), (side, side)) > 0.6)
    x += 0.05 * torch.randn(x.shape, generator=g)
    return x.clamp_(0, 1).mul_(255).round_().byte()


def copied_bytes_per_second() -> float:
    """Of memory read and written by torch's own copy of what no cache holds."""
    source = torch.ones(1 << 26)
    target = torch.ones_like(source)
    best = min(_timed(lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.nbytes / best


def _timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def assert_levels(ours, theirs, differing: float = 1e-3, beyond_one: float = 1e-5) -> float:
    """The part of all levels that differs; raises where it, or the part off by more than 1, is too
    large. An early difference of 1 may be stretched by a contrast.
    """
    pairs = zip(ours, theirs, strict=True)
    distance = torch.cat([(a.int() - b.int()).abs().flatten() for a, b in pairs])
    found, beyond = ((distance > n).double().mean().item() for n in (0, 1))
    if found > differing or beyond > beyond_one:
        raise AssertionError(f"{found:.4%} of all levels differ, {beyond:.4%} by more than 1")
    return found


def levels_of(recipes, **options) -> augment.Augment:
    return augment.Augment(recipes, dtype=torch.uint8, mean=None, std=None, **options)


def ours(recipes, x, dtype):
    """Our module, once its levels were found to be the reference's and its views those levels."""
    aug = augment.Augment(recipes, dtype=dtype)
    few = x[:4]
    views, params = aug(few, return_params=True)
    levels = levels_of(recipes)(few, params=params)
    parity = assert_levels(levels, levels_of(recipes, impl="reference")(few, params=params))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (aug.mean, aug.std))
    if dtype != torch.uint8:
        wanted = [(level / 255 - mean) / std for level in levels]
        measure.assert_parity(views, wanted, dtype)
    return aug, parity


def provider(name, aug, x):
    """(how, call, the part of levels that differs from ours)."""
    recipes = aug.recipes
    try:
        if name == "kornia":
            return *augment_peers.kornia(recipes, x), None  # other definitions
        if name == "reference, compiled":
            how, call = augment_peers.compiled(aug, x)
            return how, call, 0.0  # what ours is compared with
        pillow = name == "torchvision, Pillow"
        few = x[:8]
        theirs = augment_peers.torchvision_levels(aug, few, pillow, SEED)
        mine = levels_of(recipes, semantics="pil" if pillow else "tv-uint8")
        generator = torch.Generator().manual_seed(SEED)
        allowed = (1.0, 0.01) if pillow else (1e-3, 1e-5)
        parity = assert_levels(mine(few, generator=generator), theirs, *allowed)
        return *augment_peers.torchvision(recipes, x, pillow), parity
    except measure.Missing as error:
        pytest.skip(str(error))


def run(benchmark, call, recipes, x, dtype, seconds, **info):
    """A row; its floor is a copy of the source, read once, and of the views, written once."""
    views = len(recipes) * len(x)
    size = {torch.float32: 4, torch.bfloat16: 2, torch.uint8: 1}[dtype]
    pixels = sum(torch.Size(augment_peers.pair(recipe.size)).numel() for recipe in recipes)
    moved = x.nbytes + 3 * pixels * len(x) * size
    measure.run(
        benchmark,
        call,
        seconds=seconds,
        op="augment",
        size=views,
        dtype=str(dtype).removeprefix("torch."),
        views=views,
        floor_ms=moved / copied_bytes_per_second() * 1e3,
        **info,
    )


PEERS = ("kornia", "torchvision, tensors", "torchvision, Pillow", "reference, compiled")
ROWS = [(case, name, torch.float32) for case in CASES for name in (*PEERS, "fastssl")]
ROWS.remove((MULTI_CROP, "reference, compiled", torch.float32))  # minutes of compilation
ROWS += [(case, "fastssl, out=", torch.float32) for case in CASES]
ROWS += [(case, "fastssl", torch.bfloat16) for case in CASES]


@pytest.mark.parametrize(("case", "name", "dtype"), ROWS)
def test_recipe(benchmark, case, name, dtype):
    preset, side, count = CASES[case]
    aug, x = preset(), images(count, side)
    if name.startswith("fastssl"):
        call, parity = ours(aug.recipes, x, dtype)
        out = call(x) if name.endswith("out=") else None
        how, call = "", functools.partial(call, x, out=out)
    else:
        how, call, parity = provider(name, aug, x)
    info = {"case": case, "impl": name, "parity": parity, "note": how}
    run(benchmark, call, aug.recipes, x, dtype, 3.0, **info)
    if hasattr(call, "close"):
        call.close()


def variants(recipe: Recipe) -> dict[str, Recipe]:
    """A crop, each operation after a crop, the recipe, and it with each operation left out."""
    crop = Recipe(recipe.size, recipe.scale, recipe.ratio, recipe.interpolation, flip=0.0)
    made = {"crop": crop}
    for name, on in SINGLE.items():
        made[f"crop + {name}"] = dataclasses.replace(crop, **on)
    made["all"] = recipe
    for name in ("flip", "jitter", "gray", "blur", "solarize"):
        if getattr(recipe, name):
            made[f"without {name}"] = dataclasses.replace(recipe, **{name: 0.0})
    return made


STAGES = [(case, name) for case in (SMALL, LARGE) for name in variants(CASES[case][0]().recipes[0])]


@pytest.mark.parametrize(("case", "name"), STAGES)
def test_stage(benchmark, case, name):
    preset, side, count = CASES[case]
    aug, x = preset(), images(count, side)
    recipes = [variants(recipe)[name] for recipe in aug.recipes]
    call, parity = ours(recipes, x, torch.float32)
    info = {"case": case, "impl": f"fastssl {name}", "parity": parity}
    call = functools.partial(call, x, out=call(x))
    run(benchmark, call, recipes, x, torch.float32, 1.0, **info)


@pytest.mark.parametrize("name", ["crop", "without normalize"])
@pytest.mark.parametrize("case", [SMALL, LARGE])
def test_levels(benchmark, case, name):
    """Normalisation switched off: views are levels, a byte each."""
    preset, side, count = CASES[case]
    recipes, x = preset().recipes, images(count, side)
    if name == "crop":
        recipes = [variants(recipe)[name] for recipe in recipes]
    call, parity = ours(recipes, x, torch.uint8)
    info = {"case": case, "impl": f"fastssl {name}", "parity": parity}
    call = functools.partial(call, x, out=call(x))
    run(benchmark, call, recipes, x, torch.uint8, 1.0, **info)

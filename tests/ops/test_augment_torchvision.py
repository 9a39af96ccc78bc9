"""Augmentation against torchvision's functions and against Pillow, where they are installed."""

import pytest
import torch
from augment_cases import (
    ORDERS,
    agree,
    disagreement,
    drawn_factors,
    flat,
    levels,
    noise,
    one_thread,  # noqa: F401 (a fixture)
    params,
    photo,
    pillow_view,
    row,
    torchvision_v2,
    torchvision_view,
    unit,
)

from fastssl.ops.augment import Recipe, draw, torchvision_params

ORACLES = {"tv-uint8": torchvision_view, "tv-float": torchvision_view, "pil": pillow_view}
SEMANTICS = list(ORACLES)
STRONG = {"jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}


def compare(x, p, size, impl, semantics, part=1e-3, further=0.0, ours=None, **settings):
    """One view of each image against the oracle, as exact as the semantics promise.

    Where the size is not that of the crop, torchvision's float32 sums decide which way a tie goes.
    """
    if semantics == "tv-float":
        x = x.float() * (1.0 / 255)
    oracle = ORACLES[semantics]
    theirs = torch.stack([oracle(x[b], row(p, 0, b), size, **settings) for b in range(len(x))])
    if "taps" in settings:
        settings["blur_kernel"] = settings.pop("taps")
    settings |= {"impl": impl, "semantics": semantics}
    if semantics == "tv-float":
        torch.testing.assert_close(unit(x, p, size, **settings)[0], theirs, rtol=0, atol=1e-5)
    else:
        exact = (0.0, 0.0) if semantics == "pil" else (part, further)
        agree(levels(x, p, size, **settings)[0], theirs, *exact)


RESIZES = [
    ((256, 256), 224),
    ((173, 131), 224),
    ((64, 64), 225),
    ((128, 256), 32),
    ((200, 150), 96),
    ((37, 31), (45, 225)),
    ((64, 56), (8, 7)),
    ((8, 8), 64),
    ((1, 1), 7),
    ((33, 65), 1),
    ((40, 40), 40),
    ((300, 20), (30, 32)),
]


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing(interpolation, antialias, semantics, impl):
    settings = {"interpolation": interpolation}
    if semantics != "pil":
        settings["antialias"] = antialias
    elif not antialias:
        pytest.skip("Pillow always antialiases")
    for (height, width), size in RESIZES:
        x = torch.cat([noise(1, height, width), photo(1, height, width)])
        compare(x, params(1, 2, height, width), size, impl, semantics, **settings)


def test_pillows_order_of_passes():
    """Which side is resized first shows, since levels are rounded in between."""
    g = torch.Generator().manual_seed(0)
    for height, width, tall, wide in torch.randint(6, 60, (150, 4), generator=g).tolist():
        x = noise(1, height, width)
        compare(x, params(1, 1, height, width), (tall, wide), "reference", "pil")


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("brightness", (0.0, 0.2, 0.7, 1.3, 1.8)),
        ("contrast", (0.0, 0.2, 0.7, 1.3, 1.8)),
        ("saturation", (0.0, 0.2, 0.7, 1.3, 1.8)),
        ("hue", (-0.5, -0.2, -0.01, 0.004, 0.1, 0.37, 0.5)),
    ],
)
def test_jitter_operations(name, factors, semantics, impl):
    x = torch.cat([noise(1, 56, 48), photo(1, 56, 48), flat(56, 48)])
    for factor in factors:
        p = params(1, len(x), 56, 48, jitter=True, **{name: factor})
        exact = {"part": 0.0} if name == "brightness" else {}
        compare(x, p, (56, 48), impl, semantics, **exact)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_all_orders_of_the_jitter(semantics, impl):
    x = torch.cat([noise(8, 48, 48), photo(8, 48, 48), flat(48, 48)])
    p = params(1, 24, 48, 48, jitter=True, order=ORDERS, **drawn_factors(1))
    compare(x, p, 48, impl, semantics, further=1e-5)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("field", ["gray", "solarize", "flip"])
def test_gates_are_exact(field, semantics, impl):
    x = torch.cat([noise(2, 48, 40), photo(2, 48, 40), flat(48, 40)])
    p = params(1, len(x), 48, 40, **{field: True})
    compare(x, p, (48, 40), impl, semantics, part=0.0)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.6, 1.0, 1.5, 2.0])
def test_blur(sigma, semantics, impl):
    x = torch.cat([noise(1, 120, 100), photo(1, 120, 100), flat(120, 100)[::3]])
    p = params(1, len(x), 120, 100, blur=True, sigma=sigma)
    compare(x, p, (120, 100), impl, semantics)
    if semantics != "pil":
        compare(x, p, (120, 100), impl, semantics, taps=9)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_whole_recipes(interpolation, semantics, impl):
    recipe = Recipe(96, interpolation=interpolation, **STRONG, gray=0.2, blur=0.5, solarize=0.2)
    x = torch.cat([noise(10, 130, 110), photo(10, 130, 110)])
    p = draw([recipe], x, seed=3, impl=impl)
    compare(x, p, 96, impl, semantics, further=1e-5, interpolation=interpolation)


def test_gray_before_the_jitter(impl):
    x = photo(4, 40, 40)
    p = draw([Recipe(32, jitter=1.0, brightness=0.4, hue=0.4, gray=0.5, gray_first=True)], x)
    compare(x, p, 32, impl, "tv-uint8", further=1e-5, gray_first=True)


def test_torchvisions_own_kernel_for_levels_is_one_level_away(impl):
    """On a CPU with AVX2 torchvision resizes uint8 in 16-bit integers: another rounding."""
    F = torchvision_v2().functional
    x = photo(2, 100, 80)
    (ours,) = levels(x, params(1, 2, 100, 80), (64, 64), impl=impl)
    assert disagreement(ours, F.resize(x, [64, 64]))[2] <= 1


def pipeline(recipe):
    """The Compose that a recipe stands for."""
    v2 = torchvision_v2()
    size = [recipe.size] * 2 if isinstance(recipe.size, int) else list(recipe.size)
    taps = recipe.blur_kernel or (min(size) // 10) | 1
    colors = {n: recipe.range(n) for n in ("brightness", "contrast", "saturation", "hue")}
    crop = {"antialias": recipe.antialias, "interpolation": recipe.interpolation}
    gray = (recipe.gray, lambda p: v2.RandomGrayscale(p))
    jitter = (recipe.jitter, lambda p: v2.RandomApply([v2.ColorJitter(**colors)], p))
    stages = [
        (recipe.flip, lambda p: v2.RandomHorizontalFlip(p)),
        *((gray, jitter) if recipe.gray_first else (jitter, gray)),
        (recipe.blur, lambda p: v2.RandomApply([v2.GaussianBlur(taps, recipe.sigma)], p)),
        (recipe.solarize, lambda p: v2.RandomSolarize(recipe.solarize_threshold / 255, p)),
    ]
    first = v2.RandomResizedCrop(size, recipe.scale, recipe.ratio, **crop)
    return v2.Compose([first, *(stage(p) for p, stage in stages if p > 0)])


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(24, **STRONG, gray=0.2, blur=0.5),
        Recipe((20, 30), jitter=1.0, hue=0.4, gray=0.2, gray_first=True, interpolation="bicubic"),
        Recipe(16, (0.2, 1.0), flip=0.0, solarize=0.5, blur=1.0, blur_kernel=5),
        Recipe(16, (0.9, 1.0), (0.2, 0.3), jitter=0.5, brightness=(0.3, 0.4), saturation=0.2),
    ],
)
def test_seed_for_seed(recipe):
    """Equal seeds, equal parameters: the views of floats agree with torchvision's own pipeline."""
    transform = pipeline(recipe)
    x = photo(6, 45, 37).float() / 255
    torch.manual_seed(3)
    theirs = [[transform(image) for _ in range(2)] for image in x]
    after = torch.rand(1)
    p = torchvision_params([recipe] * 2, x, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    q = torchvision_params([recipe] * 2, x)
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(a, b) for a, b in zip(p.packed(), q.packed(), strict=True))
    settings = {"interpolation": recipe.interpolation, "gray_first": recipe.gray_first}
    settings |= {"blur_kernel": recipe.blur_kernel, "semantics": "tv-float", "impl": "reference"}
    for v, view in enumerate(unit(x, p, recipe.size, **settings)):
        wanted = torch.stack([views[v] for views in theirs])
        torch.testing.assert_close(view, wanted, rtol=0, atol=1e-5)

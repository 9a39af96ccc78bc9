"""Augmentation on the CPU: every implementation and instruction set against the reference.

What the reference itself is measured with: test_augment_torchvision.py.
"""

import pytest
import torch
from augment_cases import (
    ORDERS,
    agree,
    drawn_factors,
    flat,
    levels,
    noise,
    one_thread,  # noqa: F401 (a fixture)
    params,
    photo,
    unit,
)

from fastssl import augment
from fastssl._library import _C
from fastssl.ops.augment import Recipe, apply, apply_geometry, draw, pack

SEMANTICS = ["tv-uint8", "tv-float", "pil"]
STRONG = {"jitter": 0.8, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
CAPABILITIES = _C.cpu_capabilities() if _C else []

_truths = {}


def truth(function, x, p, size, **settings):
    """The reference's views, computed once for all implementations."""
    tensors = [x, *p.packed()]
    bits = tuple(hash(t.contiguous().numpy().tobytes()) for t in tensors)
    key = (function, tuple(x.shape), bits, str(size), str(settings))
    if key not in _truths:
        _truths[key] = function(x, p, size, impl="reference", **settings)
    return _truths[key]


def check(x, p, size, impl, semantics, part=1e-3, further=0.0, **settings):
    """This implementation against the reference, as exact as the semantics ask for."""
    settings["semantics"] = semantics
    function = unit if semantics == "tv-float" else levels
    theirs = truth(function, x, p, size, **settings)
    assert all(view.isfinite().all() for view in theirs)
    if impl == "reference":
        return
    ours = function(x, p, size, impl=impl, **settings)
    if semantics == "tv-float":
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        return
    exact = (0.0, 0.0) if semantics == "pil" else (part, further)
    flattened = (torch.cat([view.flatten() for view in views]) for views in (ours, theirs))
    agree(*flattened, *exact)


CROPS = [  # of an image 67 high and 53 wide: top, left, height, width, size
    (0, 0, 67, 53, 32),
    (0, 0, 67, 53, (67, 53)),
    (0, 0, 40, 30, 96),
    (27, 23, 40, 30, (7, 96)),
    (27, 0, 40, 30, (96, 7)),
    (0, 23, 40, 30, (40, 7)),
    (66, 52, 1, 1, 7),
    (5, 0, 1, 53, 32),
    (0, 9, 67, 1, 32),
    (3, 3, 56, 48, (7, 6)),
    (10, 11, 12, 4, (96, 32)),
    (1, 2, 61, 37, 1),
    (20, 20, 28, 28, 224),
    (2, 3, 64, 48, 225),
    (4, 4, 50, 45, 384),
]


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_and_sizes(interpolation, antialias, semantics, impl):
    x = torch.cat([noise(1, 67, 53), photo(1, 67, 53)])
    for top, left, height, width, size in CROPS:
        box = {"top": top, "left": left, "height": height, "width": width}
        p = params(1, 2, 67, 53, **box, flip=[[True, False]])
        check(x, p, size, impl, semantics, interpolation=interpolation, antialias=antialias)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("brightness", (0.0, 0.2, 0.7, 1.3, 1.8)),
        ("contrast", (0.0, 0.2, 0.7, 1.3, 1.8)),
        ("saturation", (0.0, 0.2, 0.7, 1.3, 1.8)),
        ("hue", (-0.5, -0.2, -0.01, 0.1, 0.5)),
    ],
)
def test_jitter_operations(name, factors, semantics, impl):
    x = torch.cat([noise(1, 33, 31), photo(1, 33, 31), flat(33, 31)])
    p = params(5, len(x), 33, 31, jitter=True, **{name: torch.tensor(factors)[:, None]})
    exact = {"part": 0.0} if name == "brightness" else {}
    check(x, p, (33, 31), impl, semantics, **exact)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("seed", [0, 1])
def test_all_orders_of_the_jitter(seed, semantics, impl):
    x = torch.cat([noise(8, 40, 40), photo(8, 40, 40), flat(40, 40)])
    p = params(1, 24, 40, 40, jitter=True, order=ORDERS, **drawn_factors(seed))
    check(x, p, 40, impl, semantics, further=1e-5)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("field", ["gray", "solarize", "flip"])
def test_gates_are_exact(field, semantics, impl):
    x = torch.cat([noise(2, 17, 23), photo(2, 17, 23), flat(17, 23)])
    p = params(1, len(x), 17, 23, **{field: torch.arange(len(x)) % 2 == 0})
    check(x, p, (17, 23), impl, semantics, part=0.0)
    for threshold in (0, 100, 255):
        check(x, p, (17, 23), impl, semantics, part=0.0, solarize_threshold=threshold)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("kernel", [None, 1, 3, 9, 23])
def test_blur(kernel, semantics, impl):
    sigma = torch.tensor([0.1, 0.3, 0.5, 0.7, 1.0, 1.41, 1.5, 1.7, 2.0, 3.0, 10.0])
    x = torch.cat([noise(2, 50, 45), photo(1, 50, 45), flat(50, 45)])
    p = params(1, 11, 50, 45, blur=True, sigma=sigma)
    if semantics == "pil" and kernel is not None:  # torchvision's blur, not exact to the bit
        settings = {"semantics": semantics, "blur_kernel": kernel}
        (ours,) = levels(x, p, (50, 45), impl=impl, **settings)
        agree(ours, truth(levels, x, p, (50, 45), **settings)[0])
    else:
        check(x, p, (50, 45), impl, semantics, blur_kernel=kernel)
    few = params(1, 3, 4, 3, blur=True, sigma=torch.tensor([0.4, 1.0, 2.0]))
    if kernel is None:
        check(noise(3, 4, 3), few, (4, 3), impl, semantics)


RECIPES = {
    "simclr": [Recipe(96, **STRONG, gray=0.2, blur=0.5)] * 2,
    "multi-crop": [
        Recipe(64, (0.4, 1), interpolation="bicubic", **STRONG, gray=0.3, blur=0.8, solarize=0.3),
        Recipe((33, 40), (0.05, 0.4), interpolation="bicubic", **STRONG, gray=0.2, blur=0.5),
        Recipe(24, antialias=False, **STRONG, gray=0.5, gray_first=True, blur=0.5, blur_kernel=9),
    ],
}


def run(recipes, x, p, impl, semantics, function=levels):
    return function(x, p, impl=impl, semantics=semantics, **per_view(recipes))


def per_view(recipes):
    names = ("size", "interpolation", "antialias", "gray_first", "blur_kernel")
    return {n: [getattr(r, n) for r in recipes] for n in (*names, "solarize_threshold")}


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("name", RECIPES)
def test_whole_recipes(name, semantics, impl):
    x = torch.cat([noise(6, 90, 120), photo(6, 90, 120)])
    p = draw(RECIPES[name], x, seed=3, impl=impl)
    check(x, p, impl=impl, semantics=semantics, further=1e-5, **per_view(RECIPES[name]))


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_images_of_any_size(semantics, impl):
    """From one pixel up, in one packed batch; equal to each image alone, bit for bit."""
    shapes = [(1, 1), (1, 300), (300, 1), (2, 3), (64, 48), (500, 375)]
    images = [photo(1, h, w, seed=i)[0] for i, (h, w) in enumerate(shapes)]
    recipes = RECIPES["multi-crop"]
    p = draw(recipes, images, seed=1, impl=impl)
    views = run(recipes, images, p, impl, semantics)
    again = run(recipes, pack(images), p, impl, semantics)
    for i, image in enumerate(images):
        alone = run(recipes, image[None], p[i], impl, semantics)
        for view, twin, single in zip(views, again, alone, strict=True):
            assert torch.equal(view[i], single[0])
            assert torch.equal(view, twin)


def test_a_large_image(impl):
    x = noise(1, 3072, 4096)
    p = params(1, 1, 3072, 4096, left=5, width=4091, jitter=True, hue=0.1, contrast=1.2)
    check(x, p, 224, impl, "tv-uint8", further=1e-5)


def test_layouts_of_the_input(impl):
    """[B, C, H, W] in any strides, [B, H, W, C], floats of every width, lists: the same bits."""
    x = noise(4, 21, 34)
    recipes = [Recipe(16, **STRONG, gray=0.2, blur=0.5), Recipe((9, 12), flip=1.0)]
    p = draw(recipes, x, seed=7, impl=impl)
    wanted = run(recipes, x, p, impl, "tv-uint8")
    last = x.permute(0, 2, 3, 1).contiguous()
    wide = torch.zeros(4, 3, 42, 68, dtype=torch.uint8)
    wide[:, :, ::2, ::2] = x
    arrays = [image.numpy() for image in last]
    for other in (
        last,
        last.permute(0, 3, 1, 2),
        wide[:, :, ::2, ::2],
        x.flip(0).flip(0),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        list(x),
        tuple(last),
        arrays,
        pack(list(last)),
    ):
        for a, b in zip(run(recipes, other, p, impl, "tv-uint8"), wanted, strict=True):
            assert torch.equal(a, b)
    floats = x.float() / 255
    half = floats.half()
    quantized = (floats * 255.999).to(torch.uint8)
    wanted = run(recipes, quantized, p, impl, "tv-uint8")
    for other in (floats, floats.double(), floats.permute(0, 2, 3, 1), list(floats)):
        for a, b in zip(run(recipes, other, p, impl, "tv-uint8"), wanted, strict=True):
            assert torch.equal(a, b)
    wanted = run(recipes, half.float(), p, impl, "tv-float", unit)
    for a, b in zip(run(recipes, half, p, impl, "tv-float", unit), wanted, strict=True):
        assert torch.equal(a, b)


def test_one_channel(impl):
    """Saturation, hue and gray leave it alone; as a batch, as [B, H, W, 1], as a list of planes."""
    x = noise(3, 30, 28, channels=1)
    p = params(1, 3, 30, 28, jitter=True, contrast=1.4, saturation=0.1, hue=0.3, gray=True)
    plain = params(1, 3, 30, 28, jitter=True, contrast=1.4)
    for semantics in SEMANTICS:
        check(x, p, 20, impl, semantics)
        (view,) = unit(x, p, 20, impl=impl, semantics=semantics)
        assert view.shape == (3, 1, 20, 20)
        for other in (x.movedim(1, -1), [image[0] for image in x]):
            assert torch.equal(unit(other, p, 20, impl=impl, semantics=semantics)[0], view)
        assert torch.equal(unit(x, plain, 20, impl=impl, semantics=semantics)[0], view)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalised_outputs(dtype, semantics, impl):
    x = noise(3, 40, 30)
    recipes = [Recipe(24, **STRONG, blur=0.5), Recipe((9, 14))]
    p = draw(recipes, x, impl=impl)
    settings = {"size": [24, (9, 14)], "semantics": semantics, "impl": impl}
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    plain = unit(x, p, [24, (9, 14)], semantics=semantics, impl=impl)
    truth = [
        (v - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None] for v in plain
    ]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        settings |= {"mean": mean, "std": std, "dtype": dtype, "memory_format": memory_format}
        views = apply(x, p, **settings)
        out = [torch.empty_like(v) for v in views]
        assert all(a is b for a, b in zip(apply(x, p, **settings, out=out), out, strict=True))
        for view, true, given in zip(views, truth, out, strict=True):
            assert view.is_contiguous(memory_format=memory_format)
            assert view.dtype == dtype
            assert torch.equal(view, given)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(view.float(), true, rtol=eps, atol=2e-6)


def test_levels_and_normalised_views_are_the_same_views(impl):
    x = photo(2, 50, 60)
    p = draw([Recipe(32, **STRONG, blur=1.0)], x, impl=impl)
    for semantics in SEMANTICS:
        (integer,) = levels(x, p, 32, semantics=semantics, impl=impl)
        (fraction,) = unit(x, p, 32, semantics=semantics, impl=impl)
        if semantics == "tv-float":
            assert torch.equal(integer, (fraction.clamp(0, 1) * 255.999).to(torch.uint8))
        else:
            assert torch.equal(integer, (fraction * 255).round().to(torch.uint8))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_same_bits_for_any_split_and_number_of_threads(threads, semantics, impl):
    x = photo(7, 60, 70)
    recipes = RECIPES["multi-crop"]
    p = draw(recipes, x, seed=5, impl=impl)
    wanted = run(recipes, x, p, impl, semantics, unit)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for split in ((7,), (1, 6), (3, 4), (1,) * 7):
            at = 0
            for n in split:
                some = slice(at, at + n)
                views = run(recipes, x[some], p[some], impl, semantics, unit)
                for view, whole in zip(views, wanted, strict=True):
                    if impl == "reference":  # a BLAS adds in an order of its own
                        torch.testing.assert_close(view, whole[some], rtol=0, atol=2e-6)
                    else:
                        assert torch.equal(view, whole[some])
                at += n
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32])
def test_geometry_of_masks(dtype):
    """Nearest pixels of the crop, flipped as the image."""
    x = noise(3, 20, 26)
    recipes = [Recipe(8), Recipe((40, 5), flip=1.0)]
    p = draw(recipes, x)
    mask = (x[:, 0] > 100).to(dtype) if dtype == torch.bool else x[:, 0].to(dtype)
    views = apply_geometry(mask, p, size=[8, (40, 5)])
    stacked = apply_geometry(torch.stack([mask, mask], 1), p, size=[8, (40, 5)])
    ragged = apply_geometry(list(mask), p, size=[8, (40, 5)])
    for v, (view, two, list_) in enumerate(zip(views, stacked, ragged, strict=True)):
        height, width = [(8, 8), (40, 5)][v]
        assert view.shape == (3, height, width)
        assert view.dtype == dtype
        assert torch.equal(two, torch.stack([view, view], 1))
        assert torch.equal(list_, view)
        for b in range(3):
            top, left, h, w = (
                getattr(p, n)[v, b].item() for n in ("top", "left", "height", "width")
            )
            rows = [top + int((o + 0.5) * h / height) for o in range(height)]
            columns = [left + int((o + 0.5) * w / width) for o in range(width)]
            columns = columns[::-1] if p.flip[v, b] else columns
            assert torch.equal(view[b], mask[b][rows][:, columns])


@pytest.mark.skipif(len(CAPABILITIES) < 2, reason="one instruction set")
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_instruction_sets_make_the_same_bits(semantics):
    x = noise(4, 100, 90)
    aug = augment.DINO(size=75, local_size=33, semantics=semantics, impl="cpu")
    before, made = _C.cpu_capability(), {}
    try:
        for capability in CAPABILITIES:
            _C.use_cpu_capability(capability)
            made[capability] = aug(x, step=1) + aug(x.float() / 255, step=2)
    finally:
        _C.use_cpu_capability(before)
    first, *others = made.values()
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))

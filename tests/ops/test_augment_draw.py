"""The draw: the same bits everywhere, and the distributions that the recipe names."""

import math

import pytest
import torch
from augment_cases import ORDERS, noise

from fastssl._library import _C
from fastssl._random import exp_, philox
from fastssl.ops.augment import PackedImages, Recipe, draw
from fastssl.ops.augment import images as _images

FULL = Recipe(
    32,
    jitter=0.8,
    brightness=0.8,
    contrast=(0.5, 2.5),
    saturation=0.3,
    hue=0.2,
    gray=0.2,
    blur=0.5,
    sigma=(0.3, 1.7),
    solarize=0.1,
)
OTHER = Recipe(24, (0.05, 0.4), (0.5, 3.0), flip=0.0, jitter=1.0, hue=(-0.5, 0.1), gray=0.9)


def sized(batch, height, width):
    """Images of which only the sizes are looked at."""
    return torch.zeros((), dtype=torch.uint8).expand(batch, 3, height, width)


def packed(shapes):
    """The same, of different sizes."""
    rows = torch.tensor([(0, *shape) for shape in shapes])
    return PackedImages(torch.zeros(1, dtype=torch.uint8), rows, 3)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.packed(), b.packed(), strict=True))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_philox(counter, key, words):
    """Those that come with Random123, for philox4x32-10."""
    found = philox([torch.tensor(word) for word in counter], key)
    assert " ".join(f"{word.item():08x}" for word in found) == words


def test_exponential_from_products_and_sums():
    x = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    torch.testing.assert_close(exp_(x), x.exp(), rtol=4e-16, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 0x123456789ABCDEF, (1 << 63) - 1])
@pytest.mark.parametrize("step", [0, 12345, (1 << 32) - 1])
def test_same_bits_in_every_implementation(seed, step, impl):
    ids = torch.tensor([0, 1, 2, 77, 1 << 31, (1 << 32) + 5, (1 << 62) + 1, -1, -(1 << 40)])
    for x in (sized(9, 256, 256), sized(9, 375, 500), sized(9, 1, 1), packed(SHAPES)):
        settings = {"seed": seed, "step": step, "sample_ids": ids}
        ours = draw([FULL, OTHER, FULL], x, impl=impl, **settings)
        assert same(ours, draw([FULL, OTHER, FULL], x, impl="reference", **settings))
        assert not torch.equal(ours.packed()[3][:, 0], ours.packed()[3][:, 2])  # other views
        ours.check(3, 9, _images.batch(x).sides(), torch.device("cpu"))
        tensor = settings | {"step": torch.tensor(step)}
        assert same(ours, draw([FULL, OTHER, FULL], x, impl=impl, **tensor))


SHAPES = [(1, 1), (1, 30), (30, 1), (10, 100), (100, 10), (3072, 4096), (7, 5), (224, 224), (2, 3)]


def test_many_draws_have_the_same_bits(impl):
    """Where a square root or an exponential is rounded otherwise, one of so many shows it."""
    x = sized(50_000, 333, 500)
    assert same(draw([FULL, OTHER], x, impl=impl), draw([FULL, OTHER], x, impl="reference"))


def test_a_draw_depends_on_nothing_but_its_counters(impl):
    whole = draw([FULL, OTHER], sized(40, 100, 120), seed=5, step=3, impl=impl)
    for some in (slice(0, 1), slice(7, 31), slice(39, 40)):
        ids = torch.arange(40)[some]
        settings = {"seed": 5, "step": 3, "sample_ids": ids, "impl": impl}
        assert same(draw([FULL, OTHER], sized(len(ids), 100, 120), **settings), whole[some])
        ragged = packed([(100, 120)] * len(ids))
        assert same(draw([FULL, OTHER], ragged, **settings), whole[some])
    assert same(draw([FULL], sized(40, 100, 120), seed=5, step=3, impl=impl), first(whole))
    for change in ({"seed": 6}, {"step": 4}, {"seed": 5 + (1 << 32)}):
        settings = {"seed": 5, "step": 3, "impl": impl} | change
        assert not same(draw([FULL, OTHER], sized(40, 100, 120), **settings), whole)


def first(p):
    return p._map(lambda x: x[:1])


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(threads, impl):
    x = sized(3000, 300, 400)
    usual = draw([FULL, OTHER], x, impl=impl)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert same(draw([FULL, OTHER], x, impl=impl), usual)
    finally:
        torch.set_num_threads(before)


def kolmogorov_smirnov(values, distribution):
    """The probability of so large a distance from the distribution (Smirnov's series)."""
    values = values.double().flatten().sort().values
    n = len(values)
    true = distribution(values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((true - steps[:-1]).abs().max(), (true - steps[1:]).abs().max())
    t = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance.item()
    return min(1.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * t) ** 2) for k in range(1, 100)))


def chi_square(counts, probabilities):
    """The probability of counts so far from the expected ones (Wilson and Hilferty)."""
    expected = torch.as_tensor(probabilities, dtype=torch.float64) * counts.sum()
    n = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    z = ((statistic / n) ** (1 / 3) - (1 - 2 / (9 * n))) / math.sqrt(2 / (9 * n))
    return 0.5 * math.erfc(z / math.sqrt(2))


LEAST = 1e-3  # probability; the seeds are fixed, so a test either always passes or never


def uniform(low, high):
    return lambda x: ((x - low) / (high - low)).clamp(0, 1)


def test_distribution_of_crops():
    """In a large image nothing is rejected but for its shape; small crops fit whatever it is."""
    recipe = Recipe(32, (0.1, 0.5), (3 / 4, 4 / 3))
    p = draw([recipe], sized(20_000, 4000, 4000), seed=1)
    height, width = p.height.double(), p.width.double()
    assert kolmogorov_smirnov(height * width / 4000**2, uniform(0.1, 0.5)) > LEAST
    ratio = uniform(math.log(3 / 4), math.log(4 / 3))
    assert kolmogorov_smirnov((width / height).log(), ratio) > LEAST
    for start, length in ((p.top, height), (p.left, width)):
        # A position is uniform in {0 .. 4000 - length}; a draw within it makes it continuous.
        within = torch.rand(start.shape, dtype=torch.float64)
        assert kolmogorov_smirnov((start + within) / (4001 - length), uniform(0, 1)) > LEAST
    settings = {"seed": 2}
    area = draw([Recipe(32)], sized(100_000, 256, 256), **settings)
    part = (area.height.double() * area.width).mean().item() / 256**2
    assert part == pytest.approx(0.478, abs=0.003)  # torchvision's, measured


def test_distribution_of_factors():
    p = draw([FULL], sized(20_000, 8, 8), seed=2)
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert kolmogorov_smirnov(getattr(p, name), uniform(*FULL.range(name))) > LEAST
    assert kolmogorov_smirnov(p.sigma, uniform(*FULL.sigma)) > LEAST


def test_distribution_of_gates_and_orders():
    p = draw([FULL, FULL], sized(30_000, 8, 8), seed=3)
    chances = {n: getattr(FULL, n) for n in ("flip", "jitter", "gray", "blur", "solarize")}
    for name, chance in chances.items():
        for view in getattr(p, name):
            yes = view.sum().item()
            counts = torch.tensor([yes, len(view) - yes], dtype=torch.float64)
            assert chi_square(counts, [chance, 1 - chance]) > LEAST / 10
    codes = (p.order.long() * torch.tensor([64, 16, 4, 1])).sum(-1)
    wanted = sorted(64 * a + 16 * b + 4 * c + d for a, b, c, d in ORDERS)
    values, counts = codes.unique(return_counts=True)
    assert values.tolist() == wanted
    assert chi_square(counts, [1 / 24] * 24) > LEAST
    # All pairs of gates, and of views, are independent.
    gates = torch.stack([getattr(p, n) for n in chances]).double().flatten(0, 1)
    correlation = torch.corrcoef(gates) - torch.eye(len(gates))
    assert correlation.abs().max() < 4.5 / math.sqrt(30_000)


def test_certain_and_impossible_gates():
    p = draw([Recipe(8, flip=1.0, jitter=1.0, gray=0.0)], sized(5000, 8, 8))
    assert p.flip.all()
    assert p.jitter.all()
    assert not p.gray.any()


@pytest.mark.parametrize(("height", "width"), [(100, 1000), (1000, 100), (1, 10), (10, 1)])
def test_fallback_on_narrow_images(height, width, impl):
    """No crop of so much of a 1:10 image has an allowed ratio: the middle is taken."""
    p = draw([Recipe(32, (0.9, 1.0))], sized(200, height, width), impl=impl)
    side = min(height, width)
    long = max(1, round(side * 4 / 3))
    wanted = (side, long) if height < width else (long, side)
    assert (p.height == wanted[0]).all()
    assert (p.width == wanted[1]).all()
    assert (p.top == (height - wanted[0]) // 2).all()
    assert (p.left == (width - wanted[1]) // 2).all()


def test_boxes_and_indexing():
    p = draw([FULL, OTHER], noise(5, 40, 50), seed=1)
    boxes = p.boxes()
    assert boxes.shape == (2, 5, 4)
    assert boxes.dtype == torch.int32
    assert torch.equal(boxes[..., 2] - boxes[..., 0], p.width)
    assert torch.equal(boxes[..., 1], p.top)
    assert (boxes[..., 2] <= 50).all()
    assert (boxes[..., 3] <= 40).all()
    assert len(p) == 5
    assert p.views == 2
    assert same(p[torch.tensor([4, 0])], p[[4, 0]])
    assert same(p.to("cpu"), p)


@pytest.mark.skipif(_C is None, reason="no native library")
def test_the_native_draw_is_registered():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has("fastssl::augment_draw", "CPU")
    assert has("fastssl::augment_apply", "CPU")


def test_sample_ids_of_any_stride(impl):
    x = torch.zeros(4, 3, 20, 20, dtype=torch.uint8)
    ids = torch.arange(8).view(4, 2)[:, 1]
    strided = draw([Recipe(8)], x, sample_ids=ids, impl=impl)
    packed = draw([Recipe(8)], x, sample_ids=ids.contiguous(), impl=impl)
    assert torch.equal(strided.left, packed.left)

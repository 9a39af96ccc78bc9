"""Jigsaws, rotations, relative patches and sets of permutations."""

import itertools
import math
import time

import pytest
import torch
from test_augment_draw import LEAST, chi_square

from fastssl._library import _C
from fastssl._random import Purpose, words_of
from fastssl.ops.patch import reference_pretext
from fastssl.ops.patch.permutations import hamming_permutations
from fastssl.ops.patch.pretext import jigsaw, relative_patches, rotate4

native = pytest.mark.skipif(_C is None, reason="no native library")


def coordinates(batch, height, width):
    """Images [B, 3, H, W] whose pixels are (sample, row, column)."""
    sides = [torch.arange(n) for n in (batch, height, width)]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), 1)


def layouts(x):
    """The same values, laid out in several ways."""
    wide = torch.zeros(*x.shape[:3], 2 * x.shape[3], dtype=x.dtype)[..., ::2].copy_(x)
    return [x, x.to(memory_format=torch.channels_last), x.mT.contiguous().mT, wide]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Permutations


def brute_force(count, tiles, criterion, seed):
    """The definition: all distances to all those taken, at every step."""
    table = list(itertools.permutations(range(tiles)))
    zero = torch.zeros((), dtype=torch.int64)
    word = words_of(seed, zero, zero, Purpose.PRETEXT, 3 << 24)[0].item()
    taken = [table[word * len(table) >> 32]]
    while len(taken) < count:
        best, score = None, -1
        for p in table:
            if p not in taken:
                distances = [sum(a != b for a, b in zip(p, q, strict=True)) for q in taken]
                found = min(distances) if criterion == "max_min" else sum(distances)
                if found > score:
                    best, score = p, found
        taken.append(best)
    return torch.tensor(taken)


@pytest.mark.parametrize("criterion", ["max_avg", "max_min"])
@pytest.mark.parametrize("tiles", [1, 2, 3, 4])
def test_permutations_are_those_of_the_definition(tiles, criterion):
    for seed in (0, 1, 12345, (1 << 63) - 1):
        whole = brute_force(math.factorial(tiles), tiles, criterion, seed)
        for count in range(1, len(whole) + 1):
            found = hamming_permutations(count, tiles, criterion, seed=seed)
            assert torch.equal(found, whole[:count])
        assert torch.equal(
            reference_pretext.hamming_permutations(len(whole), tiles, criterion == "max_min", seed),
            whole,
        )


@pytest.mark.parametrize("criterion", ["max_avg", "max_min"])
def test_permutations_of_five_are_those_of_the_definition(criterion):
    whole = brute_force(120, 5, criterion, 7)
    for count in range(1, 121):
        assert torch.equal(hamming_permutations(count, 5, criterion, seed=7), whole[:count])


@pytest.mark.parametrize("criterion", ["max_avg", "max_min"])
@pytest.mark.parametrize(("count", "tiles"), [(60, 6), (200, 7), (30, 8), (5040, 7)])
def test_permutations_are_those_of_the_reference(criterion, count, tiles):
    """Larger than one block of candidates, and so many that sums need 32 bits."""
    found = hamming_permutations(count, tiles, criterion, seed=3)
    assert len(found.unique(dim=0)) == count
    wanted = reference_pretext.hamming_permutations(
        min(count, 300), tiles, criterion == "max_min", 3
    )
    assert torch.equal(found[:300], wanted)


def test_wide_sums_of_permutations():
    """Beyond 32,768 agreements the sums take 32 bits: the first rows must not change."""
    narrow, wide = (hamming_permutations(count, 7) for count in (4681, 4682))
    assert torch.equal(narrow, wide[:4681])
    assert len(wide.unique(dim=0)) == 4682


@native
@pytest.mark.parametrize("criterion", ["max_avg", "max_min"])
def test_a_thousand_permutations_of_nine_take_under_two_seconds(criterion):
    start = time.process_time()
    found = hamming_permutations(1000, 9, criterion)
    assert time.process_time() - start < 2
    assert found.shape == (1000, 9)
    assert torch.equal(found.sort(1).values, torch.arange(9).expand(1000, 9))
    assert len(found.unique(dim=0)) == 1000
    distance = (found[:, None] != found).sum(2)
    others = distance[~torch.eye(1000, dtype=torch.bool)]
    # Permutations at random: 8 on average, and 2 at least among so many.
    assert criterion == "max_min" or others.double().mean() > 8
    assert criterion == "max_avg" or others.min() >= 5


def test_the_first_permutation_is_uniform():
    first = torch.stack([hamming_permutations(1, 3, seed=seed)[0] for seed in range(3000)])
    _, counts = first.unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert chi_square(counts.double(), [1 / 6] * 6) > LEAST


# Jigsaw

PERMUTATIONS = hamming_permutations(20, 9)


@pytest.mark.parametrize("size", [(9, 9), (30, 30), (31, 47), (3, 3)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
def test_a_jigsaw_can_be_undone(size, dtype, impl):
    images = torch.randint(0, 256, (5, 2, *size)).to(dtype)
    h, w = size[0] // 3, size[1] // 3
    wanted = images[..., : 3 * h, : 3 * w]
    for x in layouts(images):
        tiles, labels = jigsaw(x, permutations=PERMUTATIONS, seed=1, impl=impl)
        assert tiles.shape == (5, 9, 2, h, w)
        assert tiles.dtype == dtype
        assert tiles.is_contiguous()
        inverse = PERMUTATIONS[labels].argsort(1)
        cells = tiles[torch.arange(5)[:, None], inverse].unflatten(1, (3, 3))
        assert torch.equal(cells.permute(0, 3, 1, 4, 2, 5).reshape(wanted.shape), wanted)


def test_places_of_a_jigsaw(impl):
    """Tiles that are smaller than cells, in a grid that is not square."""
    permutations = hamming_permutations(7, 6)
    x = coordinates(300, 23, 44)  # cells of 11 by 14
    for images in (x, x.to(memory_format=torch.channels_last)):
        tiles, labels = jigsaw(
            images, (2, 3), permutations=permutations, tile=(7, 12), seed=3, impl=impl
        )
        corner = tiles[..., :1, :1]  # [B, 6, 3, 1, 1]
        step = torch.stack([torch.zeros(7, 12).long(), *coordinates(1, 7, 12)[0, 1:]])
        assert torch.equal(tiles, corner + step)
        sample, top, left = corner[..., 0, 0].unbind(2)
        assert torch.equal(sample, torch.arange(300)[:, None].expand(300, 6))
        cell = permutations[labels]
        down, right = top - cell // 3 * 11, left - cell % 3 * 14
        assert set(down.flatten().tolist()) == set(range(5))  # the last one included
        assert set(right.flatten().tolist()) == set(range(3))


def test_distribution_of_jigsaws():
    x = coordinates(8000, 15, 15)
    tiles, labels = jigsaw(x, permutations=PERMUTATIONS, tile=2, seed=5)
    assert labels.dtype == torch.int64
    assert chi_square(labels.bincount(minlength=20).double(), [1 / 20] * 20) > LEAST
    cell = PERMUTATIONS[labels]
    for axis, first in ((1, cell // 3 * 5), (2, cell % 3 * 5)):
        offset = tiles[:, :, axis, 0, 0] - first
        assert chi_square(offset.flatten().bincount(minlength=4).double(), [0.25] * 4) > LEAST
    # Offsets of neighbouring cells, and of both axes, are independent of each other.
    down, right = (tiles[:, :, 1, 0, 0] % 5), (tiles[:, :, 2, 0, 0] % 5)
    for a, b in ((down[:, 0], right[:, 0]), (down[:, 0], down[:, 1])):
        assert chi_square((4 * a + b).bincount(minlength=16).double(), [1 / 16] * 16) > LEAST


# Relative patches


@pytest.mark.parametrize(("tile", "gap", "jitter"), [(5, 2, 1), (4, 0, 0), (1, 3, 4), (6, 1, 3)])
def test_places_of_relative_patches(tile, gap, jitter, impl):
    height, width = 3 * tile + 2 * gap + 2 * jitter, 3 * tile + 2 * gap + 2 * jitter + 5
    x = coordinates(400, height, width)
    for images in layouts(x):
        centre, neighbour, labels = relative_patches(images, tile, gap, jitter, seed=2, impl=impl)
        assert centre.shape == neighbour.shape == (400, 3, tile, tile)
        place = torch.tensor([0, 1, 2, 3, 5, 6, 7, 8])[labels]
        for found, at in ((centre, torch.full_like(place, 4)), (neighbour, place)):
            corner = found[..., :1, :1]
            step = torch.stack([torch.zeros(tile, tile).long(), *coordinates(1, tile, tile)[0, 1:]])
            assert torch.equal(found, corner + step)
            sample, top, left = corner[..., 0, 0].unbind(1)
            assert torch.equal(sample, torch.arange(400))
            # The border is the jitter, and two of the five spare columns.
            moved = [
                top - at // 3 * (tile + gap) - jitter,
                left - at % 3 * (tile + gap) - jitter - 2,
            ]
            for offset in moved:
                assert set(offset.tolist()) == set(range(-jitter, jitter + 1))


def test_distribution_of_relative_patches():
    x = coordinates(8000, 20, 20)
    centre, neighbour, labels = relative_patches(x, 2, 3, 2, seed=4)
    assert chi_square(labels.bincount(minlength=8).double(), [1 / 8] * 8) > LEAST
    centre_top, right = centre[:, 1, 0, 0] - 9 + 2, neighbour[:, 2, 0, 0]
    assert chi_square(centre_top.bincount(minlength=5).double(), [0.2] * 5) > LEAST
    right = (right - 2) % 5  # the three columns are five apart
    pairs = (5 * centre_top + right).bincount(minlength=25)
    assert chi_square(pairs.double(), [1 / 25] * 25) > LEAST


# Rotations


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "side"), [(1, 1), (1, 4), (37, 5)])
def test_rotations(batch, side, dtype):
    for x in layouts(torch.randint(0, 256, (batch, 3, side, side)).to(dtype)):
        views, labels = rotate4(x)
        assert views.shape == (4, batch, 3, side, side)
        assert torch.equal(labels, torch.arange(4)[:, None].expand(4, batch))
        for k in range(4):
            assert torch.equal(views[k], torch.rot90(x, k, (-2, -1)))
        drawn, labels = rotate4(x, seed=8)
        assert drawn.dtype == dtype
        assert torch.equal(drawn, views[labels, torch.arange(batch)])


def test_distribution_of_rotations():
    _, labels = rotate4(torch.zeros(8000, 1, 1, 1), seed=1)
    assert chi_square(labels.bincount(minlength=4).double(), [0.25] * 4) > LEAST


# All of them

DRAWN = {
    "jigsaw": lambda x, **k: jigsaw(x, permutations=PERMUTATIONS, tile=4, **k),
    "relative": lambda x, **k: relative_patches(x, 4, 1, 2, **k),
    "rotate": lambda x, impl=None, **k: rotate4(x, **k),
}


@pytest.mark.parametrize("task", DRAWN)
def test_a_draw_depends_on_nothing_but_its_counters(task, impl):
    run, x = DRAWN[task], torch.randn(12, 3, 21, 21)
    whole = run(x, seed=5, step=3, impl=impl)
    reference = run(x, seed=5, step=3, impl="reference")
    assert same(whole, reference)
    assert same(whole, run(x, seed=5, step=torch.tensor(3), impl=impl))
    for some in (slice(0, 1), slice(3, 9), slice(11, 12)):
        ids = torch.arange(12)[some]
        part = run(x[some], seed=5, step=3, sample_ids=ids, impl=impl)
        assert same(part, [y[some] for y in whole])
    for change in ({"seed": 6}, {"step": 4}, {"seed": 5 + (1 << 32)}):
        other = run(x, **{"seed": 5, "step": 3, "impl": impl} | change)
        assert not torch.equal(other[-1], whole[-1])


def test_tasks_share_no_numbers():
    labels = [run(torch.zeros(8000, 1, 21, 21), seed=1)[-1] for run in DRAWN.values()]
    labels = torch.stack(labels).double()
    assert (torch.corrcoef(labels) - torch.eye(3)).abs().max() < 4.5 / math.sqrt(8000)


@pytest.mark.parametrize("task", DRAWN)
def test_gradients_flow(task):
    x = torch.randn(2, 2, 20, 20, dtype=torch.float64, requires_grad=True)
    assert same(DRAWN[task](x.detach(), seed=1), [y.detach() for y in DRAWN[task](x, seed=1)])
    torch.autograd.gradcheck(lambda x: DRAWN[task](x, seed=1)[0], x, fast_mode=True)


@pytest.mark.parametrize("task", DRAWN)
def test_compiles_into_one_graph(task):
    torch._dynamo.reset()
    x, step = torch.randn(3, 3, 21, 21), torch.tensor(2)
    compiled = torch.compile(DRAWN[task], fullgraph=True, backend="aot_eager")
    assert same(compiled(x, seed=1, step=step), DRAWN[task](x, seed=1, step=2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.complex128])
def test_opcheck_and_elements_of_every_size(dtype):
    x = torch.randint(0, 2, (2, 3, 6, 7)).to(dtype)
    corners = torch.tensor([[[0, 0], [2, 3]], [[3, 1], [1, 4]]], dtype=torch.int32)
    for images in layouts(x):
        torch.library.opcheck(torch.ops.fastssl.patch_tiles, (images, corners, 3, 3))
        found = torch.ops.fastssl.patch_tiles(images, corners, 3, 3)
        assert torch.equal(found, reference_pretext.tiles(x, corners, 3, 3))
        assert torch.equal(found[1, 0], x[1, :, 3:6, 1:4])


@native
@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (4, 0), (0, 5)])
def test_no_tile_is_read_outside_an_image(corner):
    corners = torch.tensor([[[0, 0], corner]], dtype=torch.int32)
    with pytest.raises(RuntimeError, match="the tile must be inside the image"):
        torch.ops.fastssl.patch_tiles(torch.zeros(1, 1, 6, 7), corners, 3, 3)


def test_no_images():
    x = torch.zeros(0, 3, 12, 12)
    assert jigsaw(x, permutations=PERMUTATIONS, seed=0)[0].shape == (0, 9, 3, 4, 4)
    assert relative_patches(x, 3, 1, 0, seed=0)[0].shape == (0, 3, 3, 3)
    assert rotate4(x, seed=0)[0].shape == x.shape

"""Random plans: the same bits everywhere, each library's definition, uniform distributions."""

import itertools
import math

import pytest
import torch
from patch_plan_cases import (
    IDS,
    LEAST,
    check,
    chi_square,
    largest_deviation,
    lightly,
    probability_of,
    same,
)

from fastssl._library import _C
from fastssl.ops.patch.plan import MaskPlan
from fastssl.ops.patch.random_masks import (
    ROUNDINGS,
    grid_masks,
    kept_patches,
    random_masks,
    simmim_masks,
    tube_masks,
)

CASES = [
    (random_masks, {"length": 196, "ratio": 0.75}),
    (random_masks, {"length": 197, "ratio": 0.6, "ordered": True}),
    (random_masks, {"length": (7, 9), "ratio": 0.5, "rounding": "videomae"}),
    (random_masks, {"length": (2, 3, 5), "ratio": 0.5, "rounding": "simmim"}),
    (random_masks, {"length": 1, "ratio": 0.9, "rounding": "timm"}),
    (random_masks, {"length": 31, "ratio": torch.linspace(0, 0.95, len(IDS))}),
    (random_masks, {"length": 30, "ratio": torch.linspace(0, 0.95, len(IDS)), "ordered": True}),
    (tube_masks, {"grid": (8, 14, 14), "ratio": 0.9}),
    (tube_masks, {"grid": (1, 3, 2), "ratio": 0.5}),
    (simmim_masks, {"grid": (48, 48), "cell": 8}),
    (simmim_masks, {"grid": (6, 20), "cell": (3, 5)}),
    (grid_masks, {"grid": (16, 8)}),
    (grid_masks, {"grid": (6, 4), "cell": 1, "ratio": 0.4}),
]


@pytest.mark.parametrize(("function", "arguments"), CASES)
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (0x123456789ABCDEF, 5), (3, (1 << 32) - 1)])
def test_same_bits_in_every_implementation(function, arguments, seed, step, impl):
    settings = {"seed": seed, "sample_ids": IDS, **arguments}
    ours = function(len(IDS), step=step, impl=impl, **settings)
    assert same(ours, function(len(IDS), step=step, impl="reference", **settings))
    assert same(ours, function(len(IDS), step=torch.tensor(step), impl=impl, **settings))
    check(ours, ordered=function is not random_masks or arguments.get("ordered", False))
    if ours.length > 30:
        assert not same(ours, function(len(IDS), step=step ^ 1, impl=impl, **settings))
        assert not same(ours, function(len(IDS), step=step, impl=impl, **settings | {"seed": 1}))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 100, 1023, 1024, 4096])
def test_lengths_and_extreme_ratios(length, impl):
    for ratio in (0, 0.5, math.nextafter(1, 0)):
        settings = {"length": length, "ratio": ratio, "seed": 1}
        ours = random_masks(5, impl=impl, **settings)
        assert same(ours, random_masks(5, impl="reference", **settings))
        check(ours, ordered=False)
        assert ours.keep == (length if ratio == 0 else length // 2 if ratio == 0.5 else 0)


def test_a_plan_depends_on_nothing_but_its_counters(impl):
    settings = {"length": (5, 8), "ratio": 0.7, "seed": 4, "step": 9, "impl": impl}
    whole = random_masks(300, **settings)
    for some in (slice(0, 1), slice(7, 131), slice(299, 300)):
        ids = torch.arange(600).view(300, 2)[some, 0] // 2  # strided
        part = random_masks(len(ids), sample_ids=ids, **settings)
        assert torch.equal(part.ids_shuffle, whole.ids_shuffle[some])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert same(random_masks(300, **settings), whole)
    finally:
        torch.set_num_threads(before)


def test_ordered_has_the_same_mask(impl):
    settings = {"length": 50, "ratio": 0.6, "seed": 2, "impl": impl}
    one, other = random_masks(20, **settings), random_masks(20, ordered=True, **settings)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.ids_keep.sort(1).values, other.ids_keep)
    assert not torch.equal(one.ids_keep, other.ids_keep)


def mae(noise, ratio):
    """He et al. 2022, written out."""
    keep = int(noise.shape[1] * (1 - ratio))
    shuffle = noise.argsort(1)
    restore = shuffle.argsort(1)
    mask = torch.ones_like(noise)
    mask[:, :keep] = 0
    return shuffle[:, :keep], mask.gather(1, restore).bool(), restore


@pytest.mark.parametrize("ratio", [0, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("length", [1, 10, 49, 196, 1568])
def test_parity_with_mae_for_the_same_noise(length, ratio):
    noise = torch.rand(9, length, dtype=torch.float64)
    plan = random_masks(9, length, ratio, seed=None, noise=noise)
    check(plan, ordered=False)
    for ours, theirs in zip(
        (plan.ids_keep, plan.mask, plan.ids_restore), mae(noise, ratio), strict=True
    ):
        assert torch.equal(ours, theirs)
    ordered = random_masks(9, length, ratio, seed=None, noise=noise, ordered=True)
    check(ordered)
    assert torch.equal(ordered.mask, plan.mask)
    assert ordered.keep == plan.keep


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ties_in_the_noise_go_by_index(dtype):
    noise = (torch.rand(30, 200) * 8).floor().to(dtype)
    plan = random_masks(30, 200, 0.5, seed=None, noise=noise)
    for row, found in zip(noise.tolist(), plan.ids_shuffle.tolist(), strict=True):
        assert found == sorted(range(200), key=lambda p: (row[p], p))


@pytest.mark.parametrize(
    ("length", "ratio", "wanted"),
    [
        (196, 0.9, (19, 19, 19, 20)),
        (196, 0.6, (78, 78, 78, 79)),
        (196, 0.75, (49, 49, 49, 49)),
        (100, 0.9, (9, 9, 10, 10)),
        (10, 0.9, (0, 1, 1, 1)),
        (36, 0.6, (14, 14, 14, 15)),
    ],
)
def test_numbers_of_kept_patches(length, ratio, wanted):
    assert ROUNDINGS == ("mae", "timm", "simmim", "videomae")
    for rounding, keep in zip(ROUNDINGS, wanted, strict=True):
        plan = random_masks(2, length, ratio, seed=0, rounding=rounding)
        assert plan.keep == keep == kept_patches(length, ratio, rounding)
        assert ((~plan.mask).sum(1) == keep).all()


def test_each_library_rounds_in_its_own_way():
    definitions = {
        "mae": lambda n, r: int(n * (1 - r)),
        "timm": lambda n, r: max(1, int(n * (1.0 - r))),
        "simmim": lambda n, r: n - math.ceil(n * r),
        "videomae": lambda n, r: n - int(r * n),
    }
    for length in (1, 2, 7, 10, 36, 49, 100, 196, 197, 1568, 4096):
        ratios = [i / 40 for i in range(40)]
        each = torch.tensor(ratios, dtype=torch.float64)
        for rounding, keep in definitions.items():
            found = random_masks(40, length, each, seed=0, rounding=rounding)
            wanted = [keep(length, ratio) for ratio in ratios]
            assert found.keep_lengths.tolist() == wanted
            assert [kept_patches(length, ratio, rounding) for ratio in ratios] == wanted


def test_a_ratio_for_each_sample(impl):
    ratio = torch.tensor([0.0, 0.25, 0.5, 0.9])
    plan = random_masks(4, 20, ratio, seed=1, impl=impl)
    assert plan.keep == 20
    assert plan.keep_lengths.tolist() == [20, 15, 10, 2]
    assert (~plan.mask).sum(1).tolist() == [20, 15, 10, 2]
    # The same draw as with one ratio: only the cut is elsewhere.
    assert torch.equal(plan.ids_shuffle, random_masks(4, 20, 0.5, seed=1, impl=impl).ids_shuffle)
    noise = torch.rand(4, 20)
    for ordered in (False, True):
        plan = random_masks(4, 20, ratio, seed=None, noise=noise, ordered=ordered)
        check(plan, ordered)
        assert plan.keep_lengths.tolist() == [20, 15, 10, 2]


def test_tubes_are_the_same_in_each_frame(impl):
    plan = tube_masks(6, (5, 4, 7), 0.9, seed=3, impl=impl)
    frames = plan.mask.view(6, 5, 28)
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    assert (frames.sum(2) == int(0.9 * 28)).all()
    assert plan.keep == 5 * (28 - 25)
    spatial = random_masks(6, (4, 7), 0.9, seed=3, rounding="videomae", impl=impl)
    assert torch.equal(spatial.mask, frames[:, 0])


@pytest.mark.parametrize(
    ("function", "removed"), [(simmim_masks, math.ceil(12 * 0.7)), (grid_masks, 12 - 3)]
)
def test_cells_are_kept_or_removed_whole(function, removed, impl):
    plan = function(9, (12, 20), 0.7, cell=(4, 5), seed=3, impl=impl)
    cells = plan.mask.view(9, 3, 4, 4, 5)
    assert torch.equal(cells, cells[:, :, :1, :, :1].expand_as(cells))
    assert (cells[:, :, 0, :, 0].sum((1, 2)) == removed).all()
    assert plan.keep == (12 - removed) * 20


def test_parity_with_lightly():
    utils = lightly("models.utils")
    keep, _ = utils.random_grid_token_mask((2, 65), 0.75, num_prefix_tokens=1, grid_size=4)
    assert grid_masks(2, (8, 8), seed=0).keep == keep.shape[1] - 1
    for ratio in (0.3, 0.6, 0.75, 0.9):
        keep, _ = utils.random_token_mask((2, 197), ratio)
        assert random_masks(2, 196, ratio, seed=0).keep == keep.shape[1] - 1


def test_all_orders_and_all_subsets_are_as_likely():
    plan = random_masks(40_000, 4, 0.5, seed=3)
    codes = (plan.ids_shuffle * torch.tensor([64, 16, 4, 1])).sum(1)
    wanted = sorted(64 * a + 16 * b + 4 * c + d for a, b, c, d in itertools.permutations(range(4)))
    values, counts = codes.unique(return_counts=True)
    assert values.tolist() == wanted
    assert chi_square(counts, [1 / 24] * 24) > LEAST
    plan = random_masks(40_000, 7, 0.6, seed=4, ordered=True)
    counts = (plan.mask * 2 ** torch.arange(7)).sum(1).unique(return_counts=True)[1]
    assert len(counts) == math.comb(7, 2)
    assert chi_square(counts, [1 / len(counts)] * len(counts)) > LEAST


def test_all_patches_and_pairs_are_as_likely():
    length, keep = 196, 49
    kept = (~random_masks(20_000, length, 0.75, seed=5).mask).double()
    p = keep / length
    statistic = ((kept.sum(0) - len(kept) * p) ** 2).sum().item() / (len(kept) * p * (1 - p))
    assert LEAST < probability_of(statistic * (length - 1) / length, length - 1) < 1 - LEAST
    pairs = kept.T @ kept / len(kept)
    wanted = p * (keep - 1) / (length - 1)
    off = (pairs - wanted)[~torch.eye(length, dtype=torch.bool)].abs().max().item()
    assert off < 5 * math.sqrt(wanted * (1 - wanted) / len(kept))
    # Neighbours in the batch and in time are independent.
    later = (~random_masks(20_000, length, 0.75, seed=5, step=1).mask).double()
    assert largest_deviation(kept * later, p * p) < 4.5
    assert largest_deviation(kept[1:] * kept[:-1], p * p) < 4.5


def test_batches_of_none(impl):
    for plan in (
        random_masks(0, 9, 0.5, seed=0, impl=impl),
        random_masks(0, 9, 0.5, seed=None, noise=torch.rand(0, 9)),
        tube_masks(0, (2, 3, 4), 0.5, seed=0, impl=impl),
        grid_masks(0, (8, 8), seed=0, impl=impl),
    ):
        assert plan.mask.shape == (0, plan.length)


@pytest.mark.parametrize("cell", [[1, 1, 1], [1, 2, 3]])
@pytest.mark.parametrize("ordered", [False, True])
def test_opcheck(cell, ordered):
    step, lengths = torch.tensor(3), torch.tensor([0, 1, 2, 4, 3, 1, 0, 2, 5])
    for rest in ((None, None), (lengths, step)):
        arguments = (IDS, *rest, 7, 11, [2, 4, 6], cell, 5, ordered)
        torch.library.opcheck(torch.ops.fastssl.patch_random.default, arguments)


@pytest.mark.parametrize("step", [2, torch.tensor(2)])
def test_compile(step):
    def plan(ids, step):
        plan = random_masks(9, (4, 5), 0.75, seed=3, step=step, sample_ids=ids)
        return plan.ids_keep, plan.mask, plan.ids_restore

    compiled = torch.compile(plan, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(compiled(IDS, step), plan(IDS, step), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.skipif(_C is None, reason="no native library")
def test_the_native_operators_are_registered():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in ("random", "blocks", "inverse_block", "multiblock"):
        assert has(f"fastssl::patch_{name}", "CPU")


def test_a_plan_of_a_mask_is_its_raster_order():
    mask = random_masks(9, (6, 7), 0.4, seed=1, ordered=True)
    assert same(mask, MaskPlan.from_mask(mask.mask, (6, 7), keep=mask.keep))

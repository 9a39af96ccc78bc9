"""Contexts and targets: the same bits everywhere, no edge out of reach, the published defects."""

import math

import pytest
import torch
from patch_plan_cases import IDS, LEAST, check, chi_square, lightly, same

from fastssl.ops.patch.multiblock_masks import multiblock_masks
from fastssl.ops.patch.plan import MaskPlan

# What is left of a row in the published code at its own configuration, 16 x 16 patches, batches of
# 128: measured over 30 batches.
PUBLISHED = torch.tensor(
    [77, 64, 53, 43, 32, 24, 20, 18, 17, 18, 18, 16, 10, 5, 1, 0],  # per cent
)
SETTINGS = [
    {"grid": (16, 16)},
    {"grid": (16, 16), "compat": "reference"},
    {"grid": (14, 14), "allow_overlap": True},
    {"grid": (9, 66), "targets": 2},
    {"grid": (3, 3), "min_keep": 0},
    {"grid": (1, 20), "min_keep": 1, "targets": 1},
    {"grid": (4, 4), "min_keep": 3, "compat": "reference", "targets": 6},
    # Contexts so small that targets have to give way.
    {"grid": (8, 8), "context_scale": (0.2, 0.3), "target_scale": (0.5, 0.8), "min_keep": 7},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("seed", "step"), [(0, 0), (0x123456789ABCDEF, (1 << 32) - 1), (7, 3)])
def test_same_bits_in_every_implementation(settings, seed, step, impl):
    arguments = {"seed": seed, "step": step, "sample_ids": IDS, **settings}
    ours = multiblock_masks(len(IDS), impl=impl, **arguments)
    assert same(ours, multiblock_masks(len(IDS), impl="reference", **arguments))
    check(ours.context)
    if ours.context.length > 100:
        for change in ({"step": step ^ 1}, {"seed": seed ^ 1}, {"sample_ids": IDS + 1}):
            assert not same(ours, multiblock_masks(len(IDS), impl=impl, **arguments | change))


def test_a_plan_depends_on_nothing_but_its_counters(impl):
    settings = {"grid": (12, 9), "seed": 4, "step": 9, "impl": impl}
    whole = multiblock_masks(40, **settings)
    for some in (slice(0, 1), slice(7, 31), slice(39, 40)):
        ids = torch.arange(40)[some]
        part = multiblock_masks(len(ids), sample_ids=ids, **settings)
        assert torch.equal(part.targets, whole.targets[some])
        assert torch.equal(part.context.ids_shuffle, whole.context.ids_shuffle[some])
        assert torch.equal(part.context.keep_lengths, whole.context.keep_lengths[some])
        assert part.context.keep == whole.context.keep  # a shape: of the step alone


def boxes(ids, grid):
    """(top, left, height, width) of blocks [..., N], which must be whole rectangles."""
    rows, columns = ids // grid[1], ids % grid[1]
    top, left = rows.amin(-1), columns.amin(-1)
    height, width = rows.amax(-1) - top + 1, columns.amax(-1) - left + 1
    assert (height * width == ids.shape[-1]).all()
    assert (ids.diff(dim=-1) > 0).all()
    return top, left, height, width


@pytest.mark.parametrize("allow_overlap", [False, True])
def test_context_and_targets(allow_overlap):
    for step in range(20):
        plan = multiblock_masks(60, (16, 12), seed=2, step=step, allow_overlap=allow_overlap)
        _, _, height, width = boxes(plan.targets, (16, 12))
        assert len(height.unique()) == len(width.unique()) == 1  # one size for a batch
        assert 0.11 < plan.targets.shape[2] / 192 < 0.24
        seen = ~plan.context.mask
        hit = seen.gather(1, plan.targets.flatten(1))
        assert bool(hit.any()) == allow_overlap
        assert (seen.sum(1) > 10).all()
        assert 0.8 * 192 < plan.context.keep <= 192
        if allow_overlap:
            assert plan.context.keep_lengths is None
        # The whole context is inside the union of what is seen and the targets.
        union = seen.scatter(1, plan.targets.flatten(1), True)
        assert (union.sum(1) >= plan.context.keep).all()


def test_sizes_are_drawn_anew_at_each_step():
    plans = [multiblock_masks(1, (16, 16), seed=3, step=step) for step in range(300)]
    areas = torch.tensor([p.targets.shape[2] / 256 for p in plans])
    sides = torch.tensor([[int(x) for x in boxes(p.targets[:, 0], (16, 16))[2:]] for p in plans])
    assert areas.mean().item() == pytest.approx(0.175, abs=0.006)
    ratios = sides[:, 0] / sides[:, 1]
    assert ratios.mean().item() == pytest.approx(1.125, abs=0.05)
    assert abs(torch.corrcoef(torch.stack([areas, ratios]))[0, 1]) < 0.25
    contexts = torch.tensor([p.context.keep for p in plans])
    assert set(contexts.tolist()) == {15 * 15, 16 * 16}
    # int(256 u) of u uniform in [0.85, 1) rounds to 15 below 15.5^2 = 240.25.
    share = (contexts == 225).double().mean().item()
    assert share == pytest.approx((241 / 256 - 0.85) / 0.15, abs=0.09)


def test_context_minimum_holds_where_targets_give_way():
    settings = SETTINGS[-1] | {"seed": 5}
    overlaps = 0
    for step in range(30):
        plan = multiblock_masks(20, step=step, **settings)
        assert (plan.context.keep_lengths > 7).all()
        overlaps += int((~plan.context.mask).gather(1, plan.targets.flatten(1)).any(1).sum())
    assert overlaps > 100


def coverage(plan_of_step, batches, side):
    """Of each row and each column: the share of the patches that contexts have."""
    seen = sum(
        (~plan_of_step(step)).view(-1, side, side).double().mean(0) for step in range(batches)
    )
    return seen.mean(1) / batches, seen.mean(0) / batches


def ours(compat, overlap=False):
    def mask(step):
        settings = {"seed": 1, "step": step, "compat": compat, "allow_overlap": overlap}
        return multiblock_masks(128, (16, 16), **settings).context.mask

    return coverage(mask, 100, 16)


def test_contexts_reach_every_edge_alike():
    rows, columns = ours(None)
    for line in (rows, columns):
        assert (line - line.flip(0)).abs().max() < 0.015
        assert line.min() > 0.2
        assert line[0] > 0.5  # 15 of 16 rows begin at the first one or the second
    assert (rows - columns).abs().max() < 0.2  # targets are not square
    whole, _ = ours(None, overlap=True)
    assert (whole - whole.flip(0)).abs().max() < 0.03
    assert whole.min() > 0.6


def test_targets_are_uniform_over_their_places():
    plan = multiblock_masks(5000, (16, 16), seed=6)
    top, left, height, width = boxes(plan.targets, (16, 16))
    for start, size in ((top, int(height[0, 0])), (left, int(width[0, 0]))):
        counts = start.flatten().bincount()
        assert len(counts) == 16 - size + 1
        assert chi_square(counts.double(), [1 / len(counts)] * len(counts)) > LEAST
    assert abs(torch.corrcoef(top.T.double()) - torch.eye(4)).max() < 4.5 / math.sqrt(5000)


def test_the_published_defects_on_demand():
    rows, columns = ours("reference")
    assert (rows - PUBLISHED / 100).abs().max() < 0.03
    assert columns[-1] == 0
    plan = multiblock_masks(128, (16, 16), seed=1, compat="reference")
    assert plan.context.keep_lengths is None
    assert plan.targets.amax() < 15 * 16
    assert (plan.targets % 16).amax() < 15
    # The shortest of the batch is what all are cut to: the rest is alone by itself.
    lengths = [
        multiblock_masks(
            1, (16, 16), seed=1, compat="reference", sample_ids=torch.tensor([i])
        ).context.keep
        for i in range(128)
    ]
    assert plan.context.keep == min(lengths)
    assert len(set(lengths)) > 10


def test_the_profile_of_lightly():
    data = lightly("data")
    collator = data.IJEPAMaskCollator(
        (224, 224), 14, (0.85, 1.0), (0.15, 0.2), (0.75, 1.5), nenc=1, npred=4, min_keep=10
    )
    torch.manual_seed(1)

    def mask(step):
        _, contexts, _ = collator([torch.zeros(1)] * 128)
        return torch.ones(128, 256, dtype=torch.bool).scatter_(1, contexts[0], False)

    theirs, _ = coverage(mask, 8, 16)
    assert (theirs - ours("reference")[0]).abs().max() < 0.08


def test_moving_a_plan():
    plan = multiblock_masks(3, (8, 8), seed=0, min_keep=4)
    assert len(plan) == 3
    assert same(plan.to("cpu"), plan)
    assert plan.to("meta").targets.device.type == "meta"
    assert isinstance(plan.context, MaskPlan)


def test_batches_of_none(impl):
    for compat in (None, "reference"):
        plan = multiblock_masks(0, (16, 16), seed=0, impl=impl, compat=compat)
        assert plan.context.mask.shape == (0, 256)
        assert plan.targets.shape[:2] == (0, 4)


@pytest.mark.parametrize("inclusive", [False, True])
def test_opcheck(inclusive):
    for step in (None, torch.tensor(3)):
        arguments = (IDS, step, 7, 11, [9, 8], [8, 7], [3, 4], 3, 10, False, inclusive)
        torch.library.opcheck(torch.ops.fastssl.patch_multiblock.default, arguments)

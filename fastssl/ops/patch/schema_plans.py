"""The raw operators that draw plans: schemas, fallbacks, fake shapes.

All return (shuffle, restore, mask): int64 and bool [B, L], of samples with int64 ids [B]. `step`, a
0-d int64 tensor where the ids are, wins over `step_value`. Which random words decide what is said
in csrc/patch/plan.h. In raster order means kept patches, then removed ones, each in raster order.

patch_random: `grid` is (frames, rows, columns), `cell` the size of a cell of patches, which divides
  it; cells are ranked by (random word, index), and the first `keep`, or lengths[b], cells are kept.
  In the order of the words where cells are patches and not `ordered`, else in raster order.
patch_blocks, and lengths [B], the number of kept patches: removes rectangles of a `grid` (rows,
  columns). counts[b] patches, or, with `probability`, int(L * u), u uniform in one of `ratios`
  (low, high, low, high, ...). `least` and `most` limit an area, `aspect` has the logarithms of the
  least and the largest height / width. `exact` completes the count patch by patch, `roll` shifts
  the mask around the edges. In raster order.
patch_inverse_block: keeps the first `keep` patches of one rectangle. In raster order.
patch_multiblock: (target_ids [B, targets, h * w], shuffle, restore, mask, lengths). `context` and
  `target` are the blocks' (height, width); what is kept is the context without the targets.
  `inclusive`: blocks reach the last row and column. In raster order.
"""

import math

import torch

from fastssl._library import LIBRARY
from fastssl.ops.patch import reference_plans

_STEP = "Tensor? step, int step_value, int seed"
_PLAN = "Tensor, Tensor, Tensor"
LIBRARY.define(
    f"patch_random(Tensor sample_ids, Tensor? lengths, {_STEP}, int[] grid, int[] cell, int keep, "
    f"bool ordered) -> ({_PLAN})"
)
LIBRARY.define(
    f"patch_blocks(Tensor sample_ids, Tensor? counts, float[] ratios, float probability, {_STEP}, "
    f"int[] grid, int least, int most, float[] aspect, bool exact, bool roll) -> ({_PLAN}, Tensor)"
)
LIBRARY.define(
    f"patch_inverse_block(Tensor sample_ids, {_STEP}, int[] grid, int keep, float[] aspect, "
    f"bool roll) -> ({_PLAN})"
)
LIBRARY.define(
    f"patch_multiblock(Tensor sample_ids, {_STEP}, int[] grid, int[] context, int[] target, "
    f"int targets, int min_keep, bool allow_overlap, bool inclusive) -> (Tensor, {_PLAN}, Tensor)"
)


def _plan(sample_ids, grid):
    shape = (sample_ids.shape[0], math.prod(grid))
    new = sample_ids.new_empty
    return new(shape), new(shape), new(shape, dtype=torch.bool)


def _random_fake(sample_ids, lengths, step, step_value, seed, grid, cell, keep, ordered):
    return _plan(sample_ids, grid)


def _blocks_fake(
    sample_ids, counts, ratios, probability, step, step_value, seed, grid, least, most, aspect,
    exact, roll,
):  # fmt: skip
    return *_plan(sample_ids, grid), torch.empty_like(sample_ids)


def _inverse_block_fake(sample_ids, step, step_value, seed, grid, keep, aspect, roll):
    return _plan(sample_ids, grid)


def _multiblock_fake(
    sample_ids, step, step_value, seed, grid, context, target, targets, min_keep, allow_overlap,
    inclusive,
):  # fmt: skip
    ids = sample_ids.new_empty((sample_ids.shape[0], targets, math.prod(target)))
    return ids, *_plan(sample_ids, grid), torch.empty_like(sample_ids)


for _name, _fallback, _fake in (
    ("patch_random", reference_plans.random, _random_fake),
    ("patch_blocks", reference_plans.blocks, _blocks_fake),
    ("patch_inverse_block", reference_plans.inverse_block, _inverse_block_fake),
    ("patch_multiblock", reference_plans.multiblock, _multiblock_fake),
):
    LIBRARY.impl(_name, _fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastssl::{_name}", _fake, lib=LIBRARY)

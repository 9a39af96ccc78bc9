"""Errors of the functions that draw plans name the argument, what it was and what is allowed."""

import pytest
import torch

from fastssl._library import _C
from fastssl.ops.patch.block_masks import block_masks, inverse_block_masks
from fastssl.ops.patch.multiblock_masks import multiblock_masks
from fastssl.ops.patch.random_masks import grid_masks, random_masks, simmim_masks, tube_masks

FUNCTIONS = [
    (random_masks, {"length": 16, "ratio": 0.5}),
    (tube_masks, {"grid": (2, 4, 4), "ratio": 0.5}),
    (simmim_masks, {"grid": (4, 4), "cell": 2}),
    (grid_masks, {"grid": (4, 4), "cell": 2}),
    (block_masks, {"grid": (4, 4)}),
    (inverse_block_masks, {"grid": (4, 4)}),
    (multiblock_masks, {"grid": (6, 6)}),
]


@pytest.mark.parametrize(("function", "valid"), FUNCTIONS)
@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"batch": -1}, ValueError, "batch: got -1, must be at least 0"),
        ({"batch": 2.0}, TypeError, "batch: got 2.0, must be an integer"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"seed": 1 << 63}, ValueError, "seed: got"),
        ({"seed": 0.5}, TypeError, "seed: got 0.5"),
        ({"seed": None}, TypeError, "seed: got None"),
        ({"step": -1}, ValueError, "step: got -1"),
        ({"step": 1 << 32}, ValueError, "step: got"),
        ({"step": 1.0}, TypeError, "step: got 1.0"),
        ({"step": torch.zeros(1).long()}, (ValueError, TypeError), "step: got"),
        ({"sample_ids": torch.zeros(2)}, TypeError, "sample_ids: got torch.float32"),
        ({"sample_ids": torch.zeros(3).long()}, ValueError, r"sample_ids: got shape \(3,\)"),
        ({"sample_ids": [0, 1]}, TypeError, "sample_ids: got list"),
        ({"device": "nowhere"}, ValueError, "device: got 'nowhere', must be a torch.device"),
        ({"device": 1.5}, ValueError, "device: got 1.5"),
        ({"impl": "fast"}, ValueError, "impl: got 'fast'"),
    ],
)
def test_errors_of_common_arguments(function, valid, keywords, error, message):
    with pytest.raises(error, match=message):
        function(**{"batch": 2, "seed": 0, **valid, **keywords})


@pytest.mark.parametrize(("function", "valid"), FUNCTIONS[:6])
@pytest.mark.parametrize(
    ("ratio", "error"),
    [(1.0, ValueError), (-0.1, ValueError), (float("nan"), ValueError), ("0.5", TypeError)],
)
def test_errors_of_the_ratio(function, valid, ratio, error):
    with pytest.raises(error, match=r"ratio: got .*must be "):
        function(2, **valid | {"ratio": ratio}, seed=0)


@pytest.mark.parametrize(("function", "valid"), FUNCTIONS[1:])
@pytest.mark.parametrize(
    ("grid", "error", "message"),
    [
        (16, TypeError, "grid: got 16, must be a tuple"),
        ((4,), ValueError, r"grid: got \(4,\), must have . numbers"),
        ((2, 4, 4, 4), ValueError, r"grid: got \(2, 4, 4, 4\)"),
    ],
)
def test_errors_of_the_grid(function, valid, grid, error, message):
    with pytest.raises(error, match=message):
        function(2, **valid | {"grid": grid}, seed=0)


@pytest.mark.parametrize(
    ("function", "keywords", "error", "message"),
    [
        (random_masks, {"length": 0}, ValueError, r"length: got \(0,\), must be at least 1"),
        (random_masks, {"length": 4.0}, TypeError, "length: got 4.0"),
        (random_masks, {"length": (4, 4.0)}, TypeError, "length: got"),
        (random_masks, {"length": 1 << 24}, ValueError, r"length: got .* at most 2\^23"),
        (random_masks, {"rounding": "up"}, ValueError, "rounding: got 'up', must be one of mae"),
        (random_masks, {"ordered": 1}, TypeError, "ordered: got 1, must be True or False"),
        (random_masks, {"ratio": torch.rand(3)}, ValueError, r"ratio: got shape \(3,\)"),
        (random_masks, {"ratio": torch.zeros(2).long()}, TypeError, "ratio: got dtype torch.int64"),
        (random_masks, {"ratio": torch.tensor([0.0, 1.0])}, ValueError, r"ratio: got \[0.0, 1.0\]"),
        (random_masks, {"noise": torch.rand(2, 15)}, ValueError, r"noise: got shape \(2, 15\)"),
        (random_masks, {"noise": torch.rand(1, 16)}, ValueError, r"noise: got shape \(1, 16\)"),
        (random_masks, {"noise": torch.zeros(2, 16).int()}, TypeError, "noise: got torch.int32"),
        (random_masks, {"noise": [0.1]}, TypeError, "noise: got list"),
        (random_masks, {"noise": torch.full((2, 16), float("nan"))}, ValueError, "noise: got NaN"),
        (
            random_masks,
            {"noise": torch.rand(2, 16), "device": "meta"},
            ValueError,
            "device: got meta, must be that of noise, cpu",
        ),
        (tube_masks, {"rounding": "up"}, ValueError, "rounding: got 'up'"),
        (simmim_masks, {"cell": 3}, ValueError, r"cell: got \(3, 3\), must divide the grid"),
        (simmim_masks, {"cell": 0}, ValueError, "cell: got"),
        (grid_masks, {"cell": (2, 3)}, ValueError, r"cell: got \(2, 3\), must divide"),
        (grid_masks, {"cell": 2.0}, TypeError, "cell: got 2.0"),
        (block_masks, {"counts": 17}, ValueError, r"counts: got 17, must be in \[0, 16\]"),
        (block_masks, {"counts": -1}, ValueError, "counts: got -1"),
        (block_masks, {"counts": 1.5}, TypeError, "counts: got 1.5"),
        (block_masks, {"counts": torch.tensor([1.0, 2])}, TypeError, "counts: got dtype"),
        (block_masks, {"counts": torch.tensor([1])}, ValueError, r"counts: got shape \(1,\)"),
        (block_masks, {"counts": torch.tensor([1, 17])}, ValueError, r"counts: got \[1, 17\]"),
        (block_masks, {"ratio": (0.5, 0.1)}, ValueError, "ratio: got .* low must not be above"),
        (block_masks, {"ratio": (0.1, 1.0)}, ValueError, "ratio: got 1.0"),
        (block_masks, {"ratio": (0.1, 0.2, 0.3)}, TypeError, "ratio: got .* tuple"),
        (block_masks, {"ratio": []}, ValueError, "ratio: got a list of 0"),
        (block_masks, {"ratio": [0.1] * 65}, ValueError, "ratio: got a list of 65"),
        (block_masks, {"ratio": [[0.1, 0.2]]}, TypeError, "ratio: got"),
        (block_masks, {"probability": 1.1}, ValueError, "probability: got 1.1"),
        (block_masks, {"least": 0}, ValueError, "least: got 0"),
        (block_masks, {"most": 3}, ValueError, "most: got 3, must be at least least = 16"),
        (block_masks, {"aspect": (0, 1)}, ValueError, "aspect: got 0"),
        (block_masks, {"aspect": (2.0, 1.0)}, ValueError, "aspect: got"),
        (block_masks, {"aspect": 1.0}, TypeError, "aspect: got 1.0"),
        (block_masks, {"exact": None}, TypeError, "exact: got None"),
        (block_masks, {"roll": 1}, TypeError, "roll: got 1"),
        (inverse_block_masks, {"aspect": (2.0, 1.0)}, ValueError, "aspect: got"),
        (inverse_block_masks, {"roll": 1}, TypeError, "roll: got 1"),
        (multiblock_masks, {"step": torch.tensor(1)}, TypeError, "step: got a tensor"),
        (multiblock_masks, {"compat": "lightly"}, ValueError, "compat: got 'lightly'"),
        (multiblock_masks, {"context_scale": (0, 1)}, ValueError, r"context_scale: got \(0, 1\)"),
        (multiblock_masks, {"target_scale": (0.1, 1.1)}, ValueError, "target_scale: got 1.1"),
        (multiblock_masks, {"target_aspect": (3, 2)}, ValueError, "target_aspect: got"),
        (multiblock_masks, {"targets": 0}, ValueError, "targets: got 0"),
        (multiblock_masks, {"targets": 2.0}, TypeError, "targets: got 2.0"),
        (multiblock_masks, {"min_keep": 36}, ValueError, "min_keep: got 36, must be below 25"),
        (multiblock_masks, {"min_keep": -1}, ValueError, "min_keep: got -1"),
        (multiblock_masks, {"allow_overlap": 0}, TypeError, "allow_overlap: got 0"),
        (
            multiblock_masks,
            {"grid": (1, 36), "min_keep": 0, "compat": "reference"},
            ValueError,
            r"grid: got \(1, 36\), must be at least 2 x 2",
        ),
    ],
)
def test_errors_of_a_function(function, keywords, error, message):
    with pytest.raises(error, match=message):
        function(**{"batch": 2, "seed": 0, **dict(FUNCTIONS)[function], **keywords})


@pytest.mark.skipif(_C is None, reason="no native library")
def test_the_raw_operators_protect_memory():
    ids, ops = torch.arange(3), torch.ops.fastssl
    for grid, cell in (([1, 4, 4], [1, 3, 3]), ([1, 0, 4], [1, 1, 1]), ([4, 4], [1, 1])):
        with pytest.raises((RuntimeError, ValueError, ZeroDivisionError)):
            ops.patch_random(ids, None, None, 0, 0, grid, cell, 3, False)
    with pytest.raises(RuntimeError, match="lengths must be int64"):
        ops.patch_random(ids, ids[:2], None, 0, 0, [1, 4, 4], [1] * 3, 3, False)
    with pytest.raises(RuntimeError, match="step must be one int64"):
        ops.patch_random(ids, None, torch.tensor(0.5), 0, 0, [1, 4, 4], [1] * 3, 3, False)
    with pytest.raises(RuntimeError, match="sample_ids must be int64"):
        ops.patch_random(ids.double(), None, None, 0, 0, [1, 4, 4], [1] * 3, 3, False)
    with pytest.raises(RuntimeError, match="counts must be int64"):
        rest = ([4, 4], 4, 16, [-1.0, 1.0], True, False)
        ops.patch_blocks(ids, ids[:2], [0.1, 0.2], 1.0, None, 0, 0, *rest)
    with pytest.raises(RuntimeError, match="ratios must be"):
        ops.patch_blocks(ids, None, [0.1], 1.0, None, 0, 0, *rest)
    with pytest.raises(RuntimeError, match="keep must be"):
        ops.patch_inverse_block(ids, None, 0, 0, [4, 4], 17, [-1.0, 1.0], False)
    with pytest.raises(RuntimeError, match="must fit the grid"):
        ops.patch_multiblock(ids, None, 0, 0, [4, 4], [5, 4], [2, 2], 4, 1, False, True)
    # A count beyond the grid, which is not looked at on a GPU, removes all there is.
    many = ops.patch_blocks(ids, torch.tensor([-5, 17, 1 << 40]), [], 1.0, None, 0, 0, *rest)
    assert many[2].sum(1).tolist() == [0, 16, 16]

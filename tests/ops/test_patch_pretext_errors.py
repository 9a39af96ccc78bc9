"""Errors of the pretext tasks name the argument, what it was and what is allowed."""

import pytest
import torch

from fastssl._library import _C
from fastssl.ops.patch.permutations import hamming_permutations
from fastssl.ops.patch.pretext import jigsaw, relative_patches, rotate4

X = torch.zeros(2, 3, 12, 15)
SET = hamming_permutations(4, 9)
TWICE = SET.clone()
TWICE[2, 0] = TWICE[2, 1]


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"images": None}, TypeError, "images: got NoneType, must be a tensor"),
        ({"images": X[0]}, ValueError, r"images: got shape \(3, 12, 15\), must be \[B, C, H, W\]"),
        ({"grid": 13}, ValueError, r"grid: got 13, must be at most height and width, \(12, 15\)"),
        ({"grid": 0}, ValueError, "grid: got 0, must be at least 1"),
        ({"grid": 3.0}, TypeError, "grid: got 3.0, must be an integer"),
        ({"grid": (3, 3, 1)}, ValueError, r"grid: got \(3, 3, 1\), must be one number or two"),
        ({"tile": 5}, ValueError, r"tile: got 5, must be at most a cell, \(4, 5\)"),
        ({"tile": (4, 6)}, ValueError, r"tile: got \(4, 6\), must be at most a cell"),
        ({"tile": True}, TypeError, "tile: got True, must be an integer"),
        ({"grid": 2}, ValueError, r"permutations: got shape \(4, 9\), must be \[N, 4\]"),
        ({"permutations": SET[:0]}, ValueError, r"permutations: got shape \(0, 9\), .* at least 1"),
        ({"permutations": SET[0]}, ValueError, r"permutations: got shape \(9,\)"),
        ({"permutations": SET.int()}, TypeError, "permutations: got torch.int32, must be an int64"),
        ({"permutations": [[0]]}, TypeError, "permutations: got list"),
        ({"permutations": TWICE}, ValueError, r"permutations\[2\]: got \[.*\], must be a permuta"),
        ({"permutations": SET + 1}, ValueError, r"permutations\[0\]: .* of 0 to 8"),
        ({"permutations": SET - 1}, ValueError, r"permutations\[0\]"),
        ({"seed": None}, TypeError, "seed: got None, must be an integer"),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"step": 1.5}, TypeError, "step: got 1.5"),
        ({"step": torch.zeros(1).long()}, ValueError, "step: got torch.int64"),
        ({"sample_ids": torch.zeros(3).long()}, ValueError, r"sample_ids: got shape \(3,\)"),
        ({"impl": "fast"}, ValueError, "impl: got 'fast'"),
        ({"impl": "cuda"}, RuntimeError, "impl='cuda'"),
    ],
)
def test_errors_of_jigsaw(keywords, error, message):
    settings = {"images": X, "permutations": SET, "seed": 0} | keywords
    with pytest.raises(error, match=message):
        jigsaw(settings.pop("images"), **settings)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, 3, 1, 1), ValueError, r"got 3, 1, 1, .* = 13 must be at most .* \(12, 15\)"),
        ((X, 0, 1, 1), ValueError, "tile: got 0, must be at least 1"),
        ((X, 2, -1, 0), ValueError, "gap: got -1, must be at least 0"),
        ((X, 2, 0, -1), ValueError, "jitter: got -1, must be at least 0"),
        ((X, 2.0, 0, 0), TypeError, "tile: got 2.0, must be an integer"),
        ((X, 2, 0, None), TypeError, "jitter: got None, must be an integer"),
        ((X[0], 2, 0, 0), ValueError, "images: got shape"),
    ],
)
def test_errors_of_relative_patches(arguments, error, message):
    with pytest.raises(error, match=message):
        relative_patches(*arguments, seed=0)


@pytest.mark.parametrize(
    ("images", "keywords", "error", "message"),
    [
        (X, {}, ValueError, r"images: got shape \(2, 3, 12, 15\), H and W must be equal"),
        (X, {"seed": 1}, ValueError, "H and W must be equal"),
        ([X], {}, TypeError, "images: got list"),
        (X[..., :12], {"seed": 0.5}, TypeError, "seed: got 0.5"),
        (X[..., :12], {"step": 1}, ValueError, "seed: got None, step and sample_ids need one"),
        (X[..., :12], {"sample_ids": torch.arange(2)}, ValueError, "seed: got None"),
        (X[..., :12], {"step": torch.tensor(0)}, ValueError, "seed: got None"),
    ],
)
def test_errors_of_rotate4(images, keywords, error, message):
    with pytest.raises(error, match=message):
        rotate4(images, **keywords)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((7, 3), {}, ValueError, r"count: got 7, must be in \[1, 3!\] = \[1, 6\]"),
        ((0, 3), {}, ValueError, "count: got 0"),
        ((1, 0), {}, ValueError, r"tiles: got 0, must be in \[1, 10\]"),
        ((1, 11), {}, ValueError, "tiles: got 11"),
        ((1.0, 3), {}, TypeError, "count: got 1.0, must be an integer"),
        ((1, True), {}, TypeError, "tiles: got True"),
        ((1, 3, "max"), {}, ValueError, "criterion: got 'max', must be one of max_avg, max_min"),
        ((1, 3), {"seed": -1}, ValueError, "seed: got -1"),
    ],
)
def test_errors_of_hamming_permutations(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        hamming_permutations(*arguments, **keywords)


@pytest.mark.skipif(_C is None, reason="no native library")
def test_an_implementation_without_gradient_says_so():
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="impl='cpu' has no gradient for images"):
        jigsaw(x, permutations=SET, seed=0, impl="cpu")
    with torch.no_grad():
        jigsaw(x, permutations=SET, seed=0, impl="cpu")

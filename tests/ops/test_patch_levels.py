"""The loss of levels in three colours, which a GPU computes its own way: csrc/patch/levels_team.h.

The same numbers, one byte further in memory, are loaded byte by byte: the results must have the
same bits. Against the definition by the measure of exactness in test_patch_team.py.
"""

import math

import pytest
import torch
from patch_cases import images_of, plan_of
from test_patch_team import OPS, check_loss, numbers_of, parts, prediction

import fastssl.masking  # noqa: F401, registers the operators
from fastssl.ops.patch.layout import ORDERS
from fastssl.ops.patch.schema import KINDS, STATISTICS

pytestmark = pytest.mark.skipif(
    not hasattr(OPS, "patch_loss_team"), reason="only development builds have host teams"
)

#: Shape and patch: MAE's; few pixels; three axes; lines of 32 pixels; one line.
SHAPES = [
    ((2, 3, 32, 48), (16, 16)),
    ((2, 3, 16, 24), (8, 8)),
    ((2, 3, 4, 8, 16), (2, 4, 8)),
    ((1, 3, 16, 64), (8, 32)),
    ((2, 3, 64), (8,)),
]


def moved(x):
    """The same values, a byte off every grid."""
    room = torch.empty(x.numel() + 1, dtype=x.dtype)
    return room[1:].view(x.shape).copy_(x)


def losses(images, pred, plan, patch, kind, statistics, order, norm_pix=True, threads=5, teams=2):
    mean, std = numbers_of(3)
    return OPS.patch_loss_team(
        images, pred, *parts(plan), list(patch), mean, std, norm_pix, KINDS.index(kind),
        STATISTICS.index(statistics), ORDERS.index(order), 0.7, 7, threads, teams,
    )  # fmt: skip


def case(shape, patch, varying=False):
    grid = tuple(n // p for n, p in zip(shape[2:], patch, strict=True))
    return images_of(shape, torch.uint8), plan_of(shape[0], grid, varying=varying)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_bits_are_those_of_any_images(shape, patch, dtype):
    images, plan = case(shape, patch)
    for removed_only in (False, True):
        pred = prediction(images, plan, patch, dtype, removed_only)
        for kind in ("mse", "l1", "smooth_l1"):
            for statistics in STATISTICS:
                for order in ORDERS:
                    how = (pred, plan, patch, kind, statistics, order)
                    ours, general = losses(images, *how), losses(moved(images), *how)
                    assert all(map(torch.equal, ours, general)), how[3:]
        how = (pred, plan, patch, "mse", "patch", "pqc", False)
        assert all(map(torch.equal, losses(images, *how), losses(moved(images), *how)))


@pytest.mark.parametrize("threads", [1, 7, 32])
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_against_the_definition(shape, patch, threads):
    images, plan = case(shape, patch, varying=threads == 7)
    pred = prediction(images, plan, patch, torch.bfloat16)
    for order in ORDERS:
        check_loss(images, pred, plan, patch, order=order, threads=(threads,), teams=3)


@pytest.mark.parametrize("level", [0, 77, 255])
def test_flat_patches(level):
    images, plan = case((1, 3, 32, 32), (16, 16))
    images[:] = level
    pred = prediction(images, plan, (16, 16))
    for statistics in STATISTICS:
        how = (pred, plan, (16, 16), "mse", statistics, "pqc")
        ours = losses(images, *how)
        assert all(x.isfinite().all() for x in ours)
        assert all(map(torch.equal, ours, losses(moved(images), *how)))


def test_a_prediction_that_lies_anyhow():
    images, plan = case((2, 3, 32, 48), (16, 16))
    pred = torch.randn(2, plan.length + 3, 768 + 16)[:, 1 : 1 + plan.length, 8:776]
    how = (plan, (16, 16), "mse", "patch", "pqc")
    ours = losses(images, pred, *how)
    assert all(map(torch.equal, ours, losses(images, pred.contiguous(), *how)))
    assert math.isfinite(ours[0])

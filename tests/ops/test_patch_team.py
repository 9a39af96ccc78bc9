"""The GPU's algorithms on patches, run on the CPU by teams whose threads take turns.

Against the definitions, by the measure of exactness that holds for every implementation; and to the
bit against themselves: the order in which threads run between two barriers must not matter. Where
it does, a barrier is missing.
"""

import math

import patch_cases
import pytest
import torch
from patch_cases import FLOATING, assert_exact, images_of, plan_of, statistics_of
from patch_plan_cases import IDS

import fastssl.masking  # noqa: F401, registers the operators
from fastssl.ops.patch import reference, schema
from fastssl.ops.patch.layout import ORDERS
from fastssl.ops.patch.schema import DTYPES, KINDS, STATISTICS

OPS = torch.ops.fastssl
FORWARDS, BACKWARDS, SHUFFLED = 0, 1, 7
SHAPES = [*patch_cases.SHAPES, ((2, 20, 8, 8), (4, 4))]
IMAGES = [torch.uint8, *FLOATING]

pytestmark = pytest.mark.skipif(
    not hasattr(OPS, "patch_loss_team"), reason="only development builds have host teams"
)


def parts(plan):
    return plan.ids_shuffle, plan.ids_restore, plan.keep_lengths, plan.keep


def case(shape, patch, dtype, varying=False, keep=None):
    grid = tuple(n // p for n, p in zip(shape[2:], patch, strict=True))
    return images_of(shape, dtype), plan_of(shape[0], grid, keep, varying=varying)


def numbers_of(channels):
    found = statistics_of(min(channels, 5))
    repeats = -(-channels // 5)
    return [list(found[n] * repeats)[:channels] for n in ("mean", "std")]


def in_all_orders(call, threads=(5,), turns=(FORWARDS, BACKWARDS, SHUFFLED)):
    """What the call gives, the same bits whatever the order of the threads."""
    first = None
    for count in threads:
        found = [call(order, count) for order in turns]
        found = [f if isinstance(f, tuple) else (f,) for f in found]
        for other in found[1:]:
            pairs = zip(found[0], other, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), "barrier missing"
        first = first or found[0]
    return first


def check_loss(
    images, pred, plan, patch, norm_pix=True, kind="mse", statistics="patch", order="pqc",
    threads=(5,), teams=2, turns=(FORWARDS, BACKWARDS, SHUFFLED),
):  # fmt: skip
    mean, std = numbers_of(images.shape[1])
    options = (plan, patch, norm_pix, kind, statistics, mean, std, order)

    def with_gradient(images, pred):
        leaf = pred.detach().requires_grad_()
        loss = reference.masked_patch_loss(images, leaf, *options)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    wide = images if images.dtype == torch.uint8 else images.double()
    truth, eager = with_gradient(wide, pred.double()), with_gradient(images, pred)
    arguments = (images, pred, *parts(plan), patch, mean, std, norm_pix, KINDS.index(kind),
                 STATISTICS.index(statistics), ORDERS.index(order))  # fmt: skip
    ours = in_all_orders(
        lambda turn, count: OPS.patch_loss_team(*arguments, 1.0, turn, count, teams),
        threads, turns,
    )  # fmt: skip
    alone, nothing = OPS.patch_loss_team(*arguments, 0.0, FORWARDS, threads[0], teams)
    assert torch.equal(alone, ours[0]) and nothing.numel() == 0
    compute = torch.promote_types(pred.dtype, torch.float32)
    assert_exact(ours[0], eager[0], truth[0], compute, "loss")
    assert_exact(ours[1], eager[1], truth[1], pred.dtype, "gradient")
    if pred.shape[1] == plan.length:
        assert not ours[1][~plan.mask].any(), "kept patches get no gradient"


def prediction(images, plan, patch, dtype=torch.float32, removed_only=False):
    rows = plan.length - plan.keep if removed_only else plan.length
    width = images.shape[1] * math.prod(patch)
    return torch.randn(len(plan), rows, width).to(dtype)


@pytest.mark.parametrize("removed_only", [False, True])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_loss(shape, patch, dtype, removed_only):
    images, plan = case(shape, patch, torch.uint8)
    check_loss(images, prediction(images, plan, patch, dtype, removed_only), plan, patch)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("statistics", [None, *STATISTICS])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_loss_of_every_kind(kind, statistics, order, dtype):
    images, plan = case((2, 3, 12, 16), (4, 4), dtype)
    pred = prediction(images, plan, (4, 4))
    how = (statistics is not None, kind, statistics or "patch", order)
    check_loss(images, pred, plan, (4, 4), *how, turns=(FORWARDS, SHUFFLED))


@pytest.mark.parametrize("pred_dtype", FLOATING)
@pytest.mark.parametrize("dtype", IMAGES)
def test_loss_of_every_dtype(dtype, pred_dtype):
    images, plan = case((2, 3, 8, 16), (4, 8), dtype)
    pred = prediction(images, plan, (4, 8), pred_dtype)
    for statistics in STATISTICS:
        check_loss(images, pred, plan, (4, 8), statistics=statistics, turns=(FORWARDS, SHUFFLED))


@pytest.mark.parametrize("threads", [1, 2, 32, 70])
@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_loss_for_any_number_of_threads_and_teams(kind, threads):
    images, plan = case((3, 3, 8, 24), (4, 4), torch.uint8)
    pred = prediction(images, plan, (4, 4))
    for teams in (1, 7, 1000):
        check_loss(images, pred, plan, (4, 4), kind=kind, threads=(threads,), teams=teams)


@pytest.mark.parametrize("keep", [0, 11, 12])
def test_loss_of_few_and_no_patches(keep):
    images, plan = case((2, 3, 12, 16), (4, 4), torch.uint8, keep=keep)
    check_loss(images, prediction(images, plan, (4, 4)), plan, (4, 4))
    if keep > 0:
        pred = prediction(images, plan, (4, 4), removed_only=True)
        check_loss(images, pred, plan, (4, 4))


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_loss_of_varying_lengths(kind):
    images, plan = case((6, 3, 12, 16), (4, 4), torch.uint8, varying=True)
    check_loss(images, prediction(images, plan, (4, 4)), plan, (4, 4), kind=kind, threads=(5, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_loss_of_strided_images_and_predictions(dtype):
    x = images_of((2, 12, 30, 3), dtype).permute(0, 3, 1, 2)[:, :, :, 2::2].flip(0)
    plan = plan_of(2, (3, 2))
    pred = torch.randn(3 * 28, 6, 2).permute(2, 1, 0)
    check_loss(x[..., :14], pred, plan, (4, 7))
    pred = torch.randn(2, 9, 100)[:, 1:7, 3:87]  # rows off the 16-byte grid
    check_loss(x[..., :14], pred, plan, (4, 7), order="cpq")


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("dtype", IMAGES)
def test_loss_of_flat_patches_is_finite(dtype, statistics):
    images, plan = case((1, 3, 8, 8), (4, 4), dtype)
    images[:, :, :4] = 200 if dtype == torch.uint8 else 0.7
    pred = prediction(images, plan, (4, 4))
    found = OPS.patch_loss_team(
        images, pred, *parts(plan), [4, 4], *numbers_of(3), True, 0, STATISTICS.index(statistics),
        0, 1.0, FORWARDS, 5, 2,
    )  # fmt: skip
    assert all(x.isfinite().all() for x in found)
    if dtype == torch.uint8:
        check_loss(images, pred, plan, (4, 4), statistics=statistics)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_gather(shape, patch, varying, order):
    for dtype, out in ((torch.uint8, torch.float32), (torch.float32, torch.bfloat16)):
        images, plan = case(shape, patch, dtype, varying)
        check_gather(images, plan, patch, order, out)


def check_gather(images, plan, patch, order, out):
    mean, std = numbers_of(images.shape[1])
    wide = images if images.dtype == torch.uint8 else images.double()
    truth = reference.gather_patches(wide, plan, patch, mean, std, order, torch.float64)
    eager = reference.gather_patches(images, plan, patch, mean, std, order, out)
    (ours,) = in_all_orders(
        lambda turn, threads: OPS.patch_gather_team(
            images, *parts(plan), patch, mean, std, ORDERS.index(order), DTYPES.index(out), turn,
            threads,
        ),
        threads=(5, 16),
    )  # fmt: skip
    assert_exact(ours, eager, truth, out, least=4.0)
    if plan.padding is not None:
        assert not ours[plan.padding].any()


@pytest.mark.parametrize("out", FLOATING)
@pytest.mark.parametrize("dtype", IMAGES)
def test_gather_of_every_dtype_and_stride(dtype, out):
    for shape, patch in (((2, 3, 16, 32), (8, 8)), ((2, 3, 4, 16, 16), (2, 4, 8))):
        images, plan = case(shape, patch, dtype)
        for order in ORDERS:
            check_gather(images, plan, patch, order, out)
            last = images.movedim(1, -1).contiguous().movedim(-1, 1)
            check_gather(last, plan, patch, order, out)
    images, plan = images_of((2, 3, 17, 70), dtype)[:, :, 1:, 3:67:2], plan_of(2, (2, 4))
    check_gather(images, plan, (8, 8), "cpq", out)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("width", [1, 12, 64])
@pytest.mark.parametrize("dtype", FLOATING)
def test_tokens(dtype, width, prefix, varying):
    compute, plan = schema.compute_dtype(dtype), plan_of(3, (5, 4), varying=varying)
    length = prefix + plan.length
    x, pos = torch.randn(3, length, width).to(dtype), torch.randn(length, width, dtype=compute)
    visible = torch.randn(3, prefix + plan.keep, width).to(dtype)
    token = torch.randn(width, dtype=compute)
    strided = torch.randn(length, 3, width + 5).to(dtype).transpose(0, 1)[..., 1 : 1 + width]
    for source in (x, strided, x.movedim(-1, 0).contiguous().movedim(0, -1)):
        for add in (None, pos):
            arguments = (source, add, *parts(plan), prefix)
            (ours,) = in_all_orders(lambda *how: OPS.patch_gather_tokens_team(*arguments, *how))  # noqa: B023
            assert torch.equal(ours, schema._gather_tokens(*arguments))
        (ours,) = in_all_orders(
            lambda turn, threads: OPS.patch_sum_removed_team(
                source, *parts(plan), prefix, turn, threads  # noqa: B023
            ),
            threads=(32, 96),
        )  # fmt: skip
        truth = schema._sum_removed(source.double(), *parts(plan), prefix)
        torch.testing.assert_close(ours, truth.to(compute), rtol=1e-6, atol=1e-6)
        assert ours.dtype == compute
    for out in dict.fromkeys((dtype, compute)):
        for token_or_none, add in ((token, pos), (None, None), (token, None)):
            add = None if add is None else add.to(schema.compute_dtype(out))
            arguments = (visible, token_or_none, add, *parts(plan), prefix, DTYPES.index(out))
            (ours,) = in_all_orders(lambda *how: OPS.patch_restore_tokens_team(*arguments, *how))  # noqa: B023
            assert torch.equal(ours, schema._restore_tokens(*arguments))


def test_sums_of_many_rows_and_columns():
    plan = plan_of(40, (30, 16))
    x = torch.randn(40, 480, 40)
    (ours,) = in_all_orders(
        lambda turn, threads: OPS.patch_sum_removed_team(x, *parts(plan), 0, turn, threads),
        threads=(64,),
    )
    truth = x.double()[plan.mask].sum(0)
    torch.testing.assert_close(ours, truth.float(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("count", [1, 24, 37])
@pytest.mark.parametrize("by_dtype", FLOATING)
@pytest.mark.parametrize("dtype", FLOATING)
def test_scale(dtype, by_dtype, count):
    x = torch.randn(count).to(dtype)
    for factor in (1.0, 0.75, -3.0):
        ours = x.clone()
        OPS.patch_scale_team_(ours, torch.tensor(factor, dtype=by_dtype))
        compute = schema.compute_dtype(dtype)
        assert torch.equal(ours, (x.to(compute) * factor).to(dtype))


@pytest.mark.parametrize("size", [(1, 1), (4, 16), (5, 7)])
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]
)
def test_tiles(dtype, size):
    x = torch.randint(0, 256, (3, 2, 18, 47)).to(dtype)
    g = torch.Generator().manual_seed(1)
    for images in (x, x[..., 3::2], x.movedim(1, -1).contiguous().movedim(-1, 1)):
        room = torch.tensor(images.shape[2:]) - torch.tensor(size) + 1
        corners = (torch.rand(3, 5, 2, generator=g) * room).int()
        expected = OPS.patch_tiles(images, corners, *size)
        (ours,) = in_all_orders(lambda *how: OPS.patch_tiles_team(images, corners, *size, *how))  # noqa: B023
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_mask_tokens(dtype):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1000, (len(IDS), 37), generator=g).to(dtype)
    special = torch.rand(ids.shape, generator=g) < 0.2
    for step in (None, torch.tensor(5)):
        for some in (None, special):
            arguments = (ids, some, IDS, step, 5, 2**40 + 1, 7, 1000, [0.5, 0.6, 0.3])
            expected = OPS.patch_mask_tokens(*arguments)
            ours = OPS.patch_mask_tokens_team(*arguments)
            assert all(map(torch.equal, ours, expected))


def check_plan(name, *arguments, threads=(5, 32)):
    """The bits of the CPU's serial team."""
    expected = getattr(OPS, name)(*arguments)
    team = getattr(OPS, f"{name}_team")
    for count in threads:
        ours = in_all_orders(lambda *how: team(*arguments, *how), threads=(count,))
        # An operator whose count cannot vary leaves the lengths empty.
        assert all(map(torch.equal, ours, expected))


DRAWN = (None, 3, 2**40 + 1)  # step, its number, seed


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("grid", "cell"),
    [([1, 1, 1], [1, 1, 1]), ([1, 14, 14], [1, 1, 1]), ([1, 1, 37], [1, 1, 1]),
     ([4, 3, 5], [4, 1, 1]), ([1, 8, 12], [1, 2, 4])],
)  # fmt: skip
def test_random_plans(grid, cell, ordered):
    cells = math.prod(g // c for g, c in zip(grid, cell, strict=True))
    for lengths in (None, torch.arange(len(IDS)) % (cells + 1)):
        check_plan("patch_random", IDS, lengths, *DRAWN, grid, cell, cells // 3, ordered)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("roll", [False, True])
@pytest.mark.parametrize("grid", [[14, 14], [7, 70], [3, 2]])
def test_block_plans(grid, roll, exact):
    aspect = [math.log(0.3), -math.log(0.3)]
    for counts in (None, torch.arange(len(IDS)) % (math.prod(grid) + 1)):
        check_plan(
            "patch_blocks", IDS, counts, [0.1, 0.5, 0.4, 0.4], 0.8, *DRAWN, grid, 4,
            math.prod(grid), aspect, exact, roll, threads=(3, 32),
        )  # fmt: skip


@pytest.mark.parametrize("roll", [False, True])
@pytest.mark.parametrize("keep", [0, 1, 50, 14 * 10])
def test_inverse_block_plans(keep, roll):
    check_plan(
        "patch_inverse_block", IDS, *DRAWN, [14, 10], keep, [math.log(0.5), math.log(2.0)], roll
    )


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("target", [[6, 6], [5, 7], [13, 13]])
def test_multiblock_plans(target, overlap):
    check_plan(
        "patch_multiblock", IDS, *DRAWN, [14, 14], [13, 14], target, 4, 10, overlap, True,
        threads=(3, 32),
    )  # fmt: skip


def test_an_index_out_of_range_is_found():
    images, plan = case((2, 3, 8, 8), (4, 4), torch.uint8)
    plan.ids_shuffle[1] = 9
    how = ([4, 4], *numbers_of(3))
    pred = torch.randn(2, 3, 48)
    with pytest.raises(RuntimeError, match="out of range"):
        OPS.patch_gather_team(images, *parts(plan), *how, 0, 1, FORWARDS, 1)
    with pytest.raises(RuntimeError, match="out of range"):
        OPS.patch_gather_tokens_team(torch.randn(2, 4, 8), None, *parts(plan), 0, FORWARDS, 1)
    with pytest.raises(RuntimeError, match="out of range"):
        OPS.patch_loss_team(
            images, pred, *parts(plan), *how, True, 0, 0, 0, 1.0, FORWARDS, 1, 1
        )  # fmt: skip

"""Visible patches, tokens and the masked loss: every implementation against float64."""

import pytest
import torch
from patch_cases import (
    FLOATING,
    SHAPES,
    assert_exact,
    check_loss,
    images_of,
    loss_and_gradient,
    plan_of,
    statistics_of,
)

from benchmarks.measure import peak_memory
from fastssl import masking
from fastssl.masking import (
    MaskPlan,
    gather_patches,
    gather_tokens,
    masked_patch_loss,
    patchify,
    restore_tokens,
)
from fastssl.ops.patch import reference
from fastssl.ops.patch.schema import KINDS, STATISTICS

IMAGES = [torch.uint8, *FLOATING]


def case(shape, patch, dtype, varying=False):
    grid = tuple(n // p for n, p in zip(shape[2:], patch, strict=True))
    return images_of(shape, dtype), plan_of(shape[0], grid, varying=varying)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_loss(shape, patch, dtype, impl):
    images, plan = case(shape, patch, torch.uint8)
    pred = torch.randn(*plan.mask.shape, patchify(images, patch).shape[2], dtype=dtype)
    check_loss(images, pred, plan, patch, impl, **statistics_of(shape[1]))


@pytest.mark.parametrize("order", ["pqc", "cpq"])
@pytest.mark.parametrize("statistics", [None, *STATISTICS])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_loss_of_every_kind(kind, statistics, order, dtype, impl):
    images, plan = case((3, 3, 24, 16), (8, 4), dtype)
    pred = 2 * torch.randn(3, 12, 96)
    how = {"statistics": statistics or "patch", "norm_pix": statistics is not None}
    check_loss(images, pred, plan, (8, 4), impl, kind=kind, order=order, **how)


@pytest.mark.parametrize("dtype", IMAGES)
@pytest.mark.parametrize("pred_dtype", [torch.float32, torch.float64])
def test_loss_of_images_of_every_type(dtype, pred_dtype, impl):
    images, plan = case((2, 3, 16, 16), (4, 4), dtype)
    pred = torch.randn(2, 16, 48, dtype=pred_dtype)
    check_loss(images, pred, plan, (4, 4), impl, **statistics_of(3))


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("keep", [0, 1, 11, 12])
def test_loss_of_few_and_many_patches(keep, varying, impl):
    images = images_of((4, 3, 12, 16))
    plan = plan_of(4, (3, 4), keep)
    if varying:
        lengths = torch.tensor([0, keep, keep // 2, 0])
        mask = plan.ids_restore >= lengths.unsqueeze(1)
        plan = MaskPlan(plan.ids_shuffle, plan.ids_restore, mask, keep, (3, 4), lengths)
    check_loss(images, torch.randn(4, 12, 48), plan, (4, 4), impl)
    if not plan.mask.any():
        assert masked_patch_loss(images, torch.randn(4, 12, 48), plan, 4, impl=impl) == 0


@pytest.mark.parametrize("keep", [0, 1, 5, 12])
def test_predictions_of_removed_patches_alone(keep, impl):
    images, plan = images_of((3, 3, 12, 16), torch.uint8), plan_of(3, (3, 4), keep)
    pred = torch.randn(3, 12 - keep, 48)
    if keep:
        check_loss(images, pred, plan, (4, 4), impl)
        full = torch.zeros(3, 12, 48).scatter(
            1, plan.ids_removed.unsqueeze(-1).expand_as(pred), pred
        )
        a, b = (masked_patch_loss(images, x, plan, 4, impl=impl) for x in (pred, full))
        torch.testing.assert_close(a, b)


def test_statistics_of_levels_are_exact(impl):
    """A nearly flat patch far from zero: one level in one pixel decides."""
    if impl == "reference":
        pytest.skip("eager statistics lose these digits; that is what this is about")
    images = torch.full((1, 3, 32, 32), 201, dtype=torch.uint8)
    images[:, :, ::16, ::16] += 1
    plan, pred = plan_of(1, (2, 2), 0), torch.zeros(1, 4, 768)
    options = ((16, 16), True, "mse", "patch", [0.485] * 3, [0.229] * 3, "pqc")
    truth = loss_and_gradient(reference.masked_patch_loss, images, pred.double(), plan, *options)
    pred.requires_grad_()
    loss = masked_patch_loss(images, pred, plan, 16, mean=0.485, std=0.229, impl=impl)
    gradient = torch.autograd.grad(loss, pred)[0]
    assert loss.item() == pytest.approx(truth[0].item(), rel=1e-6)
    assert (gradient.double() - truth[1] / 0.75).abs().max() <= 1e-6 * truth[1].abs().max()


@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_patches_stay_finite(value, impl):
    images = torch.full((2, 3, 8, 8), value, dtype=torch.uint8)
    pred = torch.randn(2, 4, 48, requires_grad=True)
    for statistics in STATISTICS:
        for x in (images, images.float() / 255):
            plan = plan_of(2, (2, 2))
            loss = masked_patch_loss(x, pred, plan, 4, statistics=statistics, impl=impl)
            expected = pred[plan.mask].square().mean()
            assert torch.autograd.grad(loss, pred)[0].isfinite().all()
            assert loss.item() == pytest.approx(expected.item(), rel=1e-3)


def test_nan_stays_in_its_patch(impl):
    images = images_of((1, 3, 8, 8))
    images[0, 1, 0, 0] = torch.nan
    plan = plan_of(1, (2, 2), 0)
    pred = torch.randn(1, 4, 48, requires_grad=True)
    loss = masked_patch_loss(images, pred, plan, 4, impl=impl)
    gradient = torch.autograd.grad(loss, pred)[0]
    assert loss.isnan()
    assert gradient[0, 0].isnan().all()
    assert gradient[0, 1:].isfinite().all()


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("order", ["cpq", "pqc"])
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_gather_patches(shape, patch, order, dtype, impl):
    for images_dtype in (torch.uint8, dtype):
        images, plan = case(shape, patch, images_dtype, varying=shape[0] > 1)
        numbers = statistics_of(shape[1])
        both = (list(numbers["mean"]), list(numbers["std"]), order)
        wide = images if images_dtype == torch.uint8 else images.double()
        truth = reference.gather_patches(wide, plan, patch, *both, torch.float64)
        eager = reference.gather_patches(images, plan, patch, *both, dtype)
        ours = gather_patches(images, plan, patch, *both, dtype=dtype, impl=impl)
        assert ours.is_contiguous()
        assert_exact(ours, eager, truth, dtype)


def test_gathered_patches_are_copies_without_normalisation(impl):
    for dtype in FLOATING:
        images, plan = case((2, 3, 12, 8), (4, 4), dtype)
        expected = patchify(images, 4, "cpq").gather(
            1, plan.ids_keep.unsqueeze(-1).expand(-1, -1, 48)
        )
        assert torch.equal(gather_patches(images, plan, 4, impl=impl), expected)


def strided(x):
    """The same values: channels innermost, every second number of a wider tensor, transposed."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    made = [
        x.movedim(1, -1).contiguous().movedim(-1, 1),
        wide[..., ::2],
        x.transpose(-1, -2).contiguous().transpose(-1, -2),
    ]
    assert not any(y.is_contiguous() for y in made)
    return made


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_strides_of_images_and_predictions(dtype, impl):
    images, plan = case((3, 3, 16, 24), (8, 8), dtype)
    pred = torch.randn(3, 6, 192)

    def run(images, pred):
        return loss_and_gradient(
            lambda x, p: masked_patch_loss(x, p, plan, 8, impl=impl), images, pred
        )

    wanted, gathered = run(images, pred), gather_patches(images, plan, 8, impl=impl)
    for x in strided(images):
        assert torch.equal(gather_patches(x, plan, 8, impl=impl), gathered)
        torch.testing.assert_close(run(x, pred), wanted)
    for x in strided(pred):
        torch.testing.assert_close(run(images, x), wanted)


def test_strides_of_tokens(impl):
    plan, token = plan_of(3, (2, 3)), torch.randn(20)
    tokens, kept = torch.randn(3, 7, 20), torch.randn(3, 2, 20)
    gathered = gather_tokens(tokens, plan, prefix=1, impl=impl)
    restored = restore_tokens(kept, plan, token, prefix=1, impl=impl)
    for a, b in zip(strided(tokens), strided(kept), strict=True):
        assert torch.equal(gather_tokens(a, plan, prefix=1, impl=impl), gathered)
        assert torch.equal(restore_tokens(b, plan, token, prefix=1, impl=impl), restored)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 4])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(
    ("batch", "grid", "width"), [(3, (3, 4), 20), (1, (1,), 1), (2, (7,), 515)]
)
def test_gather_tokens(batch, grid, width, dtype, prefix, varying, impl):
    plan = plan_of(batch, grid, varying=varying)
    x = torch.randn(batch, prefix + plan.length, width, dtype=dtype)
    pos = torch.randn(1, prefix + plan.length, width, dtype=dtype)
    for positions in (None, pos, pos[0]):
        ours = gather_tokens(x, plan, positions, prefix=prefix, impl=impl)
        truth = reference.gather_tokens(
            x.double(), plan, None if positions is None else positions.double(), prefix
        )
        eager = reference.gather_tokens(x, plan, positions, prefix)
        assert_exact(ours, eager, truth, dtype)
        if positions is None:
            assert torch.equal(ours, eager)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 4])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(
    ("batch", "grid", "width"), [(3, (3, 4), 20), (1, (1,), 1), (2, (7,), 515)]
)
def test_restore_tokens(batch, grid, width, dtype, prefix, varying, impl):
    plan = plan_of(batch, grid, varying=varying)
    shapes = [(batch, prefix + plan.keep, width), (1, 1, width), (prefix + plan.length, width)]
    for types in ((dtype,) * 3, (dtype, torch.float32, torch.float32)):
        leaves = [torch.randn(s).to(t) for s, t in zip(shapes, types, strict=True)]
        upstream = torch.randn(batch, prefix + plan.length, width)

        def run(function, leaves, upstream=upstream):
            leaves = [x.detach().requires_grad_() for x in leaves]
            out = function(*leaves)
            return out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))

        results = [
            run(lambda v, t, p: restore_tokens(v, plan, t, p, prefix=prefix, impl=impl), leaves),
            run(lambda v, t, p: reference.restore_tokens(v, plan, t, p, prefix), leaves),
            run(
                lambda v, t, p: reference.restore_tokens(v, plan, t, p, prefix),
                [x.double() for x in leaves],
                upstream.to(torch.promote_types(types[0], types[1])).double(),
            ),
        ]
        names = ("tokens", "visible.grad", "mask_token.grad", "pos_embed.grad")
        for name, ours, eager, truth in zip(names, *results, strict=True):
            # Sums of up to B L terms: eager's own rounding may happen to be none.
            least = float(upstream.abs().sum((0, 1)).max()) if "grad" in name else 0.0
            assert_exact(ours, eager, truth, ours.dtype, name, least)


def test_gather_and_restore_are_inverse(impl):
    plan = plan_of(3, (3, 4))
    x = torch.randn(3, 13, 6)
    back = restore_tokens(
        gather_tokens(x, plan, prefix=1, impl=impl), plan, torch.zeros(6), prefix=1, impl=impl
    )
    assert torch.equal(back[:, :1], x[:, :1])
    assert torch.equal(back[:, 1:], x[:, 1:].masked_fill(plan.mask.unsqueeze(-1), 0))


def test_the_same_bits_from_call_to_call_and_for_any_number_of_threads(impl):
    images, plan = case((5, 3, 64, 64), (8, 8), torch.float32)
    pred, token = torch.randn(5, 64, 192), torch.randn(24, requires_grad=True)
    visible, upstream = torch.randn(5, 16, 24), torch.randn(5, 64, 24)

    def run():
        restored = restore_tokens(visible, plan, token, impl=impl)
        return (
            *loss_and_gradient(
                lambda x, p: masked_patch_loss(x, p, plan, 8, impl=impl), images, pred
            ),
            torch.autograd.grad(restored, token, upstream)[0],
        )

    threads = torch.get_num_threads()
    expected = run()
    try:
        for count in (threads, 1, 2):
            torch.set_num_threads(count)
            if impl != "reference" or count == threads:
                assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_a_trimmed_plan_computes_the_same(impl):
    plan = plan_of(3, (3, 4), 12, varying=True)
    trimmed = plan.trimmed()
    assert trimmed.keep == plan.keep_lengths.max() < 12
    x, token = torch.randn(3, 12, 5), torch.randn(5)
    kept = gather_tokens(x, trimmed, impl=impl)
    assert torch.equal(kept, gather_tokens(x, plan, impl=impl)[:, : trimmed.keep])
    assert torch.equal(
        restore_tokens(kept, trimmed, token, impl=impl),
        restore_tokens(gather_tokens(x, plan, impl=impl), plan, token, impl=impl),
    )
    fixed = plan_of(3, (3, 4), 5)
    assert fixed.trimmed() is fixed


def test_nothing_is_exported_that_is_not_there():
    assert all(hasattr(masking, name) for name in masking.__all__)


@pytest.mark.no_poison
def test_a_step_needs_less_than_a_mebibyte_beside_inputs_and_gradient():
    images, plan = images_of((64, 3, 224, 224)), plan_of(64, (14, 14))
    pred = torch.randn(64, 196, 768, requires_grad=True)

    def step():
        torch.autograd.grad(masked_patch_loss(images, pred, plan, 16), pred)

    step()
    peak = peak_memory(step)
    if peak is None:
        pytest.skip("this system does not tell")
    assert peak - pred.nbytes / 2**20 < 1

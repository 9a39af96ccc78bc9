"""More than one task, one chunk, one group: where work is divided, and joined again."""

import pytest
import torch
from patch_cases import FLOATING, assert_exact, check_loss, images_of, plan_of, statistics_of

from fastssl.masking import gather_patches, gather_tokens, masked_patch_loss, restore_tokens
from fastssl.ops.patch import reference


@pytest.mark.parametrize("keep", [0, 15, 33, 64])
def test_patches_of_several_tasks(keep, impl):
    images, plan = images_of((3, 3, 64, 64), torch.uint8), plan_of(3, (8, 8), keep)
    numbers = statistics_of(3)
    check_loss(images, torch.randn(3, 64, 192), plan, (8, 8), impl, **numbers)
    if 0 < keep < 64:
        check_loss(images, torch.randn(3, 64 - keep, 192), plan, (8, 8), impl, **numbers)
    both = (list(numbers["mean"]), list(numbers["std"]))
    truth, eager = (
        reference.gather_patches(images, plan, (8, 8), *both, "pqc", dtype)
        for dtype in (torch.float64, torch.float32)
    )
    assert_exact(
        gather_patches(images, plan, 8, *both, "pqc", impl=impl), eager, truth, eager.dtype
    )


@pytest.mark.parametrize("dtype", FLOATING)
def test_gradients_scaled_in_several_chunks(dtype, impl):
    """3 * loss has the gradient of loss, times 3, everywhere."""
    images, plan = images_of((5, 3, 64, 64), torch.uint8), plan_of(5, (8, 8))
    pred = torch.randn(5, 64, 192).to(dtype).requires_grad_()
    assert pred.numel() > 3 * (1 << 14)
    wide = pred.detach().double().requires_grad_()
    truth = torch.autograd.grad(
        3 * masked_patch_loss(images, wide, plan, 8, impl="reference"), wide
    )[0]
    ours = torch.autograd.grad(3 * masked_patch_loss(images, pred, plan, 8, impl=impl), pred)[0]
    error = (ours.double() - truth).abs().max()
    assert error <= 4 * max(torch.finfo(dtype).eps, 1e-7 * (dtype != torch.float64)) * truth.max()


@pytest.mark.parametrize("batch", [63, 64, 65, 100, 200])
def test_sums_over_many_samples(batch, impl):
    """Whole numbers: the mask token's gradient is exact."""
    plan, token = plan_of(batch, (3,), 1), torch.randn(7, requires_grad=True)
    visible = torch.zeros(batch, 1, 7)
    upstream = torch.randint(-9, 10, (batch, 3, 7)).float()
    out = restore_tokens(visible, plan, token, impl=impl)
    expected = (upstream * plan.mask.unsqueeze(-1)).sum((0, 1))
    assert torch.equal(torch.autograd.grad(out, token, upstream)[0], expected)


@pytest.mark.parametrize("width", [511, 512, 513, 1500])
def test_tokens_wider_than_a_chunk(width, impl):
    plan = plan_of(3, (5,), 2)
    x, pos = torch.randn(3, 5, width).bfloat16(), torch.randn(5, width)
    assert torch.equal(
        gather_tokens(x, plan, pos, impl=impl), reference.gather_tokens(x.float(), plan, pos)
    )
    visible, token = torch.randn(3, 2, width).half(), torch.randn(width)
    ours = restore_tokens(visible, plan, token, pos, impl=impl)
    assert torch.equal(ours, reference.restore_tokens(visible.float(), plan, token, pos))


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_of_large_patches_are_exact(channels, impl):
    """Sums of squares far beyond what float32 holds exactly."""
    if impl == "reference":
        pytest.skip("eager statistics lose these digits; that is what this is about")
    g = torch.Generator().manual_seed(0)
    images = torch.randint(254, 256, (1, channels, 192, 192), dtype=torch.uint8, generator=g)
    plan, pred = plan_of(1, (2, 2), 0), torch.zeros(1, 4, channels * 96 * 96, requires_grad=True)
    gradient = torch.autograd.grad(masked_patch_loss(images, pred, plan, 96, impl=impl), pred)[0]
    wide = pred.detach().double().requires_grad_()
    truth = masked_patch_loss(images, wide, plan, 96, impl="reference")
    truth = torch.autograd.grad(truth, wide)[0]
    assert (gradient.double() - truth).abs().max() <= 3e-7 * truth.abs().max()

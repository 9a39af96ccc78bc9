"""What others define, written out: layouts, MAE's, VideoMAE's and SimMIM's losses, convolutions."""

import pytest
import torch
from patch_cases import SHAPES, images_of, plan_of

from fastssl.masking import gather_patches, masked_patch_loss, patchify, unpatchify


@pytest.mark.parametrize("order", ["pqc", "cpq"])
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_patchify_round_trip(shape, patch, order):
    images = images_of(shape, torch.uint8)
    grid = tuple(n // p for n, p in zip(shape[2:], patch, strict=True))
    patches = patchify(images, patch, order)
    assert torch.equal(unpatchify(patches, patch, grid, order), images)


def test_patchify_is_what_others_define():
    images = torch.randn(2, 3, 12, 8)
    x = images.reshape(2, 3, 3, 4, 2, 4)
    mae = torch.einsum("nchpwq->nhwpqc", x).reshape(2, 6, 48)
    assert torch.equal(patchify(images, 4), mae)
    unfolded = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2)
    assert torch.equal(patchify(images, 4, "cpq"), unfolded)
    clip = torch.randn(1, 3, 4, 8, 8)
    tubes = clip.reshape(1, 3, 2, 2, 2, 4, 2, 4).permute(0, 2, 4, 6, 3, 5, 7, 1)
    assert torch.equal(patchify(clip, (2, 4, 4)), tubes.reshape(1, 8, 96))


def test_mae_loss_written_out(impl):
    """He et al. 2022 and its code: the formula, with normalised images and a full prediction."""
    images, plan = torch.randn(4, 3, 32, 32), plan_of(4, (4, 4))
    pred = torch.randn(4, 16, 192)
    target = torch.einsum("nchpwq->nhwpqc", images.reshape(4, 3, 4, 8, 4, 8)).reshape(4, 16, 192)
    mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    target = (target - mean) / (var + 1.0e-6) ** 0.5
    mask = (plan.ids_restore >= plan.keep).float()
    expected = (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()
    torch.testing.assert_close(masked_patch_loss(images, pred, plan, 8, impl=impl), expected)


def test_videomae_target_written_out(impl):
    """Tong et al. 2022 and its code: statistics of each channel, epsilon outside of the root."""
    clip, plan = torch.rand(2, 3, 4, 16, 16), plan_of(2, (2, 2, 2))
    pred = torch.randn(2, 8, 384)
    tubes = clip.reshape(2, 3, 2, 2, 2, 8, 2, 8).permute(0, 2, 4, 6, 3, 5, 7, 1)
    tubes = tubes.reshape(2, 8, 128, 3)
    deviation = tubes.var(2, unbiased=True, keepdim=True).sqrt() + 1e-6
    target = ((tubes - tubes.mean(2, keepdim=True)) / deviation).reshape(2, 8, 384)
    expected = torch.nn.functional.mse_loss(pred[plan.mask], target[plan.mask])
    ours = masked_patch_loss(clip, pred, plan, (2, 8, 8), statistics="patch_channel", impl=impl)
    torch.testing.assert_close(ours, expected)


def test_simmim_loss_written_out(impl):
    """Xie et al. 2022 and its code: L1 over the pixels of removed patches."""
    images, plan = torch.randn(2, 3, 16, 16), plan_of(2, (4, 4))
    pred = torch.randn(2, 16, 48)
    mask = plan.mask.view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).float()
    difference = (images - unpatchify(pred, 4)).abs()
    expected = (difference * mask).sum() / (mask.sum() + 1e-5) / 3
    ours = masked_patch_loss(images, pred, plan, 4, False, "l1", impl=impl)
    torch.testing.assert_close(ours, expected)


def test_gathered_patches_are_what_a_convolution_embeds(impl):
    images, plan = images_of((2, 3, 32, 32)), plan_of(2, (4, 4))
    conv = torch.nn.Conv2d(3, 10, 8, 8, bias=False)
    embedded = conv(images).flatten(2).transpose(1, 2)
    kept = embedded.gather(1, plan.ids_keep.unsqueeze(-1).expand(-1, -1, 10))
    ours = gather_patches(images, plan, 8, impl=impl) @ conv.weight.flatten(1).T
    torch.testing.assert_close(ours, kept)

"""MAE's functions against their definitions, written out."""

import pytest
import torch

from fastssl.compat import mae


def patches_of(imgs, p):
    """Rows, columns, channels of each patch, one by one."""
    n, _, h, w = imgs.shape
    rows = [
        imgs[:, :, y : y + p, x : x + p].permute(0, 2, 3, 1).reshape(n, -1)
        for y in range(0, h, p)
        for x in range(0, w, p)
    ]
    return torch.stack(rows, 1)


def masked(x, ratio, noise):
    """He et al. 2022: the tokens of least noise are kept, in its order."""
    keep = int(x.shape[1] * (1 - ratio))
    order = noise.argsort(dim=1, stable=True)
    ids_restore = order.argsort(dim=1)
    kept = torch.stack([row[ids[:keep]] for row, ids in zip(x, order, strict=True)])
    return kept, (ids_restore >= keep).float(), ids_restore, order[:, :keep]


def loss_of(imgs, pred, mask, p, norm_pix):
    target = patches_of(imgs, p)
    if norm_pix:
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
    rows = ((pred - target) ** 2).mean(-1)
    return (rows * mask).sum() / mask.sum()


@pytest.mark.parametrize("length, ratio", [(16, 0.75), (49, 0.0), (100, 0.9), (7, 0.5), (1, 0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_random_masking_by_its_definition(length, ratio, dtype):
    x = torch.randn(3, length, 5, dtype=dtype, requires_grad=True)
    noise = torch.rand(3, length)
    found = mae.random_masking(x, ratio, noise, return_ids_keep=True)
    wanted = masked(x, ratio, noise)
    for mine, other in zip(found, wanted, strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)
    upstream = torch.randn_like(wanted[0])
    grads = [torch.autograd.grad(kept[0], x, upstream)[0] for kept in (found, wanted)]
    assert torch.equal(*grads)


def test_random_masking_draws_by_torchs_seed():
    x = torch.randn(64, 16, 2)
    torch.manual_seed(3)
    first, second = (mae.random_masking(x, 0.75) for _ in range(2))
    assert len(first) == 3
    assert not torch.equal(first[2], second[2])
    torch.manual_seed(3)
    assert torch.equal(mae.random_masking(x, 0.75)[2], first[2])
    drawn = [mae.random_masking(x, 0.75, generator=torch.Generator().manual_seed(3))[2]] * 2
    assert torch.equal(*drawn)
    kept, mask, ids_restore = first
    assert kept.shape == (64, 4, 2)
    assert torch.equal(mask.sum(1), torch.full((64,), 12.0))
    assert len({tuple(row) for row in ids_restore.tolist()}) > 60, "samples share a mask"


def test_equal_noise_keeps_the_first():
    _, mask, ids_restore = mae.random_masking(torch.zeros(2, 8, 1), 0.5, torch.zeros(2, 8))
    assert mask.tolist() == [[0.0] * 4 + [1.0] * 4] * 2
    assert ids_restore.tolist() == [list(range(8))] * 2


@pytest.mark.parametrize("channels, size", [(3, (32, 32)), (1, (8, 24)), (4, (16, 8))])
def test_patchify_and_back(channels, size):
    imgs = torch.randn(2, channels, *size)
    patches = mae.patchify(imgs, 8)
    assert torch.equal(patches, patches_of(imgs, 8))
    grid = None if size[0] == size[1] else (size[0] // 8, size[1] // 8)
    assert torch.equal(mae.unpatchify(patches, 8, grid), imgs)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("varying", [False, True])
def test_loss_and_gradient(norm_pix, dtype, varying):
    imgs = torch.randn(4, 3, 16, 24, dtype=torch.float64)
    pred = torch.randn(4, 24, 48, dtype=dtype, requires_grad=True)
    noise = torch.rand(4, 24)
    mask = (noise < 0.6 if varying else noise.argsort(1).argsort(1) >= 6).float()
    ours = mae.forward_loss(imgs.to(dtype), pred, mask, 4, norm_pix)
    truth = loss_of(imgs.to(dtype).double(), pred.double(), mask.double(), 4, norm_pix)
    wanted, found = (torch.autograd.grad(3 * loss, pred)[0] for loss in (truth, ours))
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    near = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-5}[dtype]
    torch.testing.assert_close(ours.double(), truth.double(), rtol=near, atol=0)
    near = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(found, wanted, rtol=near, atol=near * wanted.abs().max().item())


def test_loss_takes_masks_of_any_dtype_and_none_removed():
    imgs, pred = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 48, requires_grad=True)
    mask = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]])
    losses = [mae.forward_loss(imgs, pred, mask.to(t), 4) for t in (torch.float32, torch.bool)]
    assert torch.equal(*losses)
    loss = mae.forward_loss(imgs, pred, torch.zeros(2, 4), 4)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, pred)[0].any()


def test_images_that_require_a_gradient_get_one():
    imgs = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    pred = torch.randn(2, 4, 48, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[0.0, 1, 0, 1], [1, 1, 0, 0]])
    with pytest.warns(UserWarning, match="require a gradient"):
        ours = mae.forward_loss(imgs, pred, mask, 4)
    grads = [torch.autograd.grad(x, (imgs, pred)) for x in (ours, loss_of(imgs, pred, mask, 4, 1))]
    torch.testing.assert_close(*grads)


def test_errors_name_the_argument():
    x, imgs, pred = torch.randn(2, 16, 4), torch.randn(2, 3, 16, 16), torch.randn(2, 16, 48)
    mask = torch.ones(2, 16)
    for call, match in (
        (lambda: mae.random_masking(x[0], 0.5), "x: got"),
        (lambda: mae.random_masking(x, 1.0), "ratio: got 1.0"),
        (lambda: mae.random_masking(x, 0.5, torch.rand(2, 15)), "noise: got"),
        (lambda: mae.forward_loss(imgs, pred, mask, 5), "patch_size: got"),
        (lambda: mae.forward_loss(imgs, pred[..., :47], mask, 4), "pred: got width 47"),
        (lambda: mae.forward_loss(imgs, pred, mask[:, :9], 4), "must have L = 9"),
    ):
        with pytest.raises(ValueError, match=match):
            call()

"""Plans, images and predictions for the operators on patches, and the measure of exactness."""

import math

import torch

from fastssl.masking import MaskPlan, masked_patch_loss
from fastssl.ops.patch import reference

#: (shape of the images, patch size): one to three axes of space, odd sizes, a single patch.
SHAPES = [
    ((2, 3, 32, 48), (16, 16)),
    ((3, 3, 15, 21), (5, 7)),
    ((2, 1, 9, 9), (3, 3)),
    ((1, 5, 4, 6), (2, 1)),
    ((1, 3, 4, 4), (4, 4)),
    ((2, 2, 60), (5,)),
    ((2, 3, 4, 8, 12), (2, 4, 3)),
    ((1, 3, 40, 40), (40, 40)),
]
FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MEAN, STD = (0.485, 0.456, 0.406, 0.5, 0.3), (0.229, 0.224, 0.225, 0.25, 1.5)


def plan_of(batch, grid, keep=None, varying=False, seed=0):
    """A random plan; by default a quarter is kept, rounded down."""
    g = torch.Generator().manual_seed(seed)
    length = math.prod(grid)
    order = torch.rand(batch, length, generator=g).argsort(1)
    if not varying:
        return MaskPlan.from_order(order, length // 4 if keep is None else keep, grid)
    lengths = torch.randint(0, length + 1, (batch,), generator=g)
    keep = int(lengths.max()) if keep is None else keep
    plan = MaskPlan.from_order(order, keep, grid)
    mask = plan.ids_restore >= lengths.unsqueeze(1)
    return MaskPlan(order, plan.ids_restore, mask, keep, grid, lengths)


def images_of(shape, dtype=torch.float32, seed=0):
    """Levels with flat areas, or floating-point images with a gradient of light."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g, dtype=torch.float64)
    x = 0.5 * x + 0.5 * torch.linspace(0, 1, shape[-1], dtype=torch.float64)
    return (x * 255).round().byte() if dtype == torch.uint8 else x.to(dtype)


def statistics_of(channels):
    return {"mean": MEAN[:channels], "std": STD[:channels]}


def assert_exact(ours, eager, truth, dtype, name="", least=0.0):
    """|ours - truth| <= 2 |eager - truth| + a few units in the last place of the largest value.

    In float64 the truth itself is a sum of thousands of terms, rounded in its own order.
    """
    assert ours.dtype == eager.dtype, (name, ours.dtype, eager.dtype)
    assert ours.shape == truth.shape, name
    if not truth.numel():
        return
    truth = truth.double()
    scale = max(truth.abs().max().item(), least)
    units = 32 if dtype == torch.float64 else 4
    floor = units * torch.finfo(dtype).eps * scale
    allowed = 2 * (eager.double() - truth).abs().max().item() + floor
    error = (ours.double() - truth).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def loss_and_gradient(function, images, pred, *options):
    """The loss, and its gradient times 3 / 4."""
    leaf = pred.detach().requires_grad_()
    loss = function(images, leaf, *options)
    return loss.detach(), torch.autograd.grad(loss, leaf, torch.full_like(loss, 0.75))[0]


def check_loss(images, pred, plan, patch, impl, norm_pix=True, kind="mse", statistics="patch",
               order="pqc", mean=None, std=None):  # fmt: skip
    """Compares loss and gradient with float64."""
    channels = images.shape[1]
    numbers = (list(mean or [0.0] * channels), list(std or [1.0] * channels))
    options = (plan, patch, norm_pix, kind, statistics, *numbers, order)
    wide = images if images.dtype == torch.uint8 else images.double()
    truth = loss_and_gradient(reference.masked_patch_loss, wide, pred.double(), *options)
    eager = loss_and_gradient(reference.masked_patch_loss, images, pred, *options)

    def function(images, pred, plan, patch, norm_pix, kind, statistics, mean, std, order):
        return masked_patch_loss(
            images, pred, plan, patch, norm_pix, kind, statistics, mean, std, order=order, impl=impl
        )

    ours = loss_and_gradient(function, images, pred, *options)
    compute = torch.promote_types(pred.dtype, torch.float32)
    assert_exact(ours[0], eager[0], truth[0], compute, "loss")
    assert_exact(ours[1], eager[1], truth[1], pred.dtype, "gradient")
    if pred.shape[1] == plan.length:
        assert not ours[1][~plan.mask].any(), "kept patches get no gradient"

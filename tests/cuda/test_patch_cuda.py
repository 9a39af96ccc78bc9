"""Masked-patch operators on a GPU against the CPU; those named `small` are compute-sanitizer's."""

import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fastssl import masking

pytestmark = [pytest.mark.cuda]

FLOATING = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
IMAGES = [torch.uint8, *FLOATING]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
KINDS, STATISTICS, ORDERS = (
    ("mse", "l1", "smooth_l1", "cosine"),
    ("patch", "patch_channel"),
    ("pqc", "cpq"),
)
#: (shape of the images, patch size): one to three axes, odd sizes, many channels, large patches.
SHAPES = [
    ((2, 3, 32, 48), (16, 16)),
    ((3, 3, 15, 21), (5, 7)),
    ((2, 1, 9, 9), (3, 3)),
    ((2, 2, 60), (5,)),
    ((2, 3, 4, 8, 12), (2, 4, 3)),
    ((2, 20, 8, 8), (4, 4)),
    ((1, 3, 64, 128), (64, 64)),
]
NUMBERS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}


def images_of(shape, dtype):
    x = torch.rand(shape, dtype=torch.float64)
    return (x * 255).round().byte() if dtype == torch.uint8 else x.to(dtype)


def plan_of(shape, patch, varying=False, ratio=0.7):
    grid = tuple(n // p for n, p in zip(shape[2:], patch, strict=True))
    ratio = torch.linspace(0, 0.9, shape[0]) if varying else ratio
    return masking.random_masks(shape[0], grid, ratio, seed=3)


def close(ours, theirs, dtype):
    """On the scale of the largest value: sums have another order."""
    assert ours.is_cuda and ours.dtype == theirs.dtype and ours.shape == theirs.shape
    scale = max(theirs.abs().max().item(), 1e-30) if theirs.numel() else 1
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        ours.cpu() / scale, theirs / scale, rtol=tolerance, atol=tolerance, equal_nan=True
    )


def same_plan(ours, theirs):
    for field in ("ids_shuffle", "ids_restore", "mask"):
        assert torch.equal(getattr(ours, field).cpu(), getattr(theirs, field)), field
    assert ours.keep == theirs.keep and ours.grid == theirs.grid
    assert (ours.keep_lengths is None) == (theirs.keep_lengths is None)
    if ours.keep_lengths is not None:
        assert torch.equal(ours.keep_lengths.cpu(), theirs.keep_lengths)


def loss_and_gradient(images, pred, plan, patch, **options):
    leaf = pred.detach().requires_grad_()
    loss = masking.masked_patch_loss(images, leaf, plan, patch, **options)
    loss.backward(torch.full_like(loss, 0.5))
    return loss.detach(), leaf.grad


def check_loss(images, pred, plan, patch, **options):
    expected = loss_and_gradient(images, pred, plan, patch, **options)
    there = torch.empty_like(images, device="cuda").copy_(images)
    moved = torch.empty_like(pred, device="cuda").copy_(pred)
    found = loss_and_gradient(there, moved, plan.to("cuda"), patch, **options)
    compute = torch.promote_types(pred.dtype, torch.float32)
    close(found[0], expected[0], compute)
    close(found[1], expected[1], pred.dtype)


FAMILIES = {
    "random": lambda **on: masking.random_masks(9, (14, 14), 0.75, **on),
    "ordered": lambda **on: masking.random_masks(9, 37, 0.5, ordered=True, **on),
    "tube": lambda **on: masking.tube_masks(9, (4, 6, 5), 0.9, **on),
    "simmim": lambda **on: masking.simmim_masks(9, (12, 12), cell=4, **on),
    "grid": lambda **on: masking.grid_masks(9, (16, 12), **on),
    "block": lambda **on: masking.block_masks(9, (14, 14), (0.1, 0.5), roll=True, **on),
    "beit": lambda **on: masking.block_masks(9, (14, 14), exact=False, counts=75, **on),
    "inverse": lambda **on: masking.inverse_block_masks(9, (14, 11), **on),
    "long": lambda **on: masking.random_masks(9, 20000, 0.75, **on),
}
IDS = [0, 1, 77, 1 << 31, (1 << 32) + 5, (1 << 62) + 1, -1, -(1 << 40), 12]


@pytest.mark.parametrize("family", FAMILIES)
def test_small_plans_are_the_cpus_to_the_bit(family):
    ids = torch.tensor(IDS)
    for step in (0, 7, torch.tensor(7)):
        expected = FAMILIES[family](seed=2**40 + 3, step=step, sample_ids=ids)
        moved = step.cuda() if isinstance(step, torch.Tensor) else step
        same_plan(FAMILIES[family](seed=2**40 + 3, step=moved, sample_ids=ids.cuda()), expected)


def test_small_multiblock_plans_are_the_cpus_to_the_bit():
    ids = torch.tensor(IDS)
    for overlap in (False, True):
        expected = masking.multiblock_masks(
            9, (14, 14), allow_overlap=overlap, seed=5, sample_ids=ids
        )
        found = masking.multiblock_masks(
            9, (14, 14), allow_overlap=overlap, seed=5, sample_ids=ids.cuda()
        )
        same_plan(found.context, expected.context)
        assert torch.equal(found.targets.cpu(), expected.targets)


def test_small_plans_of_given_noise():
    noise = torch.rand(5, 49)
    same_plan(
        masking.random_masks(5, 49, 0.75, seed=None, noise=noise.cuda()),
        masking.random_masks(5, 49, 0.75, seed=None, noise=noise),
    )


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_small_losses(shape, patch, dtype):
    images, plan = images_of(shape, torch.uint8), plan_of(shape, patch)
    width = shape[1] * math.prod(patch)
    check_loss(images, torch.randn(shape[0], plan.length, width).to(dtype), plan, patch)
    removed = torch.randn(shape[0], plan.length - plan.keep, width).to(dtype)
    check_loss(images, removed, plan, patch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", IMAGES)
def test_small_losses_of_every_kind(dtype, kind):
    shape, patch = (3, 3, 16, 24), (8, 8)
    images, plan = images_of(shape, dtype), plan_of(shape, patch, varying=True)
    pred = torch.randn(3, plan.length, 192)
    for order in ORDERS:
        check_loss(images, pred, plan, patch, kind=kind, norm_pix=False, order=order, **NUMBERS)
        for statistics in STATISTICS:
            how = {"kind": kind, "statistics": statistics, "order": order}
            check_loss(images, pred, plan, patch, **how, **NUMBERS)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_losses_of_patches_too_large_for_shared_memory(kind):
    shape, patch = (2, 3, 256, 512), (256, 256)
    images, plan = images_of(shape, torch.uint8), plan_of(shape, patch, ratio=0.5)
    check_loss(images, torch.randn(2, 2, 3 * 256 * 256), plan, patch, kind=kind)


def test_small_strided_losses():
    x = images_of((2, 12, 30, 3), torch.uint8).permute(0, 3, 1, 2)[:, :, :, 2:16]
    plan = plan_of(x.shape, (4, 7))
    check_loss(x, torch.randn(84, 6, 2).permute(2, 1, 0), plan, (4, 7))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("ratio", [0.0, 0.99])
def test_small_losses_of_no_and_of_all_patches(ratio, dtype):
    images = images_of((2, 3, 8, 8), torch.uint8)
    plan = plan_of(images.shape, (4, 4), ratio=ratio)
    check_loss(images, torch.randn(2, 4, 48).to(dtype), plan, (4, 4))


def check_gathers(shape, patch, dtype, outs):
    images = images_of(shape, dtype)
    strided = images.movedim(1, -1).contiguous().movedim(-1, 1)
    for plan in (plan_of(shape, patch), plan_of(shape, patch, varying=True)):
        moved = plan.to("cuda")
        for x in (images, strided):
            there = torch.empty_like(x, device="cuda").copy_(x)
            for order in ORDERS:
                for out in outs:
                    how = {"order": order, "dtype": out, "mean": 0.4, "std": 0.2}
                    expected = masking.gather_patches(x, plan, patch, **how)
                    close(masking.gather_patches(there, moved, patch, **how), expected, out)


@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_small_gathers(shape, patch):
    check_gathers(shape, patch, torch.uint8, [torch.float32, torch.bfloat16])


@pytest.mark.parametrize("dtype", IMAGES)
@pytest.mark.parametrize(("shape", "patch"), SHAPES)
def test_gathers_of_every_type(shape, patch, dtype):
    check_gathers(shape, patch, dtype, FLOATING)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_small_slices_with_gaps_and_an_odd_start(dtype):
    """Strides that a copy would make dense, and data that begin off 16 bytes."""
    base = images_of((3, 3, 18, 25), dtype)
    images, there = (x[:, :, 1:17, 3:19] for x in (base, base.cuda()))
    plan = plan_of(images.shape, (4, 4))
    moved = plan.to("cuda")
    close(
        masking.gather_patches(there, moved, 4), masking.gather_patches(images, plan, 4), dtype
        if dtype.is_floating_point else torch.float32,
    )  # fmt: skip
    rows = torch.randn(3, 17, 49)
    pred, pred_there = (x[:, 1:, 1:].detach().requires_grad_() for x in (rows, rows.cuda()))
    losses = [
        masking.masked_patch_loss(images, pred, plan, 4),
        masking.masked_patch_loss(there, pred_there, moved, 4),
    ]
    gradients = [
        torch.autograd.grad(x, p)[0] for x, p in zip(losses, (pred, pred_there), strict=True)
    ]
    close(losses[1], losses[0], torch.float32)
    close(gradients[1], gradients[0], torch.float32)
    tokens = [
        masking.gather_tokens(x[:, 1:, 1:], p, x[0, 1:, 1:])
        for x, p in ((rows, plan), (rows.cuda(), moved))
    ]
    close(tokens[1], tokens[0], torch.float32)


def tokens_and_gradients(x, visible, token, pos, plan, prefix):
    leaves = [t.detach().requires_grad_() for t in (x, visible, token, pos)]
    x, visible, token, pos = leaves
    gathered = masking.gather_tokens(x, plan, pos.to(x.dtype), prefix=prefix)
    restored = masking.restore_tokens(visible, plan, token, pos, prefix=prefix)
    weights = [torch.linspace(-1, 1, t.numel()).view(t.shape).to(t) for t in (gathered, restored)]
    total = (gathered * weights[0]).sum() + (restored * weights[1]).sum()
    return gathered.detach(), restored.detach(), *torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("width", [7, 64])
@pytest.mark.parametrize("dtype", FLOATING)
def test_small_tokens_and_their_gradients(dtype, width, varying):
    for prefix in (0, 2):
        plan = plan_of((4, 1, 6, 9), (1, 1), varying)
        compute = torch.promote_types(dtype, torch.float32)
        given = (
            torch.randn(4, prefix + 54, width).to(dtype),
            torch.randn(4, prefix + plan.keep, width).to(dtype),
            torch.randn(width, dtype=compute), torch.randn(prefix + 54, width, dtype=compute),
        )  # fmt: skip
        expected = tokens_and_gradients(*given, plan, prefix)
        found = tokens_and_gradients(*[t.cuda() for t in given], plan.to("cuda"), prefix)
        for ours, theirs in zip(found, expected, strict=True):
            close(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_small_tiles(dtype):
    x = images_of((3, 2, 40, 47), torch.uint8).to(dtype)
    for size in ((1, 1), (16, 16), (5, 7)):
        room = torch.tensor(x.shape[2:]) - torch.tensor(size) + 1
        corners = (torch.rand(3, 5, 2) * room).int()
        expected = torch.ops.fastssl.patch_tiles(x, corners, *size)
        found = torch.ops.fastssl.patch_tiles(x.cuda(), corners.cuda(), *size)
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_small_masked_words(dtype):
    ids = torch.randint(0, 1000, (len(IDS), 37)).to(dtype)
    arguments = (None, torch.tensor(IDS), None, 5, 2**40, 7, 1000, [0.5, 0.6, 0.3])
    expected = torch.ops.fastssl.patch_mask_tokens(ids, *arguments)
    moved = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
    found = torch.ops.fastssl.patch_mask_tokens(ids.cuda(), *moved)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))


class Step:
    """What MAE does beside its networks, forward and backward."""

    def __init__(self, batch=8, dtype=torch.float32, width=64):
        self.images = images_of((batch, 3, 64, 64), torch.uint8).cuda()
        self.ids = torch.arange(batch, device="cuda")
        self.step = torch.zeros((), dtype=torch.int64, device="cuda")
        plan = self.plan()
        self.visible = torch.randn(batch, 1 + plan.keep, width, device="cuda", dtype=dtype)
        self.token = torch.randn(width, device="cuda")
        self.pos = torch.randn(1 + plan.length, width, device="cuda")
        self.pred = torch.randn(batch, plan.length, 768, device="cuda", dtype=dtype)
        for leaf in (self.visible, self.token, self.pred):
            leaf.requires_grad_()

    def plan(self):
        return masking.random_masks(
            len(self.ids), (4, 4), 0.75, seed=1, step=self.step, sample_ids=self.ids
        )

    def __call__(self):
        plan = self.plan()
        patches = masking.gather_patches(self.images, plan, 16, [0.5] * 3, [0.25] * 3)
        tokens = masking.restore_tokens(self.visible, plan, self.token, self.pos, prefix=1)
        loss = masking.masked_patch_loss(self.images, self.pred, plan, 16)
        leaves = [self.visible, self.token, self.pred]
        gradients = torch.autograd.grad(loss + tokens.float().square().sum(), leaves)
        return [plan.ids_restore, patches, tokens.detach(), loss.detach(), *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_waits_for_the_device(dtype):
    step = Step(dtype=dtype)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        masking.block_masks(4, (14, 14), (0.1, 0.5), seed=0, device="cuda")
        masking.inverse_block_masks(4, (14, 14), seed=0, device="cuda")
        masking.multiblock_masks(4, (14, 14), seed=0, device="cuda")
        many = torch.zeros(1, 20, 4, 4, device="cuda")
        plan = masking.random_masks(1, (2, 2), 0.5, seed=0, device="cuda")
        masking.gather_patches(many, plan, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_capture_with_a_step_that_counts():
    step = Step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    plans = []
    for _ in range(3):
        step.step += 1
        graph.replay()
        assert all(map(torch.equal, captured, step()))
        plans.append(captured[0].clone())
    assert not torch.equal(plans[0], plans[1])


def test_five_launches_forward():
    step = Step()
    step()
    plan = step.plan()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        plan = step.plan()
        masking.gather_patches(step.images, plan, 16)
        masking.restore_tokens(step.visible.detach(), plan, step.token, step.pos, prefix=1)
        masking.masked_patch_loss(step.images, step.pred, plan, 16)
        torch.cuda.synchronize()
    kernels = [e.name for e in profiled.events() if "kernel" in e.name and e.device_time > 0]
    assert sum("fastssl" in name for name in kernels) == 5, kernels

"""The functions on patches under gradcheck, opcheck, torch.compile, torch.func and autocast."""

import pytest
import torch
from patch_cases import images_of, plan_of

from fastssl import masking
from fastssl.masking import (
    gather_patches,
    gather_tokens,
    masked_patch_loss,
    patchify,
    restore_tokens,
    unpatchify,
)

KINDS = ("mse", "l1", "smooth_l1", "cosine")
PLANS = {"fixed": plan_of(2, (2, 3), 2), "varying": plan_of(2, (2, 3), varying=True)}


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


def test_gradients_of_tokens(plan):
    x, pos, token = leaf(2, 7, 4), leaf(7, 4), leaf(1, 1, 4)
    visible = leaf(2, 1 + plan.keep, 4)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x, p: gather_tokens(x, plan, p, prefix=1), (x, pos))
        assert check(lambda v, t, p: restore_tokens(v, plan, t, p, prefix=1), (visible, token, pos))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm_pix", [True, False])
def test_gradients_of_the_loss(plan, kind, norm_pix):
    images = images_of((2, 3, 8, 12), torch.uint8)

    def loss(pred):
        return masked_patch_loss(images, pred, plan, 4, norm_pix, kind)

    pred = leaf(2, 6, 48)
    assert torch.autograd.gradcheck(loss, pred, fast_mode=True)
    if kind in ("mse", "cosine"):  # the others have kinks
        assert torch.autograd.gradgradcheck(loss, pred, fast_mode=True)


def test_gradient_of_images():
    plan, images = PLANS["varying"], leaf(2, 3, 8, 12)
    for order in ("cpq", "pqc"):

        def gathered(x, order=order):
            return gather_patches(x, plan, 4, (0.1, 0.2, 0.3), (0.5, 2.0, -1.0), order)

        assert torch.autograd.gradcheck(gathered, images, fast_mode=True)
        assert torch.autograd.gradgradcheck(gathered, images, fast_mode=True)
    half = images_of((2, 3, 8, 12), torch.bfloat16).requires_grad_()
    gather_patches(half, plan, 4).sum().backward()
    kept = (~plan.mask).view(2, 1, 2, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(half.grad, kept.expand(2, 3, 8, 12).to(torch.bfloat16))


def test_gradients_of_layouts():
    x = leaf(1, 2, 4, 6)
    assert torch.autograd.gradcheck(lambda x: patchify(x, (2, 3)), x)
    assert torch.autograd.gradcheck(lambda x: unpatchify(x, (2, 3), (2, 2)), leaf(1, 4, 12))


def test_backward_twice():
    """The gradient is made once, and scaled in place; a second backward makes it again."""
    plan, images = PLANS["fixed"], images_of((2, 3, 8, 12))
    pred = torch.randn(2, 6, 48, requires_grad=True)
    loss = masked_patch_loss(images, pred, plan, 4)
    first = torch.autograd.grad(3 * loss, pred, retain_graph=True)[0]
    kept = first.clone()
    second = torch.autograd.grad(-2 * loss, pred, retain_graph=True)[0]
    third = torch.autograd.grad(0 * loss, pred)[0]
    assert torch.equal(first, kept)
    torch.testing.assert_close(second, first * (-2 / 3))
    assert not third.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_upstream_gradient(dtype, impl):
    plan, images = PLANS["fixed"], images_of((2, 3, 8, 12))
    pred = torch.randn(2, 6, 48, dtype=dtype, requires_grad=True)
    once, scaled = (
        torch.autograd.grad(factor * masked_patch_loss(images, pred, plan, 4, impl=impl), pred)[0]
        for factor in (1, 64)
    )
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(scaled, once * 64, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("varying", [False, True])
def test_gradients_of_scaled_losses_in_half_precision(varying, impl):
    """As torch.amp.GradScaler asks for them: a mean over many numbers, times 65,536."""
    plan, images = plan_of(64, (14, 14), varying=varying), images_of((64, 3, 56, 56))
    pred = torch.randn(64, 196, 48, dtype=torch.float16, requires_grad=True)
    loss = 65536 * masked_patch_loss(images, pred, plan, 4, impl=impl)
    wide = pred.detach().double().requires_grad_()
    truth = 65536 * masked_patch_loss(images.double(), wide, plan, 4, impl="reference")
    truth = torch.autograd.grad(truth, wide)[0]
    error = (torch.autograd.grad(loss, pred)[0].double() - truth).abs().max()
    assert error <= 2 * torch.finfo(torch.float16).eps * truth.abs().max()


def test_no_gradient_no_memory():
    plan, images = PLANS["fixed"], images_of((2, 3, 8, 12))
    parts = (plan.ids_shuffle, plan.ids_restore, None, plan.keep)
    options = ([4, 4], [0.0] * 3, [1.0] * 3, True, 0, 0, 0, 0.0)
    _, gradient = torch.ops.fastssl.patch_loss(images, torch.randn(2, 6, 48), *parts, *options)
    assert gradient.numel() == 0
    assert not masked_patch_loss(images, torch.randn(2, 6, 48), plan, 4).requires_grad


@pytest.mark.parametrize("varying", [False, True])
def test_opcheck(varying):
    plan = PLANS["varying" if varying else "fixed"]
    parts = (plan.ids_shuffle, plan.ids_restore, plan.keep_lengths, plan.keep)
    ops, numbers = torch.ops.fastssl, ([4, 4], [0.5] * 3, [2.0] * 3)
    images, levels = images_of((2, 3, 8, 12)), images_of((2, 3, 8, 12), torch.uint8)
    x, visible, pred = torch.randn(2, 7, 5), torch.randn(2, 1 + plan.keep, 5), torch.randn(2, 6, 48)
    calls = [
        (ops.patch_gather, (levels, *parts, *numbers, 1, 3)),
        (ops.patch_gather_tokens, (x, x[0], *parts, 1)),
        (ops.patch_restore_tokens, (visible.half(), x[0, 0], None, *parts, 1, 1)),
        (ops.patch_sum_removed, (x.bfloat16(), *parts, 1)),
        (ops.patch_loss, (images, pred, *parts, *numbers, True, 0, 0, 0, 1.0)),
        (ops.patch_loss, (levels, pred.half(), *parts, *numbers, False, 3, 1, 1, 0.0)),
        (ops.patch_scale_, (pred.clone(), torch.tensor(0.5))),
    ]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    plan, images = PLANS["fixed"], images_of((2, 3, 8, 12), torch.uint8)
    weight, token = torch.randn(48, 48), torch.randn(48, requires_grad=True)

    def step(images, token):
        visible = gather_patches(images, plan, 4, 0.5, 0.25) @ weight
        tokens = restore_tokens(gather_tokens(visible, inner), inner, token)
        pred = restore_tokens(tokens, plan, token)
        return 2 * masked_patch_loss(images, pred, plan, 4)

    inner = plan_of(2, (2,), 1)
    expected = torch.autograd.grad(step(images, token), token)
    torch._dynamo.reset()
    compiled = torch.compile(step, backend=backend, fullgraph=True)
    loss = compiled(images, token)
    torch.testing.assert_close(loss, step(images, token))
    torch.testing.assert_close(torch.autograd.grad(loss, token), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_compile_without_a_gradient(mode):
    plan, images, pred = PLANS["fixed"], images_of((2, 3, 8, 12)), torch.randn(2, 6, 48)
    torch._dynamo.reset()
    with mode():
        compiled = torch.compile(masked_patch_loss, backend="aot_eager", fullgraph=True)
        found = compiled(images, pred, plan, 4)
    torch.testing.assert_close(found, masked_patch_loss(images, pred, plan, 4))


DRAWS = {
    "random": lambda step: masking.random_masks(3, (4, 4), 0.5, seed=0, step=step).ids_restore,
    "blocks": lambda step: masking.block_masks(3, (8, 8), 0.5, seed=0, step=step).mask,
    "tokens": lambda step: masking.mask_tokens(TOKENS, None, 3, 100, seed=0, step=step)[0],
    "jigsaw": lambda step: torch.cat([x.flatten() for x in masking.jigsaw(
        LEVELS, 2, permutations=PERMUTATIONS, seed=0, step=step)]),
    "rotation": lambda step: masking.rotate4(LEVELS, seed=0, step=step)[0],
}  # fmt: skip
TOKENS, LEVELS = torch.arange(90).view(3, 30), images_of((2, 3, 32, 32), torch.uint8)
PERMUTATIONS = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2]])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", DRAWS)
def test_a_step_that_counts_is_compiled_twice_at_most(name, backend):
    """Once as the number it is at first, once as any number; the same draws."""
    torch._dynamo.reset()
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(DRAWS[name], backend=counted, fullgraph=True)
    for step in range(12):
        assert torch.equal(compiled(step), DRAWS[name](step))
    assert len(graphs) <= 2


def test_plans_and_images_from_inference_mode():
    with torch.inference_mode():
        plan, images = plan_of(2, (2, 3), 2), images_of((2, 3, 8, 12))
    pred = torch.randn(2, 6, 48, requires_grad=True)
    masked_patch_loss(images, pred, plan, 4).backward()
    x, token = torch.randn(2, 6, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    restore_tokens(gather_tokens(x, plan), plan, token).sum().backward()
    assert pred.grad.any() and x.grad.any() and token.grad.any()


def test_images_may_be_overwritten_before_the_backward_that_needs_no_pixel():
    plan, images = PLANS["fixed"], images_of((2, 3, 8, 12))
    pred = torch.randn(2, 6, 48, requires_grad=True)
    expected = torch.autograd.grad(masked_patch_loss(images, pred, plan, 4), pred)[0]
    loss = masked_patch_loss(images, pred, plan, 4)
    images.zero_()
    assert torch.equal(torch.autograd.grad(loss, pred, retain_graph=True)[0], expected)
    with pytest.raises(RuntimeError, match="images: were changed in place"):
        torch.autograd.grad(loss, pred)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_of_any_size(kind, impl):
    """Gradients that float16 holds are not lost on the way to it."""
    plan, images = plan_of(64, (4, 4)), images_of((64, 3, 16, 16))
    for size in (1e-5, 1.0, 1e4):
        pred = (size * torch.randn(64, 16, 48)).half().requires_grad_()
        wide = pred.detach().double().requires_grad_()
        losses = (masked_patch_loss(images, x, plan, 4, kind=kind, impl=i)
                  for x, i in ((pred, impl), (wide, "reference")))  # fmt: skip
        ours, truth = (
            torch.autograd.grad(x, p)[0] for x, p in zip(losses, (pred, wide), strict=True)
        )
        error = (ours.double() - truth).abs().max()
        assert error <= max(4e-3 * truth.abs().max(), 6e-8), size


def test_nan_in_a_kept_patch_reaches_nothing(impl):
    images, plan = images_of((1, 3, 8, 8)), plan_of(1, (2, 2), 2)
    images.view(1, 3, 2, 4, 2, 4)[:, :, plan.ids_keep[0, 0] // 2, :, plan.ids_keep[0, 0] % 2] = (
        torch.nan
    )
    pred = torch.randn(1, 4, 48, requires_grad=True)
    loss = masked_patch_loss(images, pred, plan, 4, impl=impl)
    for graph in (False, True):
        gradient = torch.autograd.grad(loss, pred, create_graph=graph, retain_graph=True)[0]
        assert gradient.isfinite().all()


def test_images_that_require_a_gradient():
    images, plan = images_of((2, 3, 8, 12)).requires_grad_(), PLANS["fixed"]
    pred = torch.randn(2, 6, 48, requires_grad=True)
    loss = masked_patch_loss(images, pred, plan, 4)
    assert all(g.any() for g in torch.autograd.grad(loss, (images, pred)))
    with torch.no_grad():
        torch.testing.assert_close(masked_patch_loss(images, pred, plan, 4, impl="cpu"), loss)


def test_functional_gradient():
    plan, images = PLANS["fixed"], images_of((2, 3, 8, 12))
    pred = torch.randn(2, 6, 48, requires_grad=True)
    loss = masked_patch_loss(images, pred, plan, 4)
    functional = torch.func.grad(lambda p: masked_patch_loss(images, p, plan, 4))(pred.detach())
    torch.testing.assert_close(functional, torch.autograd.grad(loss, pred)[0])


def test_autocast():
    """The types that torch gives to the sum, and to the concatenation, of such tensors."""
    plan, token = PLANS["fixed"], torch.randn(1, 1, 8)
    linear, x = torch.nn.Linear(8, 8), torch.randn(2, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        visible = linear(x)
        assert visible.dtype == torch.bfloat16
        assert restore_tokens(visible, plan, token).dtype == torch.float32
        assert restore_tokens(visible, plan, token.bfloat16()).dtype == torch.bfloat16
        pred = restore_tokens(visible, plan, token.bfloat16()).repeat(1, 1, 6)
        assert masked_patch_loss(images_of((2, 3, 8, 12)), pred, plan, 4).dtype == torch.float32

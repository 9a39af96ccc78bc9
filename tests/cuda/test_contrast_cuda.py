"""The contrastive family on a GPU. Tests named `small` are those that compute-sanitizer runs."""

import os

import pytest
import torch

import fastssl

pytestmark = [pytest.mark.cuda]

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: What is forgiven beside twice eager's error, relative to the largest true value.
FLOOR = {torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}

#: Losses of x, y, scale, bias, labels.
LOSSES = {
    "info_nce": lambda x, y, s, b, labels, **o: fastssl.info_nce(x, y, temperature=1 / s, **o),
    "info_nce symmetric": lambda x, y, s, b, labels, **o: fastssl.info_nce(
        x, y, temperature=1 / s, symmetric=True, **o
    ),
    "info_nce labels and margins": lambda x, y, s, b, labels, **o: fastssl.info_nce(
        x, y, temperature=1 / s, labels=labels, symmetric=True, false_negative_margin=0.1, **o
    ),
    "queue": lambda x, y, s, b, labels, **o: fastssl.info_nce(
        x, y, y.detach().flip(0).repeat(2, 1)[1:], temperature=1 / s, **o
    ),
    "clip": lambda x, y, s, b, labels, **o: fastssl.clip_loss(x, y, s, normalize=True, **o),
    "siglip": lambda x, y, s, b, labels, **o: fastssl.siglip_loss(x, y, s, b, normalize=True, **o),
    "sup_con out": lambda x, y, s, b, labels, **o: fastssl.sup_con(
        torch.cat([x, y]), labels.repeat(2), 1 / s, **o
    ),
    "sup_con in": lambda x, y, s, b, labels, **o: fastssl.sup_con(
        x, labels, 1 / s, form="in", references=y, reference_labels=labels, **o
    ),
    "pair_nt_xent": lambda x, y, s, b, labels, **o: fastssl.pair_nt_xent(
        torch.cat([x, y]), labels.repeat(2), 1 / s, **o
    ),
    "dcl": lambda x, y, s, b, labels, **o: fastssl.dcl(x, y, 1 / s, **o),
    "dclw": lambda x, y, s, b, labels, **o: fastssl.dclw(x, y, 1 / s, **o),
}
METRICS = ("info_nce", "info_nce symmetric", "queue", "clip", "sup_con out", "dcl")


def _views(n, d, dtype):
    g = torch.Generator("cuda").manual_seed(n + d)
    x, noise = (torch.randn(n, d, generator=g, device="cuda") for _ in range(2))
    return [z.to(dtype).requires_grad_() for z in (x, x + noise)]


def _labels(n):
    return torch.arange(n, device="cuda") % max(2, n // 5)


def _evaluate(name, views, dtype, scale=10.0, learned=True, **options):
    leaves = [z.detach().to(dtype).requires_grad_() for z in views]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = [torch.tensor(v, dtype=wide, device="cuda") for v in (scale, -5.0)]
    wanted = list(leaves)
    if learned:
        wanted.append(numbers[0].requires_grad_())
        if name == "siglip":
            wanted.append(numbers[1].requires_grad_())
    else:
        numbers = [scale, -5.0]
    loss = LOSSES[name](*leaves, *numbers, _labels(len(leaves[0])), **options)
    return [loss.detach(), *torch.autograd.grad(loss, wanted)]


def _check(name, views, scale=10.0, learned=True):
    dtype = views[0].dtype
    truth = _evaluate(name, views, torch.float64, scale, learned, impl="reference")
    eager = _evaluate(name, views, dtype, scale, learned, impl="reference")
    ours = _evaluate(name, views, dtype, scale, learned, impl="triton")
    floor = FLOOR[dtype] + 2.0**-24 * abs(scale)
    for part, x, e, t in zip(("loss", "x", "y", "scale", "bias"), ours, eager, truth, strict=False):
        error, allowed = (x.double() - t).abs().max(), (e.double() - t).abs().max()
        # Gradients of numbers are sums of terms that cancel.
        largest = max(t.abs().max(), 1e-1 if part in ("scale", "bias") else 0)
        limit = 2 * allowed + floor * largest
        assert error <= limit, f"{part}: error {error:.3g}, allowed {limit:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n, d", [(5, 33), (70, 128)])
def test_small_values_and_gradients(n, d, name, dtype):
    _check(name, _views(n, d, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n, d", [(1000, 127), (700, 256), (600, 768)])
@pytest.mark.parametrize("learned", [True, False])
def test_values_and_gradients(learned, n, d, name, dtype):
    _check(name, _views(n, d, dtype), learned=learned)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [100.0, 1.0, -10.0])
def test_scales(scale, name):
    if not (name == "info_nce labels and margins" and scale < 0):
        _check(name, _views(150, 64, torch.float32), scale)


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name):
    views = _views(300, 64, torch.float32)

    def metrics(dtype, impl):
        x = [z.detach().to(dtype) for z in views]
        options = {"return_metrics": True, "impl": impl}
        return LOSSES[name](*x, 10.0, -5.0, _labels(300), **options)[1]

    ours, truth = metrics(torch.float32, "triton"), metrics(torch.float64, "reference")
    for key, value in truth.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5, msg=key)


#: Those whose public functions wait for nothing either.
CAPTURED = ("info_nce symmetric", "queue", "clip", "siglip", "sup_con out", "pair_nt_xent", "dcl")


def _step(name, leaves, numbers, labels):
    loss = LOSSES[name](*leaves, *numbers, labels)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("name", CAPTURED)
def test_nothing_waits_for_the_device(name):
    views, labels = _views(500, 128, torch.bfloat16), _labels(500)
    numbers = [torch.tensor(v, device="cuda", requires_grad=True) for v in (10.0, -5.0)]
    _step(name, views, numbers, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _step(name, views, numbers, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["clip", "siglip", "sup_con out"])
def test_memory_grows_with_the_rows(name):
    views, labels = _views(16384, 128, torch.bfloat16), _labels(16384)
    numbers = [torch.tensor(v, device="cuda") for v in (10.0, -5.0)]
    _step(name, views, numbers, labels)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _step(name, views, numbers, labels)
    torch.cuda.synchronize()
    # One matrix of logits is 0.5 GB in bfloat16, for the labels' 2 GB.
    assert torch.cuda.max_memory_allocated() - before < 200 * 2**20


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
@pytest.mark.parametrize("name", LOSSES)
def test_small_auto_is_triton(name, dtype):
    views = _views(20, 16, dtype)
    numbers = [torch.tensor(v, device="cuda") for v in (10.0, -5.0)]
    auto = _step(name, views, numbers, _labels(20))
    named = LOSSES[name](*views, *numbers, _labels(20), impl="triton")
    assert torch.equal(auto[0], named)

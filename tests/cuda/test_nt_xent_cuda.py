"""NT-Xent on a GPU. Tests named `small` are those that compute-sanitizer runs."""

import os

import pytest
import torch

import fastssl
from fastssl.ops.nt_xent import reference

pytestmark = [pytest.mark.cuda]

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: What is forgiven beside twice eager's error, relative to the largest true value.
FLOOR = {torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}


def _views(n, d, dtype, spread=1.0):
    generator = torch.Generator("cuda").manual_seed(n + d)
    z = [torch.randn(n, d, generator=generator, device="cuda") for _ in range(2)]
    return [(x * spread).to(dtype).requires_grad_() for x in (z[0], z[0] + z[1])]


def _evaluate(function, views, temperature, dtype):
    leaves = [z.detach().to(dtype).requires_grad_() for z in views]
    wanted = list(leaves)
    if isinstance(temperature, torch.Tensor):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        temperature = temperature.detach().to(wide).requires_grad_()
        wanted.append(temperature)
    loss = function(*leaves, temperature)
    upstream = torch.linspace(-0.5, 1.5, loss.numel() + 1, dtype=loss.dtype, device="cuda")[1:]
    return [loss.detach(), *torch.autograd.grad(loss, wanted, upstream.reshape(loss.shape))]


def _check(views, temperature, normalize=True, reduction="mean"):
    dtype = views[0].dtype

    def naive(z0, z1, t):
        return reference.nt_xent(z0, z1, t, normalize, reduction).to(z0.dtype)

    def fused(z0, z1, t):
        return fastssl.nt_xent(z0, z1, t, normalize=normalize, reduction=reduction, impl="triton")

    truth = _evaluate(naive, views, temperature, torch.float64)
    eager = _evaluate(naive, views, temperature, dtype)
    ours = _evaluate(fused, views, temperature, dtype)
    floor = FLOOR[dtype] + 2.0**-24 / abs(float(torch.as_tensor(temperature).detach()))
    for name, x, e, t in zip(("loss", "z0", "z1", "temperature"), ours, eager, truth, strict=False):
        error, allowed = (x.double() - t).abs().max(), (e.double() - t).abs().max()
        limit = 2 * allowed + floor * t.abs().max()
        assert error <= limit, f"{name}: error {error:.3g}, allowed {limit:.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, d", [(2, 3), (5, 33), (70, 128), (40, 200), (40, 300)])
def test_small_values_and_gradients(n, d, dtype):
    _check(_views(n, d, dtype), 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, d", [(300, 16), (1000, 127), (1024, 128), (700, 256), (600, 768)])
def test_values_and_gradients(n, d, dtype):
    _check(_views(n, d, dtype), 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 10.0, -0.1])
@pytest.mark.parametrize("learned", [False, True])
def test_temperatures(temperature, learned, dtype):
    views = _views(150, 64, dtype)
    _check(views, torch.tensor(temperature, device="cuda") if learned else temperature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_small_reductions(reduction, dtype):
    _check(_views(70, 32, dtype), 0.2, reduction=reduction)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_without_normalisation(dtype):
    _check(_views(70, 33, dtype, spread=0.1), 0.5, normalize=False)


def test_small_float64():
    views = _views(20, 16, torch.float64)
    loss = fastssl.nt_xent(*views, 0.5, impl="triton")
    torch.testing.assert_close(loss, reference.nt_xent(*views, 0.5))
    loss.backward()
    assert all(z.grad.isfinite().all() for z in views)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_strides(dtype):
    base = torch.randn(70, 2, 80, device="cuda").to(dtype)
    views = [base[:, 0, ::2], base[:, 1, :40].t().contiguous().t()]
    plain = fastssl.nt_xent(*(z.contiguous() for z in views), 0.3, impl="triton")
    # To the last place: what is loaded another way may be added up in another order.
    found = fastssl.nt_xent(*views, 0.3, impl="triton")
    torch.testing.assert_close(found, plain, rtol=4 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_one_pair_is_exactly_zero(dtype):
    views = _views(1, 20, dtype)
    loss = fastssl.nt_xent(*views, 0.1)
    loss.backward()
    assert loss.item() == 0 and not any(z.grad.any() for z in views)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_zero_rows_are_finite(dtype):
    views = _views(40, 32, dtype)
    with torch.no_grad():
        views[0][3] = 0
        views[1][3] = 0
    loss = fastssl.nt_xent(*views, 0.1)
    loss.backward()
    assert loss.isfinite() and all(z.grad.isfinite().all() for z in views)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_small_what_is_not_a_number_stays(value):
    views = _views(40, 32, torch.bfloat16)
    with torch.no_grad():
        views[0][3, 5] = value
    loss = fastssl.nt_xent(*views, 0.1)
    loss.backward()
    assert loss.isnan() and all(z.grad.isnan().any() for z in views)


def _step(views, temperature=0.1):
    loss = fastssl.nt_xent(*views, temperature)
    return loss.detach(), *torch.autograd.grad(loss, views)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_as_one_graph(dtype):
    views = _views(100, 64, dtype)

    @torch.compile(fullgraph=True)
    def step(z0, z1):
        return fastssl.nt_xent(z0 * 2, z1, 0.2)

    loss = step(*views)
    loss.backward()
    compiled = [loss.detach(), *(z.grad.clone() for z in views)]
    plain = _evaluate(lambda a, b, t: fastssl.nt_xent(a * 2, b, t), views, 0.2, dtype)
    torch.testing.assert_close(compiled[0], plain[0])
    for z, grad in zip(views, compiled[1:], strict=True):
        again = torch.autograd.grad(fastssl.nt_xent(views[0] * 2, views[1], 0.2), z)[0]
        torch.testing.assert_close(grad, again, rtol=2e-2, atol=1e-2 * again.abs().max().item())


def test_nothing_waits_for_the_device():
    views = _views(500, 128, torch.bfloat16)
    temperature = torch.tensor(0.1, device="cuda", requires_grad=True)
    fastssl.nt_xent(*views, temperature).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fastssl.nt_xent(*views, temperature).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast_and_auto():
    views = _views(50, 32, torch.bfloat16)
    assert torch.equal(fastssl.nt_xent(*views), fastssl.nt_xent(*views, impl="triton"))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert fastssl.nt_xent(*views).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_many_rows(dtype):
    # The sums of 40,000 rows against float64 for a sample of them.
    n, d, temperature = 20_000, 64, 0.1
    views = _views(n, d, dtype)
    rows = fastssl.nt_xent(*views, temperature, reduction="none")
    z = torch.nn.functional.normalize(torch.cat(views).detach().double())
    sample = torch.arange(0, 2 * n, 997, device="cuda")
    logits = z[sample] @ z.T / temperature
    logits.scatter_(1, sample[:, None], float("-inf"))
    partner = (sample + n) % (2 * n)
    truth = torch.nn.functional.cross_entropy(logits, partner, reduction="none")
    tolerance = {torch.bfloat16: 8e-3, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(rows[sample].double(), truth, rtol=tolerance, atol=0)
    _, grad, _ = _step(views)
    assert grad.isfinite().all() and grad.any(1).all()


def test_memory_grows_with_the_rows():
    views = _views(16384, 128, torch.bfloat16)
    _step(views)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _step(views)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < 200 * 2**20  # the matrix alone is 2 GB


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_operators_keep_their_contract(dtype):
    z0, z1 = (z.detach() for z in _views(20, 16, dtype))
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for reduction in range(3):
        options = (None, 0.5, True, reduction)
        forward = torch.ops.fastssl.nt_xent_forward
        torch.library.opcheck(forward, (z0, z1, *options), test_utils=utilities)
        loss, lse, miss = forward(z0, z1, *options)
        backward = torch.ops.fastssl.nt_xent_backward
        inputs = (torch.ones_like(loss), z0, z1, *options, lse, miss)
        torch.library.opcheck(backward, inputs, test_utils=utilities)

"""NT-Xent on the CPU: every implementation and instruction set against float64."""

import copy
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from nt_xent_cases import (
    assert_as_exact_as_eager,
    loss_and_gradients,
    upstream_gradient,
    views,
)

import fastssl
from fastssl.ops.nt_xent import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "d"),
    [(1, 1), (1, 128), (2, 1), (3, 2), (5, 16), (17, 33), (64, 127), (100, 128), (131, 129)]
    + [(48, 768), (7, 2048), (300, 40)],
)
def test_values_and_gradients(n, d, dtype, impl):
    assert_as_exact_as_eager(*views(n, d, dtype), 0.5, impl)


@pytest.mark.parametrize("temperature", [0.01, 0.0289, 0.031, 0.07, 1.0, 10.0, -0.01, -0.2, -10.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_temperatures(temperature, dtype, impl):
    assert_as_exact_as_eager(*views(61, 24, dtype, spread=0.3), temperature, impl)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.5, -0.01])
@pytest.mark.parametrize("kind", ["same", "opposite", "all one row", "orthogonal"])
def test_extreme_similarities(kind, temperature, impl):
    z0, _ = views(50, 64)
    z0 = z0.detach()
    z0, z1 = {
        "same": (z0, z0.clone()),
        "opposite": (z0, -z0),
        "all one row": (z0[:1].repeat(50, 1), z0[:1].repeat(50, 1)),
        "orthogonal": (torch.eye(64)[:25].repeat(2, 1), torch.eye(64)[25:50].repeat(2, 1)),
    }[kind]
    ours = fastssl.nt_xent(z0, z1, temperature, reduction="none", impl=impl)
    truth = reference.nt_xent(z0.double(), z1.double(), temperature, reduction="none")
    assert ours.isfinite().all()
    # A similarity of 1 is known to eps only, and is divided by the temperature.
    torch.testing.assert_close(ours.double(), truth, rtol=4e-6, atol=1e-6 / abs(temperature))
    assert_as_exact_as_eager(z0, z1, temperature, impl)


def orthonormal(n):
    """Aligned views of orthogonal rows: similarities are exactly 1 and 0."""
    return torch.eye(n).requires_grad_(), torch.eye(n).requires_grad_()


@pytest.mark.parametrize("temperature", [0.02, 0.1, 0.5])
def test_no_digit_is_lost_near_convergence(temperature, impl):
    """Where the positive dominates, log1p of the negatives keeps what lse - positive cancels."""
    if impl == "reference":
        pytest.skip("the textbook form cancels; that is what this is about")
    z0, z1 = orthonormal(32)
    rows = fastssl.nt_xent(z0, z1, temperature, normalize=False, reduction="none", impl=impl)
    rows.sum().backward()
    odds = torch.tensor(62 * math.exp(-1 / temperature), dtype=torch.float64)
    truth = odds.log1p().expand(64)
    torch.testing.assert_close(rows.double(), truth, rtol=1e-5, atol=0)
    # Row i is pulled to its partner, the same unit vector, with 1 - P_ip from both sides, and
    # pushed off each other axis by rows j of both views, with P_ij + P_ji.
    miss = (odds / (1 + odds)).item()
    for ours, true in ((z0.grad[0, 0], -2 * miss), (z0.grad[0, 1], 4 * miss / 62)):
        assert ours.item() == pytest.approx(true / temperature, rel=1e-5, abs=0)


def test_exponentials_are_good_to_a_unit_in_the_last_place(impl):
    """The loss of orthonormal views is one exponential; temperatures sweep its fractional part."""
    if impl == "reference":
        pytest.skip("about the kernels' own exponential")
    z0, z1 = (z.detach() for z in orthonormal(32))
    for temperature in torch.linspace(0.15, 0.25, 64).tolist():
        ours = fastssl.nt_xent(z0, z1, temperature, normalize=False, impl=impl).item()
        scale = torch.tensor(math.log2(math.e) / temperature).item()  # as float32 has it
        assert ours == pytest.approx(math.log1p(62 * 2**-scale), rel=4e-7, abs=0)


def test_rounding_of_lse_does_not_shift_gradients(impl):
    """One row throughout: P is 1 / (2N - 1), and the pulls on the temperature cancel exactly."""
    z0, z1 = (torch.ones(50, 64) for _ in range(2))
    tau = torch.tensor(0.01, requires_grad=True)
    fastssl.nt_xent(z0, z1, tau, impl=impl).backward()
    assert abs(tau.grad.item()) < 0.015  # of terms that are 1e4


@pytest.mark.parametrize("scale", [2.0**10, 2.0**23, 2.0**30, 2.0**53])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_raw_similarities_of_any_size(scale, dtype, impl):
    """Whole numbers times a power of two: rows that are equally similar stay so."""
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=dtype)
    ours = fastssl.nt_xent(
        corners[:2] * scale, corners[2:] * scale, 1.0, normalize=False, impl=impl
    )
    assert ours.item() == pytest.approx(math.log(3), rel=1e-6)
    z0, z1 = (z.detach() * scale for z in views(40, 16, dtype))
    if scale <= 2.0**30:
        x0, x1 = z0.double().requires_grad_(), z1.double().requires_grad_()
        z0.requires_grad_()
        z1.requires_grad_()
        reference.nt_xent(x0, x1, 1.0, False).backward()
        fastssl.nt_xent(z0, z1, 1.0, normalize=False, impl=impl).backward()
        largest = x0.grad.abs().max()
        torch.testing.assert_close(
            z0.grad / largest, x0.grad.to(dtype) / largest, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_reductions_and_raw_similarities(reduction, normalize, dtype, impl):
    z0, z1 = views(37, 20, dtype)
    upstream = upstream_gradient((74,) if reduction == "none" else ())
    for temperature in (0.5, 0.05) if normalize else (4.0, 0.5):
        assert_as_exact_as_eager(
            z0, z1, temperature, impl, upstream, normalize=normalize, reduction=reduction
        )


def test_many_blocks(impl):
    """More rows than one block, a last block that is not full, several threads."""
    z0, z1 = views(701, 48)
    assert_as_exact_as_eager(z0, z1, 0.2, impl)
    assert_as_exact_as_eager(z0, z1, 0.02, impl, upstream_gradient((1402,)), reduction="none")


@pytest.mark.parametrize("upstream", [0.0, 1e-30, 65536.0, 1e30])
def test_upstream_gradients_of_any_size(upstream, impl):
    assert_as_exact_as_eager(*views(33, 17), 0.05, impl, torch.tensor(upstream).double())


def test_infinite_upstream_gradient_is_not_swallowed(impl):
    z0, z1 = views(9, 8)
    (fastssl.nt_xent(z0, z1, impl=impl) * math.inf).backward()
    assert not z0.grad.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_one_pair_has_no_loss(dtype, temperature, impl):
    z0, z1 = views(1, 19, dtype)
    loss = fastssl.nt_xent(z0, z1, temperature, impl=impl)
    loss.backward()
    assert loss.item() == 0
    assert z0.grad.count_nonzero() == 0
    assert z1.grad.count_nonzero() == 0


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_strides(temperature, impl):
    base0, base1 = (x.detach() for x in views(40, 30))
    wide = torch.randn(40, 60)
    wide[:, ::2] = base0
    strided = wide[:, ::2]
    transposed = base1.T.contiguous().T
    expanded = torch.randn(1, 30).expand(40, 30)
    for x, y in ((strided, transposed), (transposed, strided), (expanded, strided)):
        assert not x.is_contiguous()
        assert_as_exact_as_eager(x, y, temperature, impl)
        torch.testing.assert_close(
            fastssl.nt_xent(x, y, temperature, impl=impl),
            fastssl.nt_xent(x.contiguous(), y.contiguous(), temperature, impl=impl),
            rtol=0,
            atol=0,
        )


def test_one_input_requires_a_gradient(impl):
    z0, z1 = views(12, 9)
    fastssl.nt_xent(z0, z1, impl=impl).backward()
    for which in (0, 1):
        x = [z0.detach().clone(), z1.detach().clone()]
        x[which].requires_grad_()
        fastssl.nt_xent(*x, impl=impl).backward()
        torch.testing.assert_close(x[which].grad, (z0, z1)[which].grad, rtol=0, atol=0)
        assert x[1 - which].grad is None
    tau = torch.tensor(0.3, requires_grad=True)
    fastssl.nt_xent(z0.detach(), z1.detach(), tau, impl=impl).backward()
    assert tau.grad.shape == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_zero_rows_have_finite_gradients(dtype, temperature, impl):
    z0, z1 = views(10, 8, dtype)
    with torch.no_grad():
        z0[3] = 0
        z1[3:5] = 0
        if dtype in (torch.float32, torch.float64):
            z0[5] *= 1e-14  # shorter than 1e-12, too
    loss = fastssl.nt_xent(z0, z1, temperature, impl=impl)
    loss.backward()
    assert loss.isfinite()
    assert z0.grad.isfinite().all()
    assert z1.grad.isfinite().all()
    if dtype in (torch.float32, torch.float64):  # as torch.nn.functional.normalize has it
        x0, x1 = z0.detach().double().requires_grad_(), z1.detach().double().requires_grad_()
        reference.nt_xent(F.normalize(x0), F.normalize(x1), temperature, False).backward()
        torch.testing.assert_close(z0.grad.double(), x0.grad, rtol=2e-4, atol=1e-4)
        torch.testing.assert_close(z1.grad.double(), x1.grad, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_nan_and_infinity_propagate(bad, temperature, n, impl):
    z0, z1 = views(n, 12)
    with torch.no_grad():
        z1[n // 2, 5] = bad
    rows = fastssl.nt_xent(z0, z1, temperature, reduction="none", impl=impl)
    assert rows.isnan().all()
    rows.sum().backward()
    assert z0.grad.isnan().all()
    assert z1.grad.isnan().all()


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_same_bits_from_call_to_call(temperature, impl):
    z0, z1 = views(333, 70)
    first = loss_and_gradients(fastssl.nt_xent, z0, z1, temperature, torch.ones(()), impl=impl)
    for _ in range(5):
        again = loss_and_gradients(fastssl.nt_xent, z0, z1, temperature, torch.ones(()), impl=impl)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("threads", [1, 7])
def test_any_number_of_threads_agrees(threads, impl):
    """Seven is more than a small machine has cores: threads wait for each other."""
    z0, z1 = views(333, 70)
    usual = loss_and_gradients(fastssl.nt_xent, z0, z1, 0.1, torch.ones(()), impl=impl)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        ours = loss_and_gradients(fastssl.nt_xent, z0, z1, 0.1, torch.ones(()), impl=impl)
        again = loss_and_gradients(fastssl.nt_xent, z0, z1, 0.1, torch.ones(()), impl=impl)
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(ours, usual, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        assert torch.equal(a, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_output_types(dtype, impl):
    z0, z1 = views(6, 8, dtype)
    assert fastssl.nt_xent(z0, z1, impl=impl).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        loss = fastssl.nt_xent(z0, z1, impl=impl)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    loss.backward()
    assert z0.grad.dtype == dtype


def test_autocast_keeps_float32_and_promotes(impl):
    z0, z1 = views(30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fastssl.nt_xent(z0, z1, 0.1, impl=impl)
        mixed = fastssl.nt_xent(z0, z1.bfloat16(), 0.1, impl=impl)
    assert torch.equal(inside, fastssl.nt_xent(z0, z1, 0.1, impl=impl))
    assert mixed.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((torch.ones(2, 3), [1.0]), {}, TypeError, "z1: got list, must be a tensor"),
        ((torch.ones(0, 3), torch.ones(0, 3)), {}, ValueError, r"z0: got shape \(0, 3\)"),
        ((torch.ones(2, 0), torch.ones(2, 0)), {}, ValueError, r"z0: got shape \(2, 0\)"),
        ((torch.ones(2, 3), torch.ones(3, 3)), {}, ValueError, r"z1: got shape \(3, 3\), .*z0"),
        ((torch.ones(6), torch.ones(6)), {}, ValueError, r"z0: got shape \(6,\), must be \[N, D\]"),
        ((torch.ones(2, 3).int(), torch.ones(2, 3)), {}, TypeError, "z0: got dtype torch.int32"),
        (
            (torch.ones(2, 3), torch.ones(2, 3).double()),
            {},
            TypeError,
            "z1: got dtype torch.float64",
        ),
        (
            (torch.ones(2, 3), torch.ones(2, 3, device="meta")),
            {},
            ValueError,
            "z1: got device meta, must be that of z0, cpu",
        ),
        ((torch.ones(2, 3), torch.ones(2, 3), 0.0), {}, ValueError, "temperature: got 0.0"),
        ((torch.ones(2, 3), torch.ones(2, 3), -9e-9), {}, ValueError, "at least 1e-8"),
        ((torch.ones(2, 3), torch.ones(2, 3), math.nan), {}, ValueError, "temperature: got nan"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.zeros(())), {}, ValueError, "temperature"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(1)), {}, ValueError, r"must be 0-d"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.tensor(1)), {}, TypeError, "temperature"),
        ((torch.ones(2, 3), torch.ones(2, 3), "a"), {}, TypeError, "temperature: got 'a'"),
        ((torch.ones(2, 3), torch.ones(2, 3), None), {}, TypeError, "temperature: got None"),
        (
            (torch.ones(2, 3), torch.ones(2, 3)),
            {"normalize": "no"},
            TypeError,
            "normalize: got 'no'",
        ),
        ((torch.ones(2, 3).to_sparse(), torch.ones(2, 3)), {}, TypeError, "z0: got layout"),
        ((torch.ones(2, 3), torch.ones(2, 3)), {"reduction": "avg"}, ValueError, "reduction: got"),
        ((torch.ones(2, 3), torch.ones(2, 3)), {"impl": "cuda"}, ValueError, "impl: got 'cuda'"),
    ],
)
def test_errors_name_the_argument(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        fastssl.nt_xent(*arguments, **keywords)


def test_module():
    z0, z1 = views(8, 5)
    module = fastssl.NTXentLoss(temperature=0.2)
    assert torch.equal(module(z0, z1), fastssl.nt_xent(z0, z1, 0.2))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(z0, z1), module(z0, z1))
    assert not module.state_dict()
    assert repr(module) == "NTXentLoss(temperature=0.2)"
    assert fastssl.NTXentLoss().temperature == 0.5
    with pytest.raises(ValueError, match="temperature"):
        fastssl.NTXentLoss(1e-9)
    learned = fastssl.NTXentLoss(torch.nn.Parameter(torch.tensor(0.2)))
    learned(z0, z1).backward()
    assert learned.temperature.grad is not None
    assert "temperature=0.2" in repr(learned)
    fixed = fastssl.NTXentLoss(torch.tensor(0.2)).double()
    assert fixed.temperature.dtype == torch.float64
    with pytest.raises(TypeError, match="temperature"):
        fastssl.NTXentLoss("a")
    assert list(learned.state_dict()) == ["temperature"]


def test_memory_grows_with_the_rows_not_with_their_square():
    """2N = 32,768: the matrix alone would take 4.3 GB. A process of its own has a clean peak."""
    script = """
import resource, torch, fastssl
z0, z1 = (torch.randn(16384, 16).requires_grad_() for _ in range(2))
fastssl.nt_xent(z0[:64], z1[:64]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fastssl.nt_xent(z0, z1).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 64


@pytest.mark.parametrize("name", ["sse9", "AVX2"])
def test_an_unknown_capability_is_no_silent_fallback(name):
    script = "import warnings; warnings.simplefilter('error'); import fastssl"
    environment = {**os.environ, "FASTSSL_CPU_CAPABILITY": name}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode != 0
    assert f"CPU capability '{name}' cannot run here" in done.stderr

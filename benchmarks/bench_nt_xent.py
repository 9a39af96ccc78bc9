"""NT-Xent, forward and backward, on the CPU: fastssl against what people use today.

The baselines: the textbook code that copies the matrix without its diagonal; the best eager form
(one product, the diagonal filled in place); the same under torch.compile; lightly where installed.
"""

import functools

import pytest
import torch
import torch.nn.functional as F

import fastssl
from benchmarks import measure
from fastssl._library import _C
from fastssl.ops.nt_xent import reference

DEPTH = 128
TEMPERATURE = 0.5


def textbook(z0, z1):
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    n, rows = len(z0), 2 * len(z0)
    similarity = z @ z.T / TEMPERATURE
    others = ~torch.eye(rows, dtype=torch.bool)
    logits = similarity[others].view(rows, rows - 1)
    index = torch.arange(n)
    target = torch.cat([index + n - 1, index])  # the diagonal is gone
    return F.cross_entropy(logits, target)


def eager(z0, z1):
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    n = len(z0)
    logits = z @ z.T / TEMPERATURE
    logits.fill_diagonal_(float("-inf"))
    index = torch.arange(n)
    return F.cross_entropy(logits, torch.cat([index + n, index]))


@functools.cache
def lightly():
    try:
        from lightly.loss import NTXentLoss
    except Exception as error:  # an installation may also be broken
        pytest.skip(f"lightly: {error}")
    return NTXentLoss(temperature=TEMPERATURE)


def provider(name):
    if name == "lightly":
        return lightly()
    if name.startswith("fastssl"):
        _, _, capability = name.partition(" ")
        if capability:
            if not _C or capability not in _C.cpu_capabilities():
                pytest.skip(f"{capability} does not run here")
            _C.use_cpu_capability(capability)
        return lambda z0, z1: fastssl.nt_xent(z0, z1, TEMPERATURE)
    return {"textbook": textbook, "eager": eager, "compiled": torch.compile(eager)}[name]


def inputs(rows, dtype):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(rows // 2, DEPTH, generator=g).to(dtype).requires_grad_() for _ in range(2)]


def step(function, z0, z1):
    z0.grad = z1.grad = None
    loss = function(z0, z1)
    loss.backward()
    return loss.detach(), z0.grad, z1.grad


@functools.cache
def truth(rows, dtype):
    """The result in float64, once for all providers of a size."""
    z0, z1 = (z.detach().double().requires_grad_() for z in inputs(rows, dtype))
    return step(lambda z0, z1: reference.nt_xent(z0, z1, TEMPERATURE), z0, z1)


@pytest.fixture(autouse=True)
def _restore_capability():
    before = _C.cpu_capability() if _C else ""
    torch._dynamo.reset()
    yield
    if _C:
        _C.use_cpu_capability(before)


SIZES = [512, 2048, 4096, 8192]
CASES = [
    (rows, name, torch.float32)
    for rows in SIZES
    for name in ("textbook", "lightly", "eager", "compiled", "fastssl")
]
CASES += [
    (rows, f"fastssl {isa}", torch.float32) for rows in (2048, 8192) for isa in ("base", "avx2")
]
CASES += [(rows, name, torch.bfloat16) for rows in (2048, 8192) for name in ("eager", "fastssl")]
CASES += [(65536, "fastssl", torch.float32)]


@pytest.mark.parametrize(("rows", "name", "dtype"), CASES)
def test_nt_xent(benchmark, rows, name, dtype):
    function = provider(name)
    z0, z1 = inputs(rows, dtype)
    parity = None
    if rows <= max(SIZES):
        parity = measure.assert_parity(step(function, z0, z1), truth(rows, dtype), dtype)
    else:
        # No matrix to compare with: the loss over a sample of rows, straight from the definition.
        with torch.no_grad():
            ours = fastssl.nt_xent(z0, z1, TEMPERATURE, reduction="none")[:64]
            z = F.normalize(torch.cat([z0, z1]).double(), dim=1)
            logits = z[:64] @ z.T / TEMPERATURE
            logits.fill_diagonal_(float("-inf"))
            partner = torch.arange(64) + rows // 2
            sample = F.cross_entropy(logits, partner, reduction="none")
        parity = measure.assert_parity([ours], [sample], dtype)
    memory = measure.peak_memory(lambda: step(function, z0, z1))
    floor = None
    if _C:  # one triangular product forward; the same again, and one full product, backward
        floor = 4 * rows**2 * DEPTH / _C.fma_rate(0.2) * 1e3
    measure.run(
        benchmark,
        lambda: step(function, z0, z1),
        op="nt_xent",
        case=f"2N = {rows}",
        size=rows,
        impl=name,
        dtype=str(dtype).removeprefix("torch."),
        depth=DEPTH,
        parity=parity,
        peak_mib=memory,
        floor_ms=floor,
    )

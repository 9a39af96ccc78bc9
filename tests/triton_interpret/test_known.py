"""The kernels that the model is checked with compute what their names say, against float64."""

import pytest
import torch

from benchmarks.machine_code import known

HALVES = [torch.float16, torch.bfloat16]
#: Rounding of the output, and of what is multiplied a second time.
EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def _random(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _close(ours, truth, dtype):
    assert ours.isfinite().all()
    error = (ours.double() - truth).abs().max()
    assert error <= 2 * EPSILON[dtype] * truth.abs().max()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows, columns, depth", [(32, 32, 16), (100, 80, 48), (16, 112, 32)])
def test_product(rows, columns, depth, dtype):
    a, b = _random(rows, depth, dtype=dtype), _random(depth, columns, dtype=dtype, seed=1)
    c = torch.full((rows, columns), float("nan"), dtype=dtype)
    tile = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "GROUP": 2}
    blocks = -(-rows // 16) * -(-columns // 32)
    known.multiply[(blocks,)](a, b, c, rows, columns, depth, **tile)
    _close(c, a.double() @ b.double(), dtype)


@pytest.mark.parametrize("rows, columns, programs", [(5, 33, 2), (3, 64, 8), (1, 1, 1)])
def test_softmax(rows, columns, programs):
    x = 4 * _random(rows, columns, dtype=torch.float32)
    out = torch.full_like(x, float("nan"))
    known.softmax[(programs,)](out, x, rows, columns, BLOCK=64, STAGES=2)
    truth = torch.softmax(x.double(), 1)
    assert (out.double() - truth).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads, length, depth", [(1, 32, 16), (3, 64, 64)])
def test_attention(heads, length, depth, causal, dtype):
    q, k, v = (_random(heads, length, depth, dtype=dtype, seed=s) for s in range(3))
    out, lse = torch.full_like(q, float("nan")), torch.full((heads, length), float("nan"))
    factor = depth**-0.5
    known.attend[(length // 32, heads)](
        q, k, v, out, lse, factor * known.LOG2_E, length,
        DEPTH=depth, CAUSAL=causal, BLOCK_M=32, BLOCK_N=16,
    )  # fmt: skip
    scores = factor * q.double() @ k.double().mT
    if causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf"))
    _close(out, scores.softmax(-1) @ v.double(), dtype)
    truth = scores.logsumexp(-1)
    assert (lse.double() / known.LOG2_E - truth).abs().max() <= 1e-4 * truth.abs().max()

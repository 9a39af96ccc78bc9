"""Gradient caching on a GPU: its generator, float16 with a scaler."""

import copy

import pytest
import torch
from torch import nn

from fastssl import cached_step, nt_xent

pytestmark = [pytest.mark.cuda]


def network():
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 64)
    ).cuda()  # fmt: skip


def in_chunks(encoder, view):
    return torch.cat([encoder(chunk) for chunk in view.split(40)])


def assert_same_gradients(module, other, scale, allowed):
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        assert (p.grad / scale - q.grad / scale).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_dropout_is_replayed(dtype):
    encoder, views = network(), list(torch.randn(2, 100, 64, device="cuda"))
    whole = copy.deepcopy(encoder)
    half = dtype != torch.float32
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, enabled=dtype == torch.float16)
    scale = 1024.0 if dtype == torch.float16 else 1.0
    # Without autocast's cache, which would add up the gradients of chunks in half precision.
    with torch.autocast("cuda", torch.float16 if not half else dtype, half, cache_enabled=False):
        torch.manual_seed(1)
        expected = nt_xent(*(in_chunks(whole, view) for view in views))
        states = torch.get_rng_state(), torch.cuda.get_rng_state()
        scaler.scale(expected).backward()
    with torch.autocast("cuda", torch.float16 if not half else dtype, half):
        torch.manual_seed(1)
        loss = cached_step(
            encoder, views, nt_xent, chunk_size=40, backward=lambda x: scaler.scale(x).backward()
        )
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
    assert_same_gradients(encoder, whole, scale, 1e-3 if half else 1e-6)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert torch.equal(torch.cuda.get_rng_state(), states[1])

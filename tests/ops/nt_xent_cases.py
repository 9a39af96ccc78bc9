"""Inputs for NT-Xent, and the measure of its exactness."""

import torch

import fastssl
from fastssl.ops.nt_xent import reference


def views(n, d, dtype=torch.float32, spread=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    z0 = torch.randn(n, d, generator=g, dtype=torch.float64)
    z1 = z0 + spread * torch.randn(n, d, generator=g, dtype=torch.float64)
    return z0.to(dtype).requires_grad_(), z1.to(dtype).requires_grad_()


def loss_and_gradients(function, z0, z1, temperature, upstream, **keywords):
    leaves = [z0.detach().requires_grad_(), z1.detach().requires_grad_()]
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    loss = function(*leaves, tau, **keywords)
    grads = torch.autograd.grad(loss, [*leaves, tau], upstream.to(loss.dtype).expand_as(loss))
    return [loss.detach(), *grads]


def upstream_gradient(shape=()):
    """Random multiples of 1/8: exact in every dtype."""
    return torch.randint(-16, 17, shape).double() / 8


def assert_as_exact_as_eager(z0, z1, temperature, impl, upstream=None, **keywords):
    """|ours - truth| <= 2 |eager - truth| + floor, for the loss and every gradient.

    The floor: a few units in the last place of the largest value, or of the terms of a gradient
    that cancel; for exponentials, what one such unit in a similarity makes of them. In float64 the
    truth itself is no better than that.
    """
    upstream = torch.ones((), dtype=torch.float64) if upstream is None else upstream
    x0, x1 = z0.detach().double(), z1.detach().double()
    truth = loss_and_gradients(reference.nt_xent, x0, x1, temperature, upstream, **keywords)
    eager = loss_and_gradients(reference.nt_xent, z0, z1, temperature, upstream, **keywords)
    ours = loss_and_gradients(fastssl.nt_xent, z0, z1, temperature, upstream, impl=impl, **keywords)
    squares = torch.cat([x0, x1]).square().sum(1)
    normalize = keywords.get("normalize", True)
    similarity = 1.0 if normalize else squares.max().item()
    weight = upstream.abs().max().item()
    weight /= len(squares) if keywords.get("reduction", "mean") == "mean" else 1
    term = weight / abs(temperature) / (squares.min().sqrt().item() if normalize else 1)
    terms = (1.0, term, term, weight * len(squares) * similarity / temperature**2)
    compute_eps = torch.finfo(reference.compute_dtype(z0.dtype)).eps
    floor = 4 * torch.finfo(z0.dtype).eps + 2 * compute_eps * similarity / abs(temperature)
    for name, mine, theirs, true, least in zip(
        ("loss", "z0.grad", "z1.grad", "temperature.grad"), ours, eager, truth, terms, strict=True
    ):
        scale = max(true.abs().max().item(), least)
        allowed = 2 * (theirs.double() - true).abs().max().item() + floor * scale
        error = (mine.double() - true).abs().max().item()
        assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"

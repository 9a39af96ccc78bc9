"""NT-Xent under autograd, torch.func, torch.compile and the checks for custom operators."""

import pytest
import torch
from nt_xent_cases import views
from torch.autograd import gradcheck, gradgradcheck

import fastssl
from fastssl.ops.nt_xent import reference, schema


@pytest.mark.parametrize("temperature", [0.03, 0.5])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(temperature, reduction, impl):
    z0, z1 = views(4, 3, torch.float64)
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)

    def loss(z0, z1, tau):
        return fastssl.nt_xent(z0, z1, tau, reduction=reduction, impl=impl)

    assert gradcheck(loss, (z0, z1, tau))
    if temperature == 0.5:
        assert gradgradcheck(loss, (z0, z1, tau))


def test_second_derivative_of_a_penalty(impl):
    """The gradient penalty of a network's loss, as one would write it."""
    z0, z1 = views(6, 5, torch.float64)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def penalty(function, **keywords):
        loss = function(z0 @ weight, z1 @ weight, 0.2, **keywords)
        (g,) = torch.autograd.grad(loss, weight, create_graph=True)
        return torch.autograd.grad(loss + g.square().sum(), weight)[0]

    torch.testing.assert_close(penalty(fastssl.nt_xent, impl=impl), penalty(reference.nt_xent))


def test_functional_gradient(impl):
    z0, z1 = (x.detach() for x in views(11, 6))
    ours = torch.func.grad(lambda x: fastssl.nt_xent(x, z1, 0.2, impl=impl))(z0)
    x = z0.clone().requires_grad_()
    fastssl.nt_xent(x, z1, 0.2, impl=impl).backward()
    torch.testing.assert_close(ours, x.grad, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("learned", [False, True])
def test_compiles_into_one_graph(backend, learned):
    def step(z0, z1, tau):
        return fastssl.nt_xent(z0 * 1.5, z1.tanh(), tau)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for n in (20, 26, 33):
        z0, z1 = views(n, 16)
        tau = torch.tensor(0.2, requires_grad=True) if learned else 0.2
        inputs = [z0, z1, tau] if learned else [z0, z1]
        ours = torch.autograd.grad(compiled(z0, z1, tau), inputs)
        eager = torch.autograd.grad(step(z0, z1, tau), inputs)
        for a, b in zip(ours, eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_opcheck(dtype, reduction):
    z0, z1 = (x.detach() for x in views(5, 4, dtype))
    compute = reference.compute_dtype(dtype)
    for tau in (None, torch.tensor(0.3, dtype=compute)):
        inputs = (z0, z1, tau, 0.3, True, reduction)
        torch.library.opcheck(torch.ops.fastssl.nt_xent_forward, inputs)
        loss, lse, miss = torch.ops.fastssl.nt_xent_forward(*inputs)
        grad = torch.ones_like(loss)
        torch.library.opcheck(torch.ops.fastssl.nt_xent_backward, (grad, *inputs, lse, miss))


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_fallback_operator_agrees(reduction, temperature):
    """What devices without a kernel of their own get."""
    z0, z1 = (x.detach() for x in views(9, 4, torch.float64))
    inputs = (z0, z1, None, temperature, True, reduction)
    native, fallback = torch.ops.fastssl.nt_xent_forward(*inputs), schema._forward(*inputs)
    torch.testing.assert_close(native, fallback)
    more = (torch.randn_like(native[0]), *inputs, *native[1:])
    torch.testing.assert_close(torch.ops.fastssl.nt_xent_backward(*more), schema._backward(*more))


def test_meta_tensors_have_shapes():
    z0, z1 = (x.detach().to("meta") for x in views(5, 4))
    assert fastssl.nt_xent(z0, z1, reduction="none").shape == (10,)


def test_raw_operators_protect_memory():
    z0, z1 = (x.detach() for x in views(3, 4))
    inputs = (z0, z1, None, 0.5, True, 0)
    loss, lse, miss = torch.ops.fastssl.nt_xent_forward(*inputs)
    for grad in (loss.view(3, 2), loss[:4]):
        with pytest.raises(RuntimeError, match="do not belong to these inputs"):
            torch.ops.fastssl.nt_xent_backward(grad, *inputs, lse, miss)
    with pytest.raises(RuntimeError, match="reduction must be 0, 1 or 2"):
        torch.ops.fastssl.nt_xent_forward(*inputs[:5], 7)

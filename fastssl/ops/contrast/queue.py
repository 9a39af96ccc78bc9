"""Log-sum-exp over rows that need no gradient, such as a queue's: two products instead of three.

The gradient of log-sum-exp with respect to a query is the mean of the queue under its softmax,
which one walk over the queue yields along with the sums. The general operators would go over it
again.
"""

import torch
from torch import Tensor

from fastssl._autograd import applied, no_third_derivative
from fastssl._checks import compute_dtype
from fastssl.ops.contrast import schema


def queue_lse(z: Tensor, rows: Tensor, scale: float | Tensor, normalize: bool) -> Tensor:
    """float64 [R]: log-sum-exp of scale * z rowsT. z: [R, D], in the compute type; rows: [K, D].

    Differentiable twice in z and scale; the second derivative goes through the matrix.
    """
    learned = isinstance(scale, Tensor)
    tensor = scale.to(device=z.device, dtype=compute_dtype(z.dtype)) if learned else None
    z = z.to(compute_dtype(z.dtype))
    wanted = torch.is_grad_enabled() and (z.requires_grad or (learned and tensor.requires_grad))
    factor = 0.0 if learned else float(scale)
    lse, _ = _differentiable(z, rows, tensor, factor, normalize, wanted)
    return lse


class _Queue(torch.autograd.Function):
    @staticmethod
    def forward(z, rows, scale, factor, normalize, wanted):
        return torch.ops.fastssl.contrast_queue(z, rows, scale, factor, normalize, wanted)

    @staticmethod
    def setup_context(ctx, inputs, output):
        z, rows, scale, *ctx.options, _ = inputs
        _, mean = output
        ctx.mark_non_differentiable(mean)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, rows, scale, mean)

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 6
        gradient = _Gradient.apply if torch.is_grad_enabled() else _Gradient.forward
        grad_z, grad_scale = gradient(grad, *ctx.saved_tensors, *ctx.options)
        return grad_z, None, grad_scale if ctx.needs_input_grad[2] else None, *[None] * 3


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(grad, z, rows, scale, mean, factor, normalize):
        grad = grad.to(z.dtype)
        grad_z = mean * (grad * (factor if scale is None else scale))[:, None]
        return grad_z, (grad * (z * mean).sum(1)).sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, z, rows, scale, _, *ctx.options = inputs
        ctx.save_for_backward(grad, z, rows, scale)

    @staticmethod
    def backward(ctx, *grads):
        no_third_derivative()
        grad, z, rows, scale = ctx.saved_tensors
        factor, normalize = ctx.options
        with torch.enable_grad():
            grad, z = (x.detach().requires_grad_() for x in (grad, z))
            leaf = z.new_full((), factor) if scale is None else scale.detach()
            wanted = [z, leaf.requires_grad_()]
            lse, _ = schema.queue(z, rows, leaf, 0.0, normalize, False)
            first = torch.autograd.grad(lse, wanted, grad, create_graph=True)
        second = torch.autograd.grad(first, [grad, *wanted], grads)
        return second[0], second[1], None, None if scale is None else second[2], None, None, None


_differentiable = applied(_Queue)

"""The raw operators: schemas, the fallback for devices without a kernel, shapes for tracing.

nt_xent_forward returns (loss, lse, miss): loss [] or [2N]; lse [2N], the logarithm to base 2 of
each row's sum of exponentials over all other rows, float64 (its rounding would shift a whole row of
gradients); miss [2N], the probability that a row picks anything but its partner. `temperature` wins
over `tau` where it is given. Losses, miss and the temperature's gradient are in the compute type
(float64 for float64 inputs, float32 otherwise), the gradients of z0 and z1 in the inputs' type.
"""

import math

import torch

from fastssl._checks import compute_dtype
from fastssl._library import LIBRARY
from fastssl.ops.nt_xent import reference

REDUCTIONS = ("none", "mean", "sum")  # passed as their index

LIBRARY.define(
    "nt_xent_forward(Tensor z0, Tensor z1, Tensor? temperature, float tau, bool normalize, "
    "int reduction) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "nt_xent_backward(Tensor grad, Tensor z0, Tensor z1, Tensor? temperature, float tau, "
    "bool normalize, int reduction, Tensor lse, Tensor miss) -> (Tensor, Tensor, Tensor)"
)


def _forward(z0, z1, temperature, tau, normalize, reduction):
    temperature = tau if temperature is None else temperature
    z = torch.cat([z0, z1])
    z = reference.normalize_rows(z) if normalize else z.to(compute_dtype(z.dtype))
    logits = z @ z.T / temperature
    n = len(z0)
    positive = torch.cat([logits.diagonal(n), logits.diagonal(-n)])
    for offset in (0, n, -n):
        logits.diagonal(offset).fill_(-math.inf)
    x = logits.logsumexp(1) - positive  # log-odds of anything but the partner
    rows = torch.logaddexp(x, torch.zeros_like(x)) + (positive - positive)
    loss = (rows.clone, rows.mean, rows.sum)[reduction]()
    return loss, (positive + rows).double() / math.log(2), x.sigmoid()


def _backward(grad, z0, z1, temperature, tau, normalize, reduction, lse, miss):
    if temperature is None:  # made where it is used: nothing waits for the device
        temperature = torch.full((), tau, dtype=miss.dtype, device=z0.device)
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (z0, z1, temperature.to(z0.device))]
        loss = reference.nt_xent(*leaves, normalize, REDUCTIONS[reduction])
    return torch.autograd.grad(loss, leaves, grad.to(loss.dtype))


def _forward_fake(z0, z1, temperature, tau, normalize, reduction):
    rows, dtype = 2 * z0.shape[0], compute_dtype(z0.dtype)
    loss = z0.new_empty((rows,) if REDUCTIONS[reduction] == "none" else (), dtype=dtype)
    return loss, z0.new_empty(rows, dtype=torch.float64), z0.new_empty(rows, dtype=dtype)


def _backward_fake(grad, z0, z1, temperature, tau, normalize, reduction, lse, miss):
    return z0.new_empty(z0.shape), z1.new_empty(z1.shape), miss.new_empty(())


LIBRARY.impl("nt_xent_forward", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("nt_xent_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("fastssl::nt_xent_forward", _forward_fake, lib=LIBRARY)
torch.library.register_fake("fastssl::nt_xent_backward", _backward_fake, lib=LIBRARY)

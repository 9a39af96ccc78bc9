"""NT-Xent in plain PyTorch: the truth of the tests and the baseline of the benchmarks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl._checks import compute_dtype

EPSILON = 1e-12


def normalize_rows(x: Tensor) -> Tensor:
    """Rows divided by max(|row|, 1e-12), in the compute type; zero rows have finite gradients."""
    z = x.to(compute_dtype(x.dtype))
    square = z.square().sum(1, keepdim=True)
    dead = square < EPSILON**2
    if x.dtype == torch.float16 and z.requires_grad:  # which cannot hold 1 / EPSILON
        z.register_hook(lambda g: torch.where(dead, g.clamp(-65504, 65504), g))
    norm = torch.where(dead, 1, square).sqrt()  # a norm has no gradient at zero
    return torch.where(dead, z / EPSILON, z / norm)


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """The loss through one [2N, 2N] matrix; differentiable any number of times."""
    kind = z0.device.type if torch.amp.is_autocast_available(z0.device.type) else "cpu"
    with torch.autocast(kind, enabled=False):
        z = torch.cat([z0, z1])  # [2N, D]
        z = normalize_rows(z) if normalize else z.to(compute_dtype(z.dtype))
        logits = z @ z.T / temperature
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = logits.masked_fill(itself, -math.inf)
        partner = torch.arange(len(z), device=z.device).roll(len(z0))
        return F.cross_entropy(logits, partner, reduction=reduction)

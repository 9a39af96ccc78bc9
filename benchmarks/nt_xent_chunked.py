"""NT-Xent by the vendor's matrix products over chunks of rows: the strongest baseline on a GPU.

The [2N, 2N] matrix never exists. A first sweep over chunks gives every row's logarithm of a sum; a
second recomputes the products and turns them into the weights of the gradient's product: 3 products
in all, and one elementwise pass over each.
"""

import math

import torch
from torch import Tensor

TEMPERATURE = 0.1


def _log_sums(products: Tensor, own: Tensor, inverse: float) -> Tensor:
    column = torch.arange(products.shape[1], device=products.device)
    logits = (products.float() * inverse).masked_fill(column == own[:, None], -math.inf)
    return logits.logsumexp(1)


def _weights(products: Tensor, own: Tensor, lse_own: Tensor, lse: Tensor, inverse: float) -> Tensor:
    column = torch.arange(products.shape[1], device=products.device)
    logits = (products.float() * inverse).masked_fill(column == own[:, None], -math.inf)
    return ((logits - lse_own[:, None]).exp() + (logits - lse).exp()).to(products.dtype)


class Chunked:
    """Forward and backward: (z0, z1) to (loss, grad_z0, grad_z1).

    Args:
        compiled: fuse the elementwise passes with torch.compile.
        entries: elements of a chunk of the matrix; chunks have at least 128 rows.
    """

    def __init__(self, compiled: bool, entries: int = 2**28):
        self.entries = entries
        fuse = torch.compile if compiled else lambda function, **_: function
        self.log_sums = fuse(_log_sums, dynamic=True)
        self.weights = fuse(_weights, dynamic=True)

    @torch.no_grad()
    def __call__(self, z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss and the gradients of both views, each [N, D]."""
        half, rows, inverse = len(z0), 2 * len(z0), 1 / TEMPERATURE
        wide = torch.cat([z0, z1]).float()
        norm = wide.norm(dim=1, keepdim=True).clamp_min(1e-12)
        wide /= norm
        z = wide.to(z0.dtype)  # as any use of cuBLAS must, at the tensor cores' speed
        chunk = max(128, self.entries // rows)
        pieces = list(range(0, rows, chunk))
        own = torch.arange(rows, device=z.device)
        lse = torch.empty(rows, device=z.device)
        for first in pieces:
            at = slice(first, first + chunk)
            lse[at] = self.log_sums(z[at] @ z.T, own[at], inverse)
        positive = (wide[:half] * wide[half:]).sum(1).repeat(2) * inverse
        gradient = torch.empty_like(wide)
        for first in pieces:
            at = slice(first, first + chunk)
            gradient[at] = self.weights(z[at] @ z.T, own[at], lse[at], lse, inverse) @ z
        gradient -= 2 * wide.roll(half, 0)
        gradient *= inverse / rows
        gradient -= (gradient * wide).sum(1, keepdim=True) * wide
        gradient /= norm
        gradient = gradient.to(z0.dtype)
        return (lse - positive).mean(), gradient[:half], gradient[half:]

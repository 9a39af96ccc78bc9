"""Losses of `lightly.loss` by the same names, and a supervised one in their style.

They compute in float32 for half precision, with a memory bank too, and store no matrix of logits.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl import losses
from fastssl.compat.lightly.memory_bank import MemoryBankModule
from fastssl.memory_bank import group_of
from fastssl.ops.contrast import dcl, dclw, sup_con

__all__ = [
    "DCLLoss",
    "DCLWLoss",
    "MemoryBankModule",
    "NTXentLoss",
    "SupConLoss",
    "negative_mises_fisher_weights",
]


def _checked_gathering(gather_distributed: bool) -> None:
    if gather_distributed and not torch.distributed.is_available():
        raise ValueError("gather_distributed is True but torch.distributed is not available.")


class NTXentLoss(losses.NTXentLoss):
    """lightly's NTXentLoss: `fastssl.NTXentLoss` with a bank that wraps as lightly's does.

    Args:
        temperature: what cosines are divided by.
        memory_bank_size: 0, or (number of rows, dim).
        gather_distributed: compare with the rows of all ranks; with a memory bank, enqueue those.

    Raises:
        ValueError: |temperature| is less than 1e-8, a size is not acceptable, or torch.distributed
            is not available where `gather_distributed` asks for it.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ):
        if abs(temperature) < self.eps:
            raise ValueError(f"Illegal temperature: abs({temperature}) < 1e-8")
        super().__init__(temperature, memory_bank_size, gather_distributed)

    def _bank(self, memory_bank_size) -> MemoryBankModule:
        return MemoryBankModule(memory_bank_size, self.gather_distributed)


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """Weights 2 - N softmax(<out0_n, out1_n> / sigma) of positives, [N], without a gradient.

    Yeh et al., "Decoupled Contrastive Learning", 2021, section 3.3.
    """
    similarity = (out0.detach() * out1.detach()).sum(1)
    return 2 - len(out0) * torch.softmax(similarity / sigma, 0)


class DCLLoss(nn.Module):
    """lightly's DCLLoss over `fastssl.dcl`.

    Args:
        temperature: what cosines are divided by.
        weight_fn: of both views' normalised rows, each [N, D], in this order and the other;
            returns weights of the positives, [N], and may have a gradient.
        gather_distributed: compare with the rows of all ranks.

    Raises:
        ValueError: torch.distributed is not available where `gather_distributed` asks for it.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ):
        super().__init__()
        self.temperature = temperature
        self.weight_fn = weight_fn
        self.gather_distributed = gather_distributed
        _checked_gathering(gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of the projections of both views, each [N, D]; a 0-d tensor."""
        group = group_of(None, self.gather_distributed)
        if not self.weight_fn:
            return dcl(out0, out1, self.temperature, process_group=group)
        x, y = (F.normalize(z, dim=1) for z in (out0, out1))
        weights = torch.cat([self.weight_fn(x, y), self.weight_fn(y, x)])
        loss = dcl(out0, out1, self.temperature, weights=weights, process_group=group)
        if weights.requires_grad:
            # `dcl` takes weights as numbers. This is zero, and has their gradient.
            change = (weights - weights.detach()).view(2, -1).sum(0)
            change = (change * (x * y).sum(1)).sum() / (self.temperature * len(weights))
            loss = loss - change.to(loss.dtype)
        return loss


class DCLWLoss(DCLLoss):
    """lightly's DCLWLoss over `fastssl.dclw`.

    Args:
        temperature: what cosines are divided by.
        sigma: what cosines are divided by in the weights.
        gather_distributed: compare with the rows of all ranks.

    Raises:
        ValueError: torch.distributed is not available where `gather_distributed` asks for it.
    """

    def __init__(
        self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False
    ):
        weight_fn = partial(negative_mises_fisher_weights, sigma=sigma)
        super().__init__(temperature, weight_fn, gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of the projections of both views, each [N, D]; a 0-d tensor."""
        if getattr(self.weight_fn, "func", None) is not negative_mises_fisher_weights:
            return super().forward(out0, out1)  # replaced
        group = group_of(None, self.gather_distributed)
        sigma = self.weight_fn.keywords["sigma"]
        return dclw(out0, out1, self.temperature, sigma, process_group=group)


class SupConLoss(nn.Module):
    """`fastssl.sup_con` of two views, as the losses of lightly take them; lightly itself has none.

    Args:
        temperature: what cosines are divided by.
        gather_distributed: compare with the rows of all ranks.

    Raises:
        ValueError: torch.distributed is not available where `gather_distributed` asks for it.
    """

    def __init__(self, temperature: float = 0.1, gather_distributed: bool = False):
        super().__init__()
        self.temperature = temperature
        self.gather_distributed = gather_distributed
        _checked_gathering(gather_distributed)

    def forward(self, out0: Tensor, out1: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean loss over all rows, a 0-d tensor.

        Args:
            out0: projections of the first view, [N, D].
            out1: projections of the second view, [N, D].
            labels: int [N]: rows of one label are positives, those of the other view included.
                Without labels each pair has its own, which is NT-Xent.
        """
        group = group_of(None, self.gather_distributed)
        if labels is None:
            # Those of all ranks differ, however many rows each has.
            rank = 0 if group is None else torch.distributed.get_rank(group)
            labels = torch.arange(len(out0), device=out0.device) + (rank << 32)
        views = torch.cat([out0, out1])
        return sup_con(views, labels.repeat(2), self.temperature, process_group=group)

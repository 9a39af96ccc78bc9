"""solo-learn's losses by the same names.

Softmax losses go through the fused operators; the two that compare each row with one other are
plain PyTorch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.memory_bank import group_of
from fastssl.ops.contrast import info_nce
from fastssl.ops.contrast.checks import (
    checked_labels,
    checked_rows,
    inverse_temperature,
    out_dtype,
    reduced,
)
from fastssl.ops.contrast.pairs import LABELLED, NEGATIVES, POSITIVES
from fastssl.ops.contrast.sup_con import label_statistics

__all__ = [
    "byol_loss_func",
    "mocov2plus_loss_func",
    "mocov3_loss_func",
    "simclr_loss_func",
    "simsiam_loss_func",
]


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """-log of the share of a row's positives in its softmax, the mean over rows.

    Where torch.distributed is initialized, rows are compared with those of all ranks.

    Args:
        z: projections of all views, [M, D]; normalised here.
        indexes: int [M]: rows of one index, or label, are positives of each other.
        temperature: what cosines are divided by.
    """
    group = group_of(None, True) if torch.distributed.is_available() else None
    checked_rows("z", z, group=group)
    indexes = checked_labels("indexes", indexes, len(z), z.device)
    scale = inverse_temperature(temperature)
    found = label_statistics(z, indexes, None, None, scale, LABELLED, True, process_group=group)
    losses = F.softplus(found.rows[NEGATIVES] - found.rows[POSITIVES])
    return reduced(losses, "mean", found.row_share, out_dtype(z))


def mocov2plus_loss_func(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1
) -> Tensor:
    """Cross entropy of each query's key among the key and the queue; nothing is normalised.

    Args:
        query: [N, D].
        key: [N, D].
        queue: [D, K].
        temperature: what products are divided by.
    """
    return info_nce(query, key, queue.T, temperature=temperature, normalize=False)


def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """2 `temperature` times the cross entropy of each query's key among all keys.

    Where torch.distributed is initialized, the keys of all ranks, without a gradient.

    Args:
        query: [N, D]; normalised here.
        key: [N, D]; normalised here.
        temperature: what cosines are divided by.
    """
    group = group_of(None, True) if torch.distributed.is_available() else None
    key = key if group is None else key.detach()
    loss = info_nce(query, key, temperature=temperature, process_group=group)
    return loss * (2 * temperature)


def byol_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """2 - 2 times the mean cosine of predictions and targets; no gradient for the targets.

    Args:
        p: predictions, [N, D].
        z: targets, [N, D].
        simplified: the cosine in one function, which bounds norms by 1e-8, not 1e-12.
    """
    return 2 - 2 * _mean_cosine(p, z.detach(), simplified)


def simsiam_loss_func(p: Tensor, z: Tensor, simplified: bool = True) -> Tensor:
    """Minus the mean cosine of predictions and projections; no gradient for the projections.

    Args:
        p: predictions, [N, D].
        z: projections, [N, D].
        simplified: the cosine in one function, which bounds norms by 1e-8, not 1e-12.
    """
    return -_mean_cosine(p, z.detach(), simplified)


def _mean_cosine(x: Tensor, y: Tensor, simplified: bool) -> Tensor:
    if simplified:
        return F.cosine_similarity(x, y, dim=-1).mean()
    return (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(1).mean()

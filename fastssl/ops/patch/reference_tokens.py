"""Gathering and restoring tokens in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F


def gather_tokens(x: Tensor, plan, pos_embed: Tensor | None = None, prefix: int = 0) -> Tensor:
    """[B, prefix + L, D] to [B, prefix + K, D]."""
    x = x if pos_embed is None else x + pos_embed
    kept = x[:, prefix:].gather(1, plan.ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    kept = kept if plan.padding is None else kept.masked_fill(plan.padding.unsqueeze(-1), 0)
    return torch.cat([x[:, :prefix], kept], 1)


def restore_tokens(visible: Tensor, plan, mask_token, pos_embed=None, prefix: int = 0) -> Tensor:
    """[B, prefix + K, D] to [B, prefix + L, D]."""
    x = F.pad(visible[:, prefix:], (0, 0, 0, plan.length - plan.keep))
    x = x.gather(1, plan.ids_restore.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    x = torch.where(plan.mask.unsqueeze(-1), mask_token.view(-1), x)
    x = torch.cat([visible[:, :prefix].to(x.dtype), x], 1)
    return x if pos_embed is None else x + pos_embed

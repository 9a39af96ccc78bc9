"""The definitions in plain PyTorch: the truth of the tests and the baseline of the benchmarks."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.ops.patch.layout import patchify
from fastssl.ops.patch.reference_tokens import gather_tokens, restore_tokens

__all__ = ["gather_patches", "gather_tokens", "masked_patch_loss", "restore_tokens"]


def normalize(images: Tensor, mean, std, dtype: torch.dtype) -> Tensor:
    """(images - mean) / std in units of [0, 1]."""
    x = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
    shape = (-1, *[1] * (x.dim() - 2))
    mean, std = (torch.tensor(v, dtype=dtype, device=x.device).view(shape) for v in (mean, std))
    return (x - mean) / std


def gather_patches(images: Tensor, plan, patch, mean, std, order: str, dtype) -> Tensor:
    """[B, C, *space] to [B, K, P]."""
    x = normalize(images, mean, std, torch.promote_types(dtype, torch.float32))
    return gather_tokens(patchify(x, patch, order), plan).to(dtype)


def masked_patch_loss(images, pred, plan, patch, norm_pix, kind, statistics, mean, std, order):
    """The mean loss over removed patches, differentiable in pred."""
    pred = pred.to(torch.promote_types(pred.dtype, torch.float32))
    target = patchify(normalize(images, mean, std, pred.dtype), patch, order)
    if norm_pix:
        x = target.unflatten(2, (images.shape[1], -1) if order == "cpq" else (-1, images.shape[1]))
        dim = (2, 3) if statistics == "patch" else 3 if order == "cpq" else 2
        var = x.var(dim, keepdim=True)  # unbiased
        scale = (var + 1e-6).sqrt() if statistics == "patch" else var.sqrt() + 1e-6
        target = ((x - x.mean(dim, keepdim=True)) / scale).flatten(2)
    if pred.shape[1] != plan.length:
        target = target.gather(1, plan.ids_removed.unsqueeze(-1).expand_as(pred))
    removed = plan.mask if pred.shape[1] == plan.length else plan.mask.new_ones(pred.shape[:2])
    pred, target = (torch.where(removed.unsqueeze(-1), x, 0) for x in (pred, target))
    if kind == "cosine":
        rows = 1 - F.cosine_similarity(pred, target, -1)
    else:
        loss = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[kind]
        rows = loss(pred, target, reduction="none").mean(-1)
    return torch.where(removed, rows, 0).sum() / removed.sum().clamp(min=1)

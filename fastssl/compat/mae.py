"""MAE's functions, with its results: He et al., "Masked Autoencoders Are Scalable Vision Learners".

They are methods of `MaskedAutoencoderViT` in the authors' code, of `ViTMAEForPreTraining` in
transformers, and `mae_loss_func` in solo-learn; here they are functions.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl import masking
from fastssl.compat._draw import keyed
from fastssl.ops.patch.layout import checked_patch, grid_of


def random_masking(
    x: Tensor,
    mask_ratio: float,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    return_ids_keep: bool = False,
) -> tuple[Tensor, ...]:
    """Keeps int(L * (1 - mask_ratio)) random tokens of each sample, in the order of the noise.

    Args:
        x: tokens [N, L, D] without the class token, with positions; floating-point.
        mask_ratio: in [0, 1).
        noise: [N, L], floating-point: the smallest are kept, of equal ones the first.
        generator: to draw the noise from; None for torch's own of the CPU, which
            torch.manual_seed governs on every device.
        return_ids_keep: return them too.

    Returns:
        x_masked [N, K, D], differentiable; mask float32 [N, L], 0 kept and 1 removed; ids_restore
        int64 [N, L]; with `return_ids_keep` also ids_keep int64 [N, K].

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value or shape is not acceptable.
    """
    if not isinstance(x, Tensor) or x.dim() != 3:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: got {got}, must be a tensor [N, L, D]")
    if noise is None:
        plan = masking.random_masks(
            x.shape[0], x.shape[1], mask_ratio, **keyed(x.shape[0], x.device, generator)
        )
    else:
        noise = noise.to(x.device)
        plan = masking.random_masks(*x.shape[:2], mask_ratio, seed=None, noise=noise)
    found = masking.gather_tokens(x, plan), plan.mask.float(), plan.ids_restore
    return (*found, plan.ids_keep) if return_ids_keep else found


def patchify(imgs: Tensor, patch_size: int) -> Tensor:
    """[N, C, H, W] to [N, L, p * p * C]: raster order, in a patch rows, columns, channels.

    Args:
        imgs: of any dtype, square or not.
        patch_size: p.

    Raises:
        TypeError: `imgs` is no tensor.
        ValueError: `patch_size` does not divide the images.
    """
    return masking.patchify(imgs, patch_size)


def unpatchify(x: Tensor, patch_size: int, grid: Sequence[int] | None = None) -> Tensor:
    """The inverse of `patchify`, [N, L, p * p * C] to [N, C, H, W].

    Args:
        x: patches of any dtype.
        patch_size: p.
        grid: rows and columns of patches; None for a square.

    Raises:
        TypeError: `x` is no tensor.
        ValueError: `grid` does not have L patches, or the width of `x` is no multiple of p * p.
    """
    return masking.unpatchify(x, patch_size, grid)


def forward_loss(
    imgs: Tensor, pred: Tensor, mask: Tensor, patch_size: int, norm_pix_loss: bool = True
) -> Tensor:
    """The mean squared error over the removed patches of the batch.

    Args:
        imgs: [N, C, H, W] as the model got them, floating-point. Where they require a gradient
            (adversarial training) plain PyTorch computes the loss, and says so once.
        pred: [N, L, p * p * C], floating-point, differentiable.
        mask: [N, L], any dtype: removed where it is not 0. Weights between 0 and 1 count as 1.
        patch_size: p.
        norm_pix_loss: normalise each patch of the target by its mean and unbiased variance.

    Returns:
        0-d, float64 for float64 predictions and float32 otherwise; 0 where nothing is removed,
        which is NaN in the original.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value or shape is not acceptable.
    """
    patch = checked_patch(imgs, (patch_size,) * 2)
    plan = masking.MaskPlan.from_mask(mask.bool(), grid_of(imgs, patch))
    return patch_loss(imgs, pred, plan, patch, norm_pix_loss)


def patch_loss(imgs: Tensor, pred: Tensor, plan, patch: tuple[int, int], norm_pix: bool) -> Tensor:
    """`forward_loss` with a plan; also where the images require a gradient."""
    if imgs.requires_grad:
        message = "images that require a gradient: plain PyTorch computes the masked loss"
        warnings.warn(message, stacklevel=3)
    return masking.masked_patch_loss(imgs, pred, plan, patch, norm_pix)

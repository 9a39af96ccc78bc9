"""Masked image modelling and its relatives: plans, visible patches, decoder input, the loss."""

from fastssl.ops.patch import (
    MaskPlan,
    gather_patches,
    gather_tokens,
    masked_patch_loss,
    patchify,
    restore_tokens,
    unpatchify,
)

__all__ = [
    "MaskPlan",
    "gather_patches",
    "gather_tokens",
    "masked_patch_loss",
    "patchify",
    "restore_tokens",
    "unpatchify",
]

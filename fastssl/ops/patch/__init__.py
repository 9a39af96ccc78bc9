"""Masks and patches: plans drawn by counter, visible patches, decoder input, the masked loss.

docs/masking.md explains the plan and each family; users import from `fastssl.masking`.
"""

from fastssl import _dispatch
from fastssl.ops.patch.gather import gather_patches
from fastssl.ops.patch.layout import patchify, unpatchify
from fastssl.ops.patch.loss import masked_patch_loss
from fastssl.ops.patch.plan import MaskPlan
from fastssl.ops.patch.tokens import gather_tokens, restore_tokens

__all__ = [
    "MaskPlan",
    "gather_patches",
    "gather_tokens",
    "masked_patch_loss",
    "patchify",
    "restore_tokens",
    "unpatchify",
]

_dispatch.register("patch", cpu="cpu", cuda="cuda")

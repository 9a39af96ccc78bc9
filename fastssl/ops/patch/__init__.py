"""Masks and patches: plans drawn by counter, visible patches, decoder input, the masked loss.

docs/masking.md explains the plan and each family; users import from `fastssl.masking`.
"""

from fastssl import _dispatch
from fastssl.ops.patch.block_masks import block_masks, inverse_block_masks
from fastssl.ops.patch.gather import gather_patches
from fastssl.ops.patch.layout import patchify, unpatchify
from fastssl.ops.patch.loss import masked_patch_loss
from fastssl.ops.patch.mask_tokens import mask_tokens
from fastssl.ops.patch.multiblock_masks import MultiblockPlan, multiblock_masks
from fastssl.ops.patch.permutations import hamming_permutations
from fastssl.ops.patch.plan import MaskPlan
from fastssl.ops.patch.pretext import jigsaw, relative_patches, rotate4
from fastssl.ops.patch.random_masks import grid_masks, random_masks, simmim_masks, tube_masks
from fastssl.ops.patch.tokens import gather_tokens, restore_tokens

__all__ = [
    "MaskPlan",
    "MultiblockPlan",
    "block_masks",
    "gather_patches",
    "gather_tokens",
    "grid_masks",
    "hamming_permutations",
    "inverse_block_masks",
    "jigsaw",
    "mask_tokens",
    "masked_patch_loss",
    "multiblock_masks",
    "patchify",
    "random_masks",
    "relative_patches",
    "restore_tokens",
    "rotate4",
    "simmim_masks",
    "tube_masks",
    "unpatchify",
]

_dispatch.register("patch", cpu="cpu", cuda="cuda")

"""Masks for self-supervised learning, and what is computed under them.

    from fastssl import masking

    plan = masking.random_masks(len(images), (14, 14), 0.75, seed=0, step=step)
    visible = masking.gather_patches(images, plan, 16, mean, std) @ weight.T  # [B, K, D]
    tokens = masking.restore_tokens(encoder(visible), plan, mask_token, positions)  # [B, L, D]
    loss = masking.masked_patch_loss(images, head(decoder(tokens)), plan, 16, mean=mean, std=std)

Plans: `random_masks` (MAE), `block_masks` (BEiT, iBOT, DINOv2, DINOv3), `inverse_block_masks`
(CAPI), `multiblock_masks` (I-JEPA), `tube_masks` (VideoMAE), `simmim_masks`, `grid_masks` (Pixio).
Text: `mask_tokens` (BERT). Pretext tasks: `jigsaw`, `rotate4`, `relative_patches`. The functions in
fastssl.ops.patch do the work.
"""

from fastssl.ops.patch import *  # noqa: F403
from fastssl.ops.patch import __all__  # noqa: F401

"""MAE: an encoder sees a quarter of an image's patches, a small decoder predicts the others.

He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastssl import masking
from fastssl.masking import MaskPlan
from fastssl.train import vit
from fastssl.train.config import option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.masked import MaskedConfig, MaskedImages


@dataclass(kw_only=True)
class MAEConfig(MaskedConfig):
    """MAE's own keywords.

    Ratio and normalised pixels are the paper's. Its decoder, 8 blocks of 512, is for images of 224
    and an encoder of 86 million parameters; this one was chosen on the digits.
    """

    mask_ratio: float = option(0.75, "Share of patches to remove.", above=0, below=1)
    decoder_width: int = option(64, "Size of the decoder's tokens.", least=4)
    decoder_depth: int = option(1, "Blocks of the decoder.", least=1)
    decoder_heads: int = option(4, "Heads of each.", least=1)
    norm_pix: bool = option(True, "Predict pixels normalised by the patch's mean and deviation.")


class MAE(MaskedImages):
    """Masked autoencoder with visible-only embedding and the fused loss."""

    name = "mae"
    Config = MAEConfig

    def __init__(self, config: MAEConfig, data: Data):
        super().__init__(config, data)
        self.check_ratio()
        width, heads = config.decoder_width, config.decoder_heads
        vit.check_heads("decoder_width", width, heads)
        self.norm_pix = config.norm_pix
        if self.norm_pix and self.pixels < 2:
            raise UsageError(
                "patch_size: got 1, with norm_pix a patch must have two numbers or more"
            )
        self.decoder_embed = nn.Linear(self.backbone.features, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.register_buffer("decoder_pos_embed", vit.positions(self.backbone.grid, width))
        self.decoder = vit.blocks(width, config.decoder_depth, heads)
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, self.pixels)
        for module in (self.decoder_embed, self.decoder, self.decoder_pred):
            module.apply(vit.initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def plan(self, sample_ids: Tensor, step: int | Tensor) -> MaskPlan:
        """Patches removed at random, as many of each image."""
        return masking.random_masks(
            len(sample_ids),
            self.backbone.grid,
            self.config.mask_ratio,
            seed=self.config.seed,
            step=step,
            sample_ids=sample_ids,
        )

    def predict(self, levels: Tensor, plan: MaskPlan) -> Tensor:
        """Predictions [N, L, P]; the encoder computes on visible patches alone."""
        places = self.backbone.pos_embed[0][plan.ids_keep]
        latent = self.backbone.encode(self.visible(levels, plan) + places)
        x = masking.restore_tokens(
            self.decoder_embed(latent), plan, self.mask_token, self.decoder_pos_embed
        )
        return self.decoder_pred(self.decoder_norm(self.decoder(x)))

    def forward(self, levels: Tensor, plan: MaskPlan) -> dict[str, Tensor]:
        """The mean squared error on removed patches."""
        pred = self.predict(levels, plan)
        patch, norm_pix = self.backbone.patch, self.norm_pix
        return {
            "loss": masking.masked_patch_loss(levels, pred, plan, patch, norm_pix, **self.scaling)
        }

"""SimMIM: mask tokens take the place of most patches, one linear layer predicts their pixels.

Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", 2022.
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
class SimMIMConfig(MaskedConfig):
    """SimMIM's own keywords; ratio and cell are the paper's, 32 pixels for patches of 16."""

    mask_ratio: float = option(0.6, "Share of cells to remove.", above=0, below=1)
    cell: int = option(2, "Side of what is removed in one piece, in patches.", least=1)


class SimMIM(MaskedImages):
    """Mean absolute error on the pixels of removed patches; the encoder computes on all tokens."""

    name = "simmim"
    Config = SimMIMConfig
    norm_pix = False

    def __init__(self, config: SimMIMConfig, data: Data):
        super().__init__(config, data)
        if any(side % config.cell for side in self.backbone.grid):
            rows, columns = self.backbone.grid
            raise UsageError(f"cell: got {config.cell}, must divide {rows} x {columns} patches")
        self.check_ratio()
        self.mask_token = nn.Parameter(torch.empty(self.backbone.features))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(self.backbone.features, self.pixels)
        self.head.apply(vit.initialise)

    def plan(self, sample_ids: Tensor, step: int | Tensor) -> MaskPlan:
        """Squares of `cell` x `cell` patches removed at random, as many of each image."""
        return masking.simmim_masks(
            len(sample_ids),
            self.backbone.grid,
            self.config.mask_ratio,
            cell=self.config.cell,
            seed=self.config.seed,
            step=step,
            sample_ids=sample_ids,
        )

    def predict(self, levels: Tensor, plan: MaskPlan) -> Tensor:
        """Predictions [N, L, P]; removed patches are not embedded, their tokens are one vector."""
        tokens = masking.restore_tokens(
            self.visible(levels, plan), plan, self.mask_token, self.backbone.pos_embed
        )
        return self.head(self.backbone.encode(tokens))

    def forward(self, levels: Tensor, plan: MaskPlan) -> dict[str, Tensor]:
        """The mean absolute error on removed patches."""
        loss = masking.masked_patch_loss(
            levels,
            self.predict(levels, plan),
            plan,
            self.backbone.patch,
            norm_pix=self.norm_pix,
            kind="l1",
            **self.scaling,
        )
        return {"loss": loss}

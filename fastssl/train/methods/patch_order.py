"""Patch order: a transformer that is not told the places of an image's patches finds them.

Zhai et al., "Position Prediction as an Effective Pretraining Strategy", 2022 (MP3). Beside another
loss: Chen et al., "Jigsaw-ViT: Learning Jigsaw Puzzles in Vision Transformer", 2023.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl import masking
from fastssl.masking import MaskPlan
from fastssl.train import vit
from fastssl.train.config import option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.masked import MaskedConfig
from fastssl.train.pictures import COLUMNS, grid
from fastssl.train.puzzles import Puzzle
from fastssl.train.views import MEAN, STD, recipe_for, same_size_views

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(kw_only=True)
class PatchOrderConfig(MaskedConfig):
    """Patch order's own keywords.

    Patches that are left out, as by Jigsaw-ViT, make the task harder and a step cheaper; MP3 hides
    them from the others, but asks for their places, too. Share and epochs were chosen on the
    digits.
    """

    mask_ratio: float = option(0.5, "Share of patches to leave out.", least=0, below=1)
    epochs: int = option(15, "Passes over the training images.", least=1)


class PatchOrder(Puzzle):
    """Classification of each patch's place in the grid, one linear layer on the tokens.

    Patches come in the order of a random plan, without codes of their places; all that tells them
    apart is what is in them. The encoder keeps zeros for codes, so that it sees images later as it
    did in training.
    """

    name = "patch-order"
    question = "which place in the grid"
    Config = PatchOrderConfig

    def __init__(self, config: PatchOrderConfig, data: Data):
        super().__init__(config, data)
        _, channels, *sides = data.train.inputs.shape
        self.backbone = vit.VisionTransformer(
            channels, tuple(sides), config.patch(data), config.backbone, config.width
        )
        self.backbone.pos_embed.zero_()
        self.answers = math.prod(self.backbone.grid)
        if self.plan(torch.zeros(1, dtype=torch.int64), 0).keep < 2:
            raise UsageError(
                f"mask_ratio: got {config.mask_ratio}, leaves fewer than two of {self.answers} "
                f"patches"
            )
        self.classifier = nn.Linear(self.backbone.features, self.answers)
        self.augment = same_size_views(data, [recipe_for(data)], config)

    def plan(self, sample_ids: Tensor, step: int | Tensor) -> MaskPlan:
        """Which patches are seen, and in which order."""
        options = {"seed": self.config.seed, "step": step, "sample_ids": sample_ids}
        return masking.random_masks(
            len(sample_ids), self.backbone.grid, self.config.mask_ratio, **options
        )

    def views(
        self, images: Tensor, sample_ids: Tensor, step: int | Tensor
    ) -> tuple[Tensor, MaskPlan]:
        """A random view, float32 [N, C, H, W], and the plan of its patches."""
        (view,) = self.augment(images, sample_ids=sample_ids, step=step)
        return view, self.plan(sample_ids, step)

    def answer(self, view: Tensor, plan: MaskPlan) -> tuple[Tensor, Tensor]:
        """Logits [N, K, places] of the patches that the plan keeps."""
        patches = masking.gather_patches(view, plan, self.backbone.patch)
        tokens = self.backbone.encode(self.backbone.embed(patches))
        return self.classifier(tokens), plan.ids_keep

    def pictures(self, data: Data, device: torch.device) -> "dict[str, Figure]":
        """Patches of test images in the order of a plan, and put where they fit best.

        At each place lies the patch that is likeliest to belong there.
        """
        images = data.test.inputs[:COLUMNS].to(device)
        view, plan = self.views(images, torch.arange(len(images), device=device), 0)
        logits, _ = self.answer(view, plan)
        best = logits.softmax(2).argmax(1)
        patches = masking.gather_patches(view * STD + MEAN, plan, self.backbone.patch)
        shuffled = torch.zeros(len(view), self.answers, patches.shape[2], device=device)
        shuffled[:, : plan.keep] = patches
        ordered = patches.gather(1, best.unsqueeze(2).expand(-1, -1, patches.shape[2]))
        rows = {"view": view * STD + MEAN}
        for name, found in (("seen", shuffled), ("solved", ordered)):
            rows[name] = masking.unpatchify(
                found, self.backbone.patch, self.backbone.grid, order="cpq"
            )
        title = "at each place the patch that is likeliest to belong there"
        return {"puzzles": grid(rows, title)}

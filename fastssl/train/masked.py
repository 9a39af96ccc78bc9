"""What methods share that remove patches of an image and predict them from the others."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fastssl import masking
from fastssl.augment import Augment, Recipe
from fastssl.masking import MaskPlan
from fastssl.train import backbones, vit
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.method import Method
from fastssl.train.pictures import COLUMNS, grid
from fastssl.train.views import MEAN, STD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Photographs: MAE's crop and flip, its only augmentation (He et al. 2022, table 1e).
PHOTOGRAPHS = Recipe(32, scale=(0.2, 1.0), interpolation="bicubic")

#: Written characters: a mirror image or half of a digit is another sign.
CHARACTERS = Recipe(32, scale=(0.5, 1.0), flip=0.0, interpolation="bicubic")


@dataclass(kw_only=True)
class MaskedConfig(Config):
    """Keywords of all methods that mask patches.

    Defaults are those by which MAE does well on the digits in two minutes of a CPU: small batches,
    for enough steps, and a high rate, so that it soon gets beyond predicting a patch's mean. For
    encoders larger than vit-micro lower the rate. Weight decay is that of the papers.
    """

    WIDTHS: ClassVar[dict[str, int]] = {name: size.width for name, size in vit.SIZES.items()}

    backbone: str = option("vit-micro", "Encoder.", choices=tuple(vit.SIZES))
    width: int | None = option(None, "Size of the tokens, by default the encoder's own.", least=1)
    patch_size: int | None = option(
        None, "Side of a patch, by default 4, and 16 for images of 96 and more.", least=1
    )
    epochs: int = option(50, "Passes over the training images.", least=1)
    batch_size: int = option(64, "Images per step, over all processes.", least=2)
    lr: float = option(4e-3, "Peak learning rate of AdamW.", above=0)
    weight_decay: float = option(0.05, "Weight decay of AdamW; none on biases and norms.", least=0)

    def patch(self, data: Data) -> int:
        """The side of a patch for the images of a data set."""
        sides = data.train.inputs.shape[2:]
        return self.patch_size or (16 if min(sides) >= backbones.LARGE else 4)


class MaskedImages(Method):
    """The encoder, the views and the picture; a method adds plan, prediction and loss."""

    #: He et al. 2022, table 8.
    betas = (0.9, 0.95)
    #: Whether predictions are of pixels normalised by patch.
    norm_pix: bool

    def __init__(self, config: MaskedConfig, data: Data):
        super().__init__(config, data)
        _, channels, *image = data.train.inputs.shape
        self.backbone = vit.VisionTransformer(
            channels, tuple(image), config.patch(data), config.backbone, config.width
        )
        self.pixels = channels * self.backbone.patch**2
        #: How pixels are scaled for the encoder and for the loss: as everywhere in evaluation.
        self.scaling = {"mean": [MEAN] * channels, "std": [STD] * channels}
        recipe = replace(PHOTOGRAPHS if channels == 3 else CHARACTERS, size=tuple(image))
        self.augment = Augment([recipe], seed=config.seed, dtype=torch.uint8)

    @abstractmethod
    def plan(self, sample_ids: Tensor, step: int | Tensor) -> MaskPlan:
        """The patches to remove, a function of the run's seed, the step and the images' ids."""

    def check_ratio(self) -> None:
        """Raises UsageError where no patch would be left to see."""
        if self.plan(torch.zeros(1, dtype=torch.int64), 0).keep == 0:
            patches, ratio = math.prod(self.backbone.grid), self.config.mask_ratio
            raise UsageError(f"mask_ratio: got {ratio}, leaves none of {patches} patches")

    @abstractmethod
    def predict(self, levels: Tensor, plan: MaskPlan) -> Tensor:
        """Predictions [N, L, P], pixels in the order "pqc", for uint8 images [N, C, H, W]."""

    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> list:
        """One augmented view, uint8 [N, C, H, W], and the plan of its mask."""
        (levels,) = self.augment(images, sample_ids=sample_ids, step=step)
        return [levels, self.plan(sample_ids, step)]

    def visible(self, levels: Tensor, plan: MaskPlan) -> Tensor:
        """Embedded visible patches, [N, K, width], without positions; no other pixel is read."""
        patches = masking.gather_patches(levels, plan, self.backbone.patch, **self.scaling)
        return self.backbone.embed(patches.to(self.backbone.patch_embed["proj"].weight.dtype))

    def pictures(self, data: Data, device: torch.device) -> "dict[str, Figure]":
        """Test images, what was left of them, and the reconstruction."""
        levels = data.test.inputs[:COLUMNS].to(device)
        plan = self.plan(torch.arange(len(levels), device=device), 0)
        pred = self.predict(levels, plan).float()
        rows = reconstruct(levels, pred, plan, self.backbone.patch, self.norm_pix)
        known = "removed patches: prediction, with the true patch's mean and deviation"
        figure = grid(rows, known if self.norm_pix else "removed patches: prediction")
        return {"reconstructions": figure}


def reconstruct(
    levels: Tensor, pred: Tensor, plan: MaskPlan, patch: int, norm_pix: bool
) -> dict[str, Tensor]:
    """Images [N, C, H, W] in [0, 1] by their title: the input, masked, and with predictions.

    Args:
        levels: uint8 [N, C, H, W].
        pred: [N, L, P], in units of a patch's deviation with `norm_pix`, or scaled as `to_float`.
        plan: which patches were removed; the others are shown as they are.
        patch: side of a patch.
        norm_pix: whether predictions get mean and deviation from the true patches, since a model
            that is trained without them cannot know.
    """
    target = masking.patchify(levels.float() / 255, patch)
    if norm_pix:
        deviation = target.std(-1, keepdim=True)
        pred = pred * deviation + target.mean(-1, keepdim=True)
    else:
        pred = pred * STD + MEAN
    removed = plan.mask.unsqueeze(-1)
    rows = {
        "input": target,
        "masked": target.masked_fill(removed, 0.5),
        "reconstruction": torch.where(removed, pred.clamp(0, 1), target),
    }
    return {k: masking.unpatchify(v, patch, plan.grid) for k, v in rows.items()}

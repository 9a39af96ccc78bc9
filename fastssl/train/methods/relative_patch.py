"""Relative patch: which of its eight neighbours is the second of two tiles of an image.

Doersch et al., "Unsupervised Visual Representation Learning by Context Prediction", 2015.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl import masking
from fastssl.train import backbones, networks
from fastssl.train.config import option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.puzzles import Puzzle, TileConfig, check_tile
from fastssl.train.views import recipe_for, same_size_views


@dataclass(kw_only=True)
class RelativePatchConfig(TileConfig):
    """Relative patch's own keywords.

    The paper cuts tiles of 96 pixels with gaps of 48 and jitter of 7 out of photographs of 150,000
    to 450,000 pixels. In small images that would leave little of a tile: here gaps are about a
    third of one. They, epochs and hidden units were chosen on the digits.
    """

    gap: int | None = option(None, "Pixels between tiles, by default a tenth of a side.", least=0)
    jitter: int | None = option(
        None, "Pixels by which a tile is moved, by default a 32nd of a side.", least=0
    )
    epochs: int = option(60, "Passes over the training images.", least=1)


class RelativePatch(Puzzle):
    """Classification of the neighbour from the features of both tiles, side by side.

    Gap and jitter keep lines that run on from giving the answer away; the colour distortion of
    photographs, gray at times, does so with the lens's colour fringes, which tell a tile's place.
    """

    name = "relative-patch"
    question = "which neighbour"
    answers = 8
    Config = RelativePatchConfig

    def __init__(self, config: RelativePatchConfig, data: Data):
        super().__init__(config, data)
        side = min(data.train.inputs.shape[2:])
        self.gap = side // 10 if config.gap is None else config.gap
        self.jitter = min(side // 32, self.gap // 2) if config.jitter is None else config.jitter
        if 2 * self.jitter > self.gap:
            raise UsageError(
                f"jitter: got {self.jitter}, must be at most half of gap, {self.gap}: tiles that "
                f"share pixels give the answer away"
            )
        self.tile = (side - 2 * self.gap - 2 * self.jitter) // 3
        if self.tile < 1:
            raise UsageError(
                f"gap: got {self.gap}, with jitter {self.jitter} images of {side} pixels have no "
                f"room for three tiles"
            )
        self.backbone = backbones.encoder(config, data)
        check_tile(config, self.backbone, data.channels, (self.tile, self.tile))
        self.classifier = networks.mlp(2 * self.backbone.features, config.hidden, self.answers)
        self.augment = same_size_views(data, [recipe_for(data)], config)

    def views(
        self, images: Tensor, sample_ids: Tensor, step: int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Middle tile of a random view and a neighbour, [N, C, h, h] each, and labels int64 [N]."""
        drawn = {"step": step, "sample_ids": sample_ids}
        (view,) = self.augment(images, **drawn)
        return masking.relative_patches(
            view, self.tile, self.gap, self.jitter, seed=self.config.seed, **drawn
        )

    def answer(self, centre: Tensor, neighbour: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, 8]."""
        features = self.backbone(torch.cat([centre, neighbour])).chunk(2)
        return self.classifier(torch.cat(features, 1)), labels

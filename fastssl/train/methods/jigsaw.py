"""Jigsaw: an image's tiles are shuffled, and a network says by which of a set of permutations.

Noroozi & Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", 2016.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl import masking
from fastssl.augment import Augment
from fastssl.train import backbones, networks
from fastssl.train.config import option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.pictures import COLUMNS, grid, joined
from fastssl.train.puzzles import Puzzle, TileConfig, check_tile
from fastssl.train.views import MEAN, STD, recipe_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Tiles along each side.
GRID = 3

#: Added to a tile's variance: a tile without a line of the image stays without one.
EPSILON = 1e-2


@dataclass(kw_only=True)
class JigsawConfig(TileConfig):
    """Jigsaw's own keywords.

    Tiles of 64 in cells of 75 pixels and their normalisation are the paper's. Its 1,000
    permutations are for a million photographs; 100 are the fewest of Goyal et al., "Scaling and
    Benchmarking Self-Supervised Visual Representation Learning", 2019. Epochs and hidden units
    were chosen on the digits.
    """

    permutations: int = option(100, "Permutations to tell apart.", least=2, below=362_881)
    tile: float = option(64 / 75, "Side of a tile, as a part of its cell's.", above=0)
    normalise: bool = option(True, "Bring each tile to mean 0 and deviation 1.")
    epochs: int = option(60, "Passes over the training images.", least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.tile > 1:
            raise UsageError(f"tile: got {self.tile}, must be at most 1")


class Jigsaw(Puzzle):
    """Permutation classification from the features of nine tiles, side by side.

    Against answers that need no look at the image: a tile lies anywhere in its cell, so that edges
    do not continue from one to the next, and has mean 0 and deviation 1, so that shading and
    vignetting do not tell its place. Where a side is no multiple of three, the view is a little
    larger than the image.
    """

    name = "jigsaw"
    question = "which permutation"
    Config = JigsawConfig

    def __init__(self, config: JigsawConfig, data: Data):
        super().__init__(config, data)
        _, channels, *sides = data.train.inputs.shape
        cells = [-(-side // GRID) for side in sides]
        self.tile = tuple(max(1, round(config.tile * cell)) for cell in cells)
        self.answers = config.permutations
        permutations = masking.hamming_permutations(self.answers, GRID**2, seed=config.seed)
        self.register_buffer("permutations", permutations)
        self.backbone = backbones.encoder(config, data)
        check_tile(config, self.backbone, channels, self.tile)
        features = GRID**2 * self.backbone.features
        self.classifier = networks.mlp(features, config.hidden, self.answers)
        recipe = replace(recipe_for(data), size=tuple(GRID * cell for cell in cells))
        scaling = {"mean": [MEAN] * channels, "std": [STD] * channels}
        self.augment = Augment([recipe], seed=config.seed, **scaling)

    def tiles(
        self, images: Tensor, sample_ids: Tensor, step: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Shuffled tiles [N, 9, C, h, w] of a random view, and labels int64 [N]."""
        drawn = {"step": step, "sample_ids": sample_ids}
        (view,) = self.augment(images, **drawn)
        options = {"permutations": self.permutations, "tile": self.tile, "seed": self.config.seed}
        return masking.jigsaw(view, GRID, **options, **drawn)

    def views(
        self, images: Tensor, sample_ids: Tensor, step: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `tiles` returns, normalised."""
        tiles, labels = self.tiles(images, sample_ids, step)
        return self.normalised(tiles), labels

    def normalised(self, tiles: Tensor) -> Tensor:
        """Tiles [N, 9, C, h, w] with mean 0 and deviation 1 each, if that is wanted."""
        if not self.config.normalise:
            return tiles
        variance, mean = torch.var_mean(tiles, (2, 3, 4), correction=0, keepdim=True)
        return (tiles - mean) * (variance + EPSILON).rsqrt()

    def answer(self, tiles: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, permutations]; features of the tiles in the order in which they lie."""
        features = self.backbone(tiles.flatten(0, 1)).view(len(tiles), -1)
        return self.classifier(features), labels

    def pictures(self, data: Data, device: torch.device) -> "dict[str, Figure]":
        """Puzzles of test images, and how they were solved."""
        images = data.test.inputs[:COLUMNS].to(device)
        tiles, labels = self.tiles(images, torch.arange(len(images), device=device), 0)
        logits, _ = self.answer(self.normalised(tiles), labels)
        guesses = logits.argmax(1)
        inverse = self.permutations[guesses].argsort(1)
        solved = tiles[torch.arange(len(tiles), device=device)[:, None], inverse]
        frames = ["tab:green" if right else "tab:red" for right in (guesses == labels).tolist()]
        puzzle, laid = (joined(of * STD + MEAN) for of in (tiles, solved))
        rows = {"input": images.float() / 255, "puzzle": puzzle, "solved": laid}
        title = f"red: not the right one of {self.answers} permutations"
        return {"puzzles": grid(rows, title, frames={"solved": frames})}

"""Rotation: a network says by how many quarters of a turn an image was turned.

Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations", 2018.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from fastssl import masking
from fastssl.train import backbones
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.puzzles import Puzzle
from fastssl.train.views import recipe_for, same_size_views


@dataclass(kw_only=True)
class RotationConfig(Config):
    """The paper has batches of 128 images, each four times; these were chosen on the digits."""

    epochs: int = option(20, "Passes over the training images.", least=1)
    batch_size: int = option(32, "Images per step, over all processes.", least=2)


class Rotation(Puzzle):
    """Classification of rotations by 0, 90, 180 and 270 degrees, one linear layer on the features.

    All four of each image are in a batch, which the paper finds better than one at random.
    Quarters of a turn move pixels without changing them, and so leave no trace to go by.
    """

    name = "rotation"
    question = "which rotation"
    answers = 4
    Config = RotationConfig

    def __init__(self, config: RotationConfig, data: Data):
        super().__init__(config, data)
        height, width = data.train.inputs.shape[2:]
        if height != width:
            raise UsageError(
                f"data: {data.name} has images of {height} x {width}, rotation wants squares"
            )
        self.backbone = backbones.encoder(config, data)
        self.classifier = nn.Linear(self.backbone.features, self.answers)
        self.augment = same_size_views(data, [recipe_for(data)], config)

    def views(
        self, images: Tensor, sample_ids: Tensor, step: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """A random view of each image turned four times, [4 N, C, H, W], and labels int64 [4 N]."""
        (view,) = self.augment(images, sample_ids=sample_ids, step=step)
        turned, labels = masking.rotate4(view)
        return turned.flatten(0, 1), labels.flatten()

    def answer(self, turned: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [4 N, 4]."""
        return self.classifier(self.backbone(turned)), labels

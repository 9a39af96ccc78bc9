"""BYOL: from one view, predict what a slowly moving copy of the network says of the other.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", 2020.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.train import backbones, momentum, networks
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.method import Method
from fastssl.train.spread import spread
from fastssl.train.views import recipe_for, same_size_views


@dataclass(kw_only=True)
class BYOLConfig(Config):
    """BYOL's own keywords.

    The momentum is the paper's for its shorter runs of 300 epochs (section 3.3 has 0.996 for 1000).
    The paper's heads, 4096 hidden units and 256 outputs, follow 2048 features of a ResNet-50;
    those here, and the common keywords' defaults, were chosen on the digits.
    """

    epochs: int = option(30, "Passes over the training images.", least=1)
    batch_size: int = option(64, "Images per step, over all processes.", least=2)
    hidden: int = option(256, "Hidden units of projector and predictor.", least=1)
    dim: int = option(128, "Size of the projections.", least=1)
    momentum: float = option(
        0.99, "The teacher's momentum at first; it rises to 1 by half a cosine.", least=0, below=1
    )


class BYOL(Method):
    """Each view's prediction is compared with the teacher's projection of the other view.

    Nothing pushes images apart: predictor, teacher and batch norm keep the features from becoming
    one point. A collapse shows in "spread", that of the student's projections, which falls from
    about 1 to 0. AdamW takes the place of LARS, which the paper needs for batches of thousands.

    The teacher normalises by the statistics of its own batch, as the authors' does.
    """

    name = "byol"
    Config = BYOLConfig

    def __init__(self, config: BYOLConfig, data: Data):
        super().__init__(config, data)
        self.backbone = backbones.encoder(config, data)
        self.projector = networks.mlp(self.backbone.features, config.hidden, config.dim)
        self.predictor = networks.mlp(config.dim, config.hidden, config.dim)
        self.teacher = momentum.teacher_of(self.student())
        self.augment = same_size_views(data, [recipe_for(data)] * 2, config)

    def student(self) -> nn.Module:
        """What the teacher follows: images to projections."""
        return nn.Sequential(self.backbone, self.projector)

    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> list[Tensor]:
        """Two independent views, each float32 [N, C, H, W]."""
        return self.augment(images, sample_ids=sample_ids, step=step)

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        """The mean over images of (2 - 2 cosine), the sum of both directions."""
        student = self.student()
        z0, z1 = (student(view) for view in views)
        with torch.no_grad():
            t0, t1 = (self.teacher(view) for view in views)
        cosine0 = F.cosine_similarity(self.predictor(z0), t1).mean()
        cosine1 = F.cosine_similarity(self.predictor(z1), t0).mean()
        agreement = (cosine0 + cosine1) / 2
        return {"loss": 4 - 4 * agreement, "agreement": agreement, "spread": spread(z0)}

    def after_step(self, progress: float) -> None:
        """The teacher moves towards the student."""
        moved = momentum.rising(self.config.momentum, progress)
        momentum.follow(self.teacher, self.student(), moved)

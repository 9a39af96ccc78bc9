"""SimSiam: from one view, predict the projection of the other, through which no gradient flows.

Chen and He, "Exploring Simple Siamese Representation Learning", 2021.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fastssl.train import backbones, networks
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.method import Method
from fastssl.train.spread import spread
from fastssl.train.views import recipe_for, same_size_views


@dataclass(kw_only=True)
class SimSiamConfig(Config):
    """SimSiam's own keywords.

    As in the paper (section 3) the predictor has a quarter of the projections' size, 512 of 2048
    there. Projections of this size, and the common keywords' defaults, were chosen on the digits.
    """

    epochs: int = option(30, "Passes over the training images.", least=1)
    dim: int = option(256, "Size of the projections, and of the projector's layers.", least=1)
    bottleneck: int = option(64, "Hidden units of the predictor.", least=1)


class SimSiam(Method):
    """A symmetric negative cosine with the gradient stopped on one side; no teacher, no negatives.

    Heads as in the paper: a projector of three layers, the last with batch norm but no ReLU, and a
    predictor of two, the last without batch norm. A collapse shows in "spread", which falls from
    about 1 to 0. AdamW takes the place of SGD, and the predictor's learning rate, which the
    authors' code keeps constant, follows the others'.
    """

    name = "simsiam"
    Config = SimSiamConfig

    def __init__(self, config: SimSiamConfig, data: Data):
        super().__init__(config, data)
        self.backbone = backbones.encoder(config, data)
        sizes = [self.backbone.features, *[config.dim] * 3]
        self.projector = networks.mlp(*sizes, last_norm=True)
        self.predictor = networks.mlp(config.dim, config.bottleneck, config.dim)
        self.augment = same_size_views(data, [recipe_for(data)] * 2, config)

    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> list[Tensor]:
        """Two independent views, each float32 [N, C, H, W]."""
        return self.augment(images, sample_ids=sample_ids, step=step)

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        """Minus the mean cosine of predictions and projections, over images and directions."""
        z0, z1 = (self.projector(self.backbone(view)) for view in views)
        p0, p1 = self.predictor(z0), self.predictor(z1)
        cosines = F.cosine_similarity(p0, z1.detach()), F.cosine_similarity(p1, z0.detach())
        agreement = sum(cosine.mean() for cosine in cosines) / 2
        return {"loss": -agreement, "agreement": agreement, "spread": spread(z0)}

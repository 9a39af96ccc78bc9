"""SimCLR: two views of an image agree, views of different images do not.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fastssl import NTXentLoss
from fastssl.train import networks
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.method import Method
from fastssl.train.views import CHARACTERS, PHOTOGRAPHS, same_size_views


@dataclass(kw_only=True)
class SimCLRConfig(Config):
    """SimCLR's own keywords; temperature and projection size are those of the paper's B.9."""

    temperature: float = option(0.5, "Temperature of the loss.", least=1e-8)
    hidden: int = option(256, "Hidden units of the projector.", least=1)
    dim: int = option(128, "Size of the projections.", least=1)


class SimCLR(Method):
    """SimCLR with the fused NT-Xent loss.

    The paper's setting for CIFAR-10 (appendix B.9) with AdamW instead of LARS, which the paper
    needs for batches of thousands. With several processes each contrasts its own part of the batch.
    """

    name = "simclr"
    Config = SimCLRConfig

    def __init__(self, config: SimCLRConfig, data: Data):
        super().__init__(config, data)
        self.backbone = networks.encoder(config.backbone, data.channels, config.width)
        self.projector = networks.projector(self.backbone.features, config.hidden, config.dim)
        self.criterion = NTXentLoss(config.temperature)
        recipe = PHOTOGRAPHS if data.channels == 3 else CHARACTERS
        self.augment = same_size_views(data.train.images, recipe, 2, config.seed)

    def views(self, images: Tensor, sample_ids: Tensor, step: int) -> list[Tensor]:
        """Two independent views, each float32 [N, C, H, W]."""
        return self.augment(images, sample_ids=sample_ids, step=step)

    def forward(self, view0: Tensor, view1: Tensor) -> dict[str, Tensor]:
        """The loss, and the mean cosine of the two views' projections: 1 if they agree."""
        z0, z1 = (self.projector(self.backbone(view)) for view in (view0, view1))
        agreement = F.cosine_similarity(z0.detach(), z1.detach()).mean()
        return {"loss": self.criterion(z0, z1), "agreement": agreement}

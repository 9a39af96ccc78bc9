"""MoCo: a view is told from other images' by the key that a slowly moving encoder gives it.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020; version 2,
Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020; version 3, Chen, Xie and
He, "An Empirical Study of Training Self-Supervised Vision Transformers", 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastssl import MemoryBank, info_nce
from fastssl.train import backbones, momentum, networks
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.method import Method
from fastssl.train.processes import everyone
from fastssl.train.views import recipe_for, same_size_views


@dataclass(kw_only=True)
class MoCoConfig(Config):
    """MoCo's own keywords.

    The temperature is that of version 2's paper and of version 3's vision transformers (its code
    has 1 for ResNets). The momentum is the default of version 3's code, and that of the authors'
    example on CIFAR-10 for version 2, which has 0.999 on ImageNet. A queue of 65,536 is for 1.28
    million images: it should be shorter than the data set, or an image meets its own older keys
    as negatives. Queue, heads and the common keywords' defaults were chosen on the digits; version
    3's heads have 4096 hidden units and 256 outputs in its code.
    """

    epochs: int = option(30, "Passes over the training images.", least=1)
    version: str = option("v2", "With a queue, or with the batch's keys.", choices=("v2", "v3"))
    temperature: float = option(0.2, "Temperature of the loss.", least=1e-8)
    hidden: int = option(256, "Hidden units of the heads.", least=1)
    dim: int = option(128, "Size of the keys.", least=1)
    momentum: float = option(
        0.99, "The key encoder's; version 3 lets it rise to 1 by half a cosine.", least=0, below=1
    )
    queue: int = option(512, "Keys of earlier batches that version 2 keeps.", least=1)


class MoCo(Method):
    """Version 2 with a queue of keys, or version 3 with a predictor and the keys of the batch.

    Version 2 asks one view for the other among the keys of earlier batches, of all processes.
    Version 3 asks both views, among the other images' keys of the same batch, of all processes.

    Batch norm can leak which keys are of the query's own batch. The authors shuffle images among
    GPUs that normalise apart; here, as in version 3, it runs over the whole batch of all processes,
    and no smaller group is left for a key to give away. What remains in version 2, that the queue's
    keys were normalised with other batches, fades as batches grow.

    "agreement" is the mean cosine of query and key, "top1" how often the key is nearest.
    """

    name = "moco"
    Config = MoCoConfig

    def __init__(self, config: MoCoConfig, data: Data):
        super().__init__(config, data)
        self.backbone = backbones.encoder(config, data)
        features, hidden, dim = self.backbone.features, config.hidden, config.dim
        if config.version == "v2":
            # Without batch norm, as in the paper.
            self.projector = nn.Sequential(
                nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim)
            )
            self.bank = MemoryBank(config.queue, dim, process_group=everyone())
        else:
            self.projector = networks.mlp(features, hidden, hidden, dim, last_norm=True)
            self.predictor = networks.mlp(dim, hidden, dim, last_norm=True)
        self.teacher = momentum.teacher_of(self.student())
        self.augment = same_size_views(data, [recipe_for(data)] * 2, config)

    def student(self) -> nn.Module:
        """What the key encoder follows: images to projections."""
        return nn.Sequential(self.backbone, self.projector)

    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> list[Tensor]:
        """Two independent views, each float32 [N, C, H, W]."""
        return self.augment(images, sample_ids=sample_ids, step=step)

    def contrast(self, query: Tensor, key: Tensor, queue: Tensor | None) -> dict[str, Tensor]:
        """InfoNCE, with what it says of the similarities."""
        loss, found = info_nce(
            query,
            key,
            queue,
            temperature=self.config.temperature,
            return_metrics=True,
            process_group=everyone(),
        )
        return {"loss": loss, "agreement": found["positive_similarity"], "top1": found["top1"]}

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        """The mean over queries; version 3's is multiplied by 2 temperature, as in its paper."""
        if self.config.version == "v2":
            query = self.student()(views[0])
            with torch.no_grad():
                key = self.teacher(views[1])
            return self.contrast(query, key, self.bank(key))
        q0, q1 = (self.predictor(self.student()(view)) for view in views)
        with torch.no_grad():
            k0, k1 = (self.teacher(view) for view in views)
        sides = self.contrast(q0, k1, None), self.contrast(q1, k0, None)
        logs = {name: (value + sides[1][name]) / 2 for name, value in sides[0].items()}
        # The mean of both directions stands for their sum.
        return logs | {"loss": logs["loss"] * 4 * self.config.temperature}

    def after_step(self, progress: float) -> None:
        """The key encoder moves towards the query encoder."""
        moved = self.config.momentum
        if self.config.version == "v3":
            moved = momentum.rising(moved, progress)
        momentum.follow(self.teacher, self.student(), moved)

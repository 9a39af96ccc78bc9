"""DINO: small crops of an image are to say what a slowly moving teacher says of large ones.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.augment import Augment
from fastssl.train import backbones, momentum, networks
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.method import Method
from fastssl.train.plan import steps_per_epoch
from fastssl.train.processes import mean_over
from fastssl.train.views import MEAN, STD, recipe_for


@dataclass(kw_only=True)
class DINOConfig(Config):
    """DINO's own keywords.

    Temperatures, the centre's momentum and the last layer's rest for an epoch are the defaults of
    the authors' code; in the paper the teacher's temperature rises from 0.04 to 0.07 in the first
    30 epochs. Code and paper have 8 local crops of 0.05 to 0.4 of the image, global ones of 0.4 to
    1, a head of 2048 hidden units, a bottleneck of 256, 65,536 outputs, and a teacher's momentum
    that starts at 0.996. Those here were chosen on the digits for runs of a few hundred steps, as
    were the common keywords' defaults.
    """

    epochs: int = option(20, "Passes over the training images.", least=1)
    batch_size: int = option(64, "Images per step, over all processes.", least=2)
    local_crops: int = option(4, "Small crops of each image.", least=0)
    local_scale: float = option(0.2, "Least share of the image in a local crop.", above=0, below=1)
    global_scale: float = option(0.5, "Least in a global, most in a local.", above=0, below=1)
    hidden: int = option(256, "Hidden units of the head.", least=1)
    bottleneck: int = option(64, "Size of the unit vectors before the last layer.", least=1)
    outputs: int = option(512, "Classes that the network makes up.", least=2)
    student_temperature: float = option(0.1, "Of the student's softmax.", above=0)
    teacher_temperature: float = option(0.04, "Of the teacher's: lower is sharper.", above=0)
    center_momentum: float = option(0.9, "Of the teacher's mean output.", least=0, below=1)
    momentum: float = option(0.99, "Teacher's at first, rising to 1.", least=0, below=1)
    frozen_epochs: int = option(1, "Epochs in which the last layer stays as it is.", least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.local_scale > self.global_scale:
            bound = f"global_scale ({self.global_scale})"
            raise UsageError(f"local_scale: got {self.local_scale}, must be at most {bound}")
        if self.cuda_graph and self.frozen_epochs:
            raise UsageError(
                f"cuda_graph: cannot be combined with frozen_epochs ({self.frozen_epochs}), since "
                f"the host decides when the last layer begins to move; give frozen_epochs 0"
            )


class Head(nn.Module):
    """Three layers, a unit vector, and its cosines with rows that a weight norm of 1 keeps.

    With batch norm between the layers, an option of the authors' code that suits short runs.
    """

    def __init__(self, features: int, config: DINOConfig):
        super().__init__()
        self.mlp = networks.mlp(features, config.hidden, config.hidden, config.bottleneck)
        self.last = nn.Parameter(F.normalize(torch.randn(config.outputs, config.bottleneck)))

    def forward(self, features: Tensor) -> Tensor:
        """[N, features] to [N, outputs]."""
        return F.linear(F.normalize(self.mlp(features), dim=1), F.normalize(self.last, dim=1))


class DINO(Method):
    """Cross-entropy between the teacher's view of global crops and the student's of all others.

    Teacher outputs minus their running mean ("center"), sharpened by a low temperature, are neither
    one class for all images nor all classes alike; "teacher_entropy", in nats, would be 0 or
    log(outputs). "agreement" is the share of images of whose two global crops student and teacher
    name the same class.

    Local crops have half the images' side for the convolutional networks of this package. Other
    encoders have positions for one size: their local crops are resized to the images' side.
    The encoder that is evaluated is the student's: in a short run the teacher lags behind it.
    """

    name = "dino"
    Config = DINOConfig

    def __init__(self, config: DINOConfig, data: Data):
        super().__init__(config, data)
        self.backbone = backbones.encoder(config, data)
        self.head = Head(self.backbone.features, config)
        self.teacher = momentum.teacher_of(self.student())
        self.register_buffer("center", torch.zeros(config.outputs))
        self.frozen_steps = config.frozen_epochs * steps_per_epoch(config, data)
        self.augment = self._crops(data)

    def _crops(self, data: Data) -> Augment:
        config, recipe = self.config, recipe_for(data)
        _, channels, *sides = data.train.inputs.shape
        large = replace(recipe, size=tuple(sides), scale=(config.global_scale, 1.0))
        if isinstance(self.backbone, networks.Small | networks.ResNet):
            sides = [side // 2 for side in sides]
        scale = (config.local_scale, config.global_scale)
        small = replace(recipe, size=tuple(sides), scale=scale)
        recipes = [large] * 2 + [small] * config.local_crops
        return Augment(recipes, seed=config.seed, mean=[MEAN] * channels, std=[STD] * channels)

    def student(self) -> nn.Module:
        """What the teacher follows: images to outputs."""
        return nn.Sequential(self.backbone, self.head)

    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> list[Tensor]:
        """Two global crops, float32 [N, C, H, W], then the local ones."""
        # A step that is recorded has its number on the device, and no rest.
        self.frozen = self.frozen_steps > 0 and step < self.frozen_steps
        return self.augment(images, sample_ids=sample_ids, step=step)

    def step(
        self, model: nn.Module, views: Sequence, backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        """Without a gradient for the last layer as long as it is frozen."""
        logs = super().step(model, views, backward)
        if self.frozen:
            self.head.last.grad = None
        return logs

    def forward(self, *views: Tensor) -> dict[str, Tensor]:
        """The mean over images, global crops for the teacher and other crops for the student."""
        sizes = [views[:2], views[2:]]
        features = torch.cat([self.backbone(torch.cat(same)) for same in sizes if same])
        outputs = self.head(features).view(len(views), len(views[0]), -1)
        log_p = F.log_softmax(outputs / self.config.student_temperature, -1)
        with torch.no_grad():
            # The mean of many outputs has digits that half precision has not.
            seen = self.teacher(torch.cat(views[:2])).to(self.center.dtype)
            seen = seen.view(2, len(views[0]), -1)
            q = F.softmax((seen - self.center) / self.config.teacher_temperature, -1)
            mean = mean_over(seen.mean((0, 1)))
            self.center.lerp_(mean, 1 - self.config.center_momentum)
        # Every other crop of the image: all of them without the one that the teacher sees.
        others = log_p.sum(0) - log_p[:2]
        loss = -(q * others).sum(-1).mean() / (len(views) - 1)
        same = outputs[:2].argmax(-1) == q.flip(0).argmax(-1)
        return {
            "loss": loss,
            "teacher_entropy": torch.special.entr(q).sum(-1).mean(),
            "agreement": same.float().mean(),
        }

    def after_step(self, progress: float) -> None:
        """The teacher moves towards the student."""
        moved = momentum.rising(self.config.momentum, progress)
        momentum.follow(self.teacher, self.student(), moved)

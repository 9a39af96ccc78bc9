"""Supervised: an encoder and a linear classifier learn the labels; what the others compare with."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.train import backbones
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.method import Method, Task
from fastssl.train.processes import mean_over
from fastssl.train.views import recipe_for, same_size_views, to_float

#: Test images that pass the encoder at a time.
BATCH = 500


@dataclass(kw_only=True)
class SupervisedConfig(Config):
    """The common keywords with this baseline's default, chosen on the digits.

    Label smoothing is that of Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", 2016 (section 7), who take 0.1; none by default.
    """

    epochs: int = option(20, "Passes over the training images.", least=1)
    label_smoothing: float = option(
        0.0, "Share of each label that is spread over all classes.", least=0, below=1
    )


class Supervised(Method):
    """Cross-entropy with the labels of the training images, under the views of the other methods.

    The only method that sees labels. Images without one are left out of the loss.

    Raises:
        UsageError: the data has no labels.
    """

    name = "supervised"
    Config = SupervisedConfig

    def __init__(self, config: SupervisedConfig, data: Data):
        super().__init__(config, data)
        if not data.classes:
            raise UsageError(f"data: {data.name} has no classes, supervised learns from labels")
        self.backbone = backbones.encoder(config, data)
        self.head = nn.Linear(self.backbone.features, len(data.classes))
        self.register_buffer("labels", data.train.labels, persistent=False)
        self.augment = same_size_views(data, [recipe_for(data)], config)

    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> list[Tensor]:
        """One view, float32 [N, C, H, W], and the labels, int64 [N]."""
        return [*self.augment(images, sample_ids=sample_ids, step=step), self.labels[sample_ids]]

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The mean over all processes' labelled images, and the share of them that is right."""
        logits = self.head(self.backbone(images))
        known = mean_over((labels >= 0).sum().float()).clamp(min=1)
        loss = F.cross_entropy(
            logits,
            labels,
            ignore_index=-1,
            reduction="sum",
            label_smoothing=self.config.label_smoothing,
        )
        right = (logits.argmax(1) == labels).sum()
        return {"loss": loss / known, "accuracy": right / known}

    def task(self, data: Data, device: torch.device) -> Task | None:
        """Which class a test image has, answered by the head."""
        labels, right = data.test.labels, 0
        known = int((labels >= 0).sum())
        if known == 0:
            return None
        for start in range(0, len(labels), BATCH):
            images = to_float(data.test.inputs[start : start + BATCH].to(device))
            answers = self.head(self.backbone(images)).argmax(1).cpu()
            right += int((answers == labels[start : start + BATCH]).sum())
        return Task("which class", right / known, 1 / len(data.classes))

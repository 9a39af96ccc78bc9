"""What methods share that make up a question about an image, whose answer they know."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.masking import MaskPlan
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.method import Method, Task

#: Encoders of images of any size, tiles among them.
CONVOLUTIONAL = ("small", "resnet18", "resnet50", "timm:NAME", "torchvision:NAME")


@dataclass(kw_only=True)
class TileConfig(Config):
    """Keywords of methods whose encoder is trained on tiles, and used on whole images."""

    backbone: str = option(
        "small", "Encoder, convolutional, so that it takes tiles.", choices=CONVOLUTIONAL
    )
    hidden: int = option(256, "Hidden units of the classifier.", least=1)


class Puzzle(Method):
    """A classification whose labels come from the image itself.

    A subclass makes the question in `views` and answers it in `answer`; the loss is the
    cross-entropy.

    Attributes:
        question: for tables.
        answers: how many there are, equally likely.
    """

    question: ClassVar[str]
    answers: int

    @abstractmethod
    def answer(self, *views: Tensor | MaskPlan) -> tuple[Tensor, Tensor]:
        """Logits [..., answers] for `views`, and the true answers, int64 [...]."""

    def forward(self, *views: Tensor | MaskPlan) -> dict[str, Tensor]:
        """The cross-entropy, and the share of right answers."""
        logits, labels = self.answer(*views)
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        return {"loss": loss, "accuracy": hits(logits, labels).mean()}

    def task(self, data: Data, device: torch.device) -> Task:
        """The share of right answers on test images, asked as in training, once of each image."""
        right = []
        for start in range(0, len(data.test), self.config.batch_size):
            images = data.test.inputs[start : start + self.config.batch_size].to(device)
            ids = torch.arange(start, start + len(images), device=device)
            right.append(hits(*self.answer(*self.views(images, ids, 0))).flatten())
        return Task(self.question, torch.cat(right).mean().item(), 1 / self.answers)


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest of logits [..., answers] is at the label [...], else 0; float32."""
    return (logits.argmax(-1) == labels).float()


@torch.no_grad()
def check_tile(config: Config, encoder: nn.Module, channels: int, tile: tuple[int, int]) -> None:
    """Raises UsageError where an encoder cannot take tiles [N, channels, *tile]."""
    training = encoder.training
    try:
        encoder.eval()(torch.zeros(1, channels, *tile))
    # What an encoder raises is its own: the small one has nothing to pool, others want one size.
    except Exception as error:
        size = " x ".join(map(str, tile))
        raise UsageError(
            f"backbone: {config.backbone!r} cannot take tiles of {size} pixels: {error}"
        ) from error
    encoder.train(training)

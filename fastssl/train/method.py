"""What a method is: the contract between `fastssl.train.methods` and the loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fastssl.train.config import Config
from fastssl.train.data import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_methods: dict[str, type["Method"]] = {}


@dataclass(frozen=True)
class Task:
    """How well a method answers its own question on test samples.

    Attributes:
        question: such as "which rotation", for tables.
        accuracy: 0 to 1.
        chance: accuracy of guessing, 0 to 1.
    """

    question: str
    accuracy: float
    chance: float


class Method(nn.Module, ABC):
    """A self-supervised method: its model, its views, its loss and what it logs.

    A subclass lives in one file of `fastssl.train.methods`, sets `name` and `Config`, and builds in
    ``__init__(self, config, data)`` its modules, among them `backbone`: the encoder of images to
    features that is evaluated and exported. The loop calls `views` outside and `forward` inside the
    run's precision and distribution. A subclass without a `name` is a part that methods share.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Config]] = Config
    #: The kind of data that it takes: "images", "captions" (images with texts) or "texts".
    wants: ClassVar[str] = "images"
    #: Of AdamW.
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    backbone: nn.Module

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "name" in vars(cls):
            _methods[cls.name] = cls

    def __init__(self, config: Config, data: Data):
        super().__init__()
        self.config = config

    @abstractmethod
    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> Sequence:
        """What `forward` gets for uint8 images [N, C, H, W] on the device that trains.

        A method that wants texts gets their token ids, int64 [N, L], instead.

        Tensors, and dataclasses of tensors such as a `MaskPlan`.

        All randomness is a function of the run's seed, the step and `sample_ids`, the images'
        places in the data set, int64 [N]. With `cuda_graph` the step is a tensor, 0-d int64, and
        this and `step` run on the host a few times only: what they decide there holds for the rest
        of the run. A configuration with which they decide anew refuses `cuda_graph`.
        """

    @abstractmethod
    def forward(self, *views) -> dict[str, Tensor]:
        """Scalars: "loss", and whatever else is worth a curve."""

    def step(
        self, model: nn.Module, views: Sequence, backward: Callable[[Tensor], None]
    ) -> dict[str, Tensor]:
        """Adds the loss's gradients to the parameters and returns what `forward` does.

        Args:
            model: this method; called, it is `forward` inside the run's precision and distribution.
            views: from `views`.
            backward: to be called instead of ``loss.backward()``.
        """
        logs = model(*views)
        backward(logs["loss"])
        return logs

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW, without weight decay on biases and normalisation."""
        groups = [{"params": []}, {"params": [], "weight_decay": 0.0}]
        for parameter in self.parameters():
            if parameter.requires_grad:
                groups[parameter.ndim < 2]["params"].append(parameter)
        options = {"betas": self.betas, "weight_decay": self.config.weight_decay}
        return torch.optim.AdamW(groups, self.config.lr, **options)

    def after_step(self, progress: float) -> None:
        """Runs after each optimizer step, `progress` from 0 to 1: a moving average, a queue."""

    def task(self, data: Data, device: torch.device) -> Task | None:
        """The method's own question, asked of test samples after training, or None.

        In evaluation mode and without gradients, as `pictures`.
        """
        return None

    def pictures(self, data: Data, device: torch.device) -> "dict[str, Figure]":
        """Matplotlib figures that show what was learned, by the name of the file.

        Drawn at the end of an evaluated run, in evaluation mode and without gradients, beside
        report.png.
        """
        return {}


def registered() -> dict[str, type[Method]]:
    """Methods by name."""
    return dict(sorted(_methods.items()))

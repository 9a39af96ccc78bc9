"""Encoders by name: what `backbone`, `width` and `stem` of a configuration mean."""

import copy

import torch
from torch import Tensor, nn

from fastssl.train import networks, vit
from fastssl.train.config import Config
from fastssl.train.data import Data
from fastssl.train.errors import UsageError

#: Names of the convolutional encoders: block and blocks of each stage.
RESNETS = {
    "resnet18": (networks.BasicBlock, (2, 2, 2, 2)),
    "resnet50": (networks.Bottleneck, (3, 4, 6, 3)),
}

#: Images from this side on get ResNet's stem for ImageNet, and patches of 16.
LARGE = 96


def encoder(config: Config, data: Data) -> nn.Module:
    """The encoder of a run: images [N, C, H, W] to features [N, D], D in its `features`.

    Args:
        config: gives `backbone`, `width` and `stem`.
        data: gives channels and sides of the images.

    Raises:
        UsageError: the library that has the encoder is not installed, or has none of that name.
    """
    name, (_, channels, *sides) = config.backbone, data.train.inputs.shape
    library, _, model = name.partition(":")
    if model:
        return Foreign(library, model, channels, sides)
    if name == "small":
        return networks.Small(channels, config.width)
    if name in RESNETS:
        stem = config.stem
        if stem == "auto":
            stem = "imagenet" if min(sides) >= LARGE else "cifar"
        return networks.ResNet(*RESNETS[name], channels, config.width, stem)
    patch = 16 if min(sides) >= LARGE else 4
    return vit.VisionTransformer(channels, tuple(sides), patch, name, config.width)


class Foreign(nn.Module):
    """A model of timm or torchvision without its classifier; its own weights are in `model`.

    Args:
        library: "timm" or "torchvision".
        name: of the model there, built without pretrained weights.
        channels: of the images; torchvision's models see grey images three times.
        sides: of the images.
    """

    def __init__(self, library: str, name: str, channels: int, sides: list[int]):
        super().__init__()
        self.repeats = 1
        try:
            if library == "timm":
                self.model = _of_timm(name, in_chans=channels, num_classes=0, img_size=tuple(sides))
            else:
                import torchvision

                self.model = torchvision.models.get_model(name, weights=None)
                _drop_classifier(self.model)
                self.repeats = 3 // channels
            self.features = self._probe(channels, sides)
        except ImportError as error:
            raise UsageError(f"backbone: {library}:{name} needs {library}: {error}") from error
        # What a library raises where it has no such model, or not for such images, is its own.
        except Exception as error:
            raise UsageError(f"backbone: got '{library}:{name}': {error}") from error

    @torch.no_grad()
    def _probe(self, channels: int, sides: list[int]) -> int:
        before = copy.deepcopy(self.state_dict())
        # Both ways, because some models return more in training.
        sizes = {
            self.train(mode)(torch.zeros(2, channels, *sides)).shape[1] for mode in (False, True)
        }
        self.load_state_dict(before)
        (features,) = sizes
        return features

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, features]."""
        return self.model(images.repeat(1, self.repeats, 1, 1)).flatten(1)


def _of_timm(name: str, img_size: tuple[int, int], **keywords) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, img_size=img_size, **keywords)
    # Convolutional networks take any size, and no such keyword.
    except TypeError:
        return timm.create_model(name, **keywords)


def _drop_classifier(model: nn.Module) -> None:
    for name in ("fc", "classifier", "heads", "head"):
        if hasattr(model, name):
            setattr(model, name, nn.Identity())
            return
    raise UsageError("backbone: a torchvision model without a classifier that could be left out")

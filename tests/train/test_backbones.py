"""Encoders by name: shapes, names of parameters, models of other libraries."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastssl.train import Config, UsageError, backbones
from fastssl.train.data import Data, Split


def pictures(channels=3, side=32):
    split = Split(torch.zeros(2, channels, side, side, dtype=torch.uint8), torch.zeros(2).long())
    return Data("pictures", (), split, split)


def build(side=32, channels=3, **keywords):
    data = pictures(channels, side)
    return backbones.encoder(Config(**keywords), data), torch.zeros(2, channels, side, side)


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize(
    ("backbone", "width", "features"),
    [
        ("small", 4, 16),
        ("resnet18", 4, 32),
        ("resnet50", 4, 128),
        ("vit-micro", 16, 16),
        ("vit-tiny", 12, 12),
    ],
)
def test_features_have_the_promised_size(backbone, width, features, side):
    for channels in (1, 3):
        encoder, images = build(side, channels, backbone=backbone, width=width)
        assert encoder.features == features and encoder(images).shape == (2, features)


def test_large_images_get_the_large_stem_unless_told():
    for side, stem, kernel in [(32, "auto", 3), (96, "auto", 7), (96, "cifar", 3)]:
        encoder, _ = build(side, backbone="resnet18", width=4, stem=stem)
        assert encoder.conv1.kernel_size == (kernel, kernel)
    small, large = (build(s, backbone="vit-micro", width=16)[0].patch for s in (32, 96))
    assert (small, large) == (4, 16)


@pytest.mark.parametrize(("name", "count"), [("resnet18", 120), ("resnet50", 318)])
def test_resnets_have_torchvisions_names_and_shapes(name, count):
    encoder, _ = build(96, backbone=name, stem="imagenet")
    state = encoder.state_dict()
    # Of torchvision's state dict all but fc.weight and fc.bias.
    assert len(state) == count
    shapes = {
        "resnet18": {"layer4.1.conv2.weight": (512, 512, 3, 3), "conv1.weight": (64, 3, 7, 7)},
        "resnet50": {"layer4.2.conv3.weight": (2048, 512, 1, 1), "layer1.0.downsample.0.weight":
                     (256, 64, 1, 1)},
    }[name]  # fmt: skip
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


def test_weights_load_into_torchvision():
    try:
        from torchvision.models import resnet50
    # An installation may also be broken.
    except Exception as error:
        pytest.skip(f"torchvision: {error}")
    encoder, images = build(96, backbone="resnet50", stem="imagenet")
    theirs = resnet50()
    kept = theirs.load_state_dict(encoder.state_dict(), strict=False)
    assert kept.missing_keys == ["fc.weight", "fc.bias"] and not kept.unexpected_keys
    theirs.fc = nn.Identity()
    torch.testing.assert_close(theirs.eval()(images + 1), encoder.eval()(images + 1))


class Model(nn.Module):
    """Stands in for a library's: three channels in, 5 features, and a classifier."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3)
        self.fc = nn.Linear(5, 7)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def test_torchvisions_models_lose_their_classifier(monkeypatch):
    models = SimpleNamespace(get_model=lambda name, weights: Model())
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    for channels in (1, 3):
        encoder, images = build(channels=channels, backbone="torchvision:model")
        assert encoder.features == 5 and encoder(images).shape == (2, 5)


def test_timms_models_are_asked_for_features(monkeypatch):
    asked = []

    def create_model(name, **keywords):
        asked.append(keywords)
        if "img_size" in keywords:
            raise TypeError("unexpected keyword argument 'img_size'")
        model = Model(keywords["in_chans"])
        model.fc = nn.Identity()
        return model

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    encoder, images = build(channels=1, backbone="timm:model")
    assert encoder(images).shape == (2, encoder.features) == (2, 5)
    assert asked[-1] == {"in_chans": 1, "num_classes": 0}


def test_errors_name_the_backbone(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="^backbone: timm:resnet18 needs timm"):
        build(backbone="timm:resnet18")

    def none(name, weights):
        raise ValueError(f"Unknown model {name}")

    models = SimpleNamespace(get_model=none)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    with pytest.raises(UsageError, match="^backbone: got 'torchvision:zzz': Unknown model zzz"):
        build(backbone="torchvision:zzz")
    with pytest.raises(UsageError, match="^backbone: got 'resnet', must be one of small, .*timm:"):
        Config(backbone="resnet")

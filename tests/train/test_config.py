from pathlib import Path

import pytest
import torch

from fastssl.train import UsageError
from fastssl.train.data import Data, Split
from fastssl.train.methods.mae import MAEConfig
from fastssl.train.methods.simclr import SimCLRConfig
from fastssl.train.vit import SIZES


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epochs": 0}, "epochs: got 0, must be at least 1"),
        ({"epochs": 1.5}, "epochs: got 1.5, must be int"),
        ({"epochs": True}, "epochs: got True, must be int"),
        ({"epochs": None}, "epochs: got None, must be int"),
        ({"lr": 0}, "lr: got 0.0, must be above 0"),
        ({"lr": float("nan")}, "lr: got nan, must be above 0"),
        ({"warmup": 1.0}, "warmup: got 1.0, must be below 1"),
        ({"temperature": 0.0}, "temperature: got 0.0, must be at least 1e-08"),
        ({"data": "cifra10"}, "data: got 'cifra10', must be one of digits, cifar10, .*'cifar10'"),
        ({"data": "folder:"}, "data: got 'folder:', must be one of digits, .*folder:PATH"),
        ({"image_size": 64}, "image_size: got 64, images of digits are as large as they are"),
        ({"resume": 1}, "resume: got 1, must be bool"),
        ({"resume": True, "overwrite": True}, "overwrite: cannot be combined with resume"),
        ({"batch_size": 33, "devices": 2}, r"batch_size: got 33, must be a multiple of devices"),
        ({"batchsize": 33}, "batchsize: no such argument; did you mean 'batch_size'"),
        ({"zzz": 33}, "zzz: no such argument; known: data, root, "),
    ],
)
def test_errors_name_the_argument(keywords, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        SimCLRConfig.from_keywords(keywords)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"backbone": "small"}, "backbone: got 'small', must be one of vit-micro, "),
        ({"mask_ratio": 1.0}, "mask_ratio: got 1.0, must be below 1"),
        ({"mask_ratio": 0}, "mask_ratio: got 0.0, must be above 0"),
    ],
)
def test_methods_have_choices_of_their_own(keywords, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        MAEConfig.from_keywords(keywords)


def test_patches_follow_the_size_of_the_images():
    def patch(side, **keywords):
        images = torch.zeros(1, 1, side, side, dtype=torch.uint8)
        split = Split(images, torch.zeros(1, dtype=torch.int64))
        return MAEConfig(**keywords).patch(Data("pictures", (), split, split))

    assert (patch(32), patch(96), patch(224, patch_size=8)) == (4, 16, 8)


def test_strings_become_paths_and_whole_numbers_floats():
    config = SimCLRConfig.from_keywords({"out": "a/b", "temperature": 1, "limit": None})
    assert config.out == Path("a/b") and type(config.temperature) is float
    assert config.as_json()["out"] == str(Path("a/b"))


def test_width_follows_the_encoder():
    assert SimCLRConfig().width == 16 and SimCLRConfig(backbone="resnet18").width == 64
    assert SimCLRConfig(backbone="resnet18", width=8).width == 8
    assert MAEConfig(backbone="vit-small").width == SIZES["vit-small"].width == 384

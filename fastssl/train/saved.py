"""A finished or interrupted run, opened again from its folder."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastssl.train import data as datasets
from fastssl.train.config import Config
from fastssl.train.data import Data
from fastssl.train.folder import RunFolder
from fastssl.train.method import Method
from fastssl.train.methods import find


@dataclass(frozen=True)
class Saved:
    """What a folder of a run holds.

    Attributes:
        folder: its files.
        config: what the run was told.
        data: what it was trained and is tested on.
        model: the method with the weights of its last checkpoint, on the CPU, in evaluation mode.
        untrained: the encoder as it was before the first step, on the CPU, in evaluation mode.
    """

    folder: RunFolder
    config: Config
    data: Data
    model: Method
    untrained: nn.Module


def build(kind: type[Method], config: Config, data: Data) -> tuple[Method, nn.Module]:
    """A method with its initial weights, a function of the seed, and a copy of its encoder."""
    torch.manual_seed(config.seed)
    # Convolutions on a CPU, and in half precision on a GPU, are fastest with channels innermost.
    model = kind(config, data).to(memory_format=torch.channels_last)
    return model, copy.deepcopy(model.backbone)


def open_run(out: Path, root: Path | None = None, data: str | None = None) -> Saved:
    """Opens the folder of a run.

    Args:
        out: the folder.
        root: where the data is now, if not where it was; see `Config.root`.
        data: the same for data that is named by its place, such as "folder:PATH".

    Raises:
        UsageError: the folder holds no run, its checkpoint is damaged, its data is missing, or is
            not what it was trained on.
    """
    folder = RunFolder(Path(out))
    described = folder.read_config()
    kind = find(described.pop("method"))
    moved = {"root": root and str(root), "data": data}
    described |= {name: place for name, place in moved.items() if place}
    config = kind.Config.from_keywords(described)
    checkpoint = folder.read_checkpoint()
    samples = datasets.load(config.data, config.root, config.limit, config.image_size)
    folder.check_samples(checkpoint, samples.train.fingerprint(), "data")
    model, untrained = build(kind, config, samples)
    model.load_state_dict(checkpoint["model"])
    return Saved(folder, config, samples, model.eval(), untrained.eval())

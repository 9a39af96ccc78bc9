"""What a run is about to do: whether it can, and in words."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from fastssl.train import replay
from fastssl.train.config import Config
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.folder import RunFolder
from fastssl.train.method import Method

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def check(
    kind: type[Method], config: Config, data: Data, processes: int, device: torch.device
) -> None:
    """Checks that a method can be trained on a data set by a number of processes.

    Raises:
        UsageError: the data is of another kind or too small, the batch cannot be shared out, or the
            steps cannot be recorded on the device.
    """
    if data.kind != kind.wants and (data.kind, kind.wants) != ("captions", "images"):
        raise UsageError(f"data: {kind.name} trains on {kind.wants}, {data.name} has {data.kind}")
    steps_per_epoch(config, data)
    if config.batch_size % processes:
        raise UsageError(
            f"batch_size: got {config.batch_size}, must be a multiple of the {processes} processes"
        )
    if config.cuda_graph:
        replay.check(device, processes)


def steps_per_epoch(config: Config, data: Data) -> int:
    """Batches of an epoch.

    Raises:
        UsageError: there are fewer samples than one batch holds.
    """
    count = len(data.train)
    if count < config.batch_size:
        raise UsageError(
            f"batch_size: got {config.batch_size}, the data has {count} training {data.kind}"
        )
    return count // config.batch_size


def describe(model: Method, config: Config, data: Data, fabric: "Fabric", folder: RunFolder) -> str:
    """The plan of a run, some lines of text."""
    steps = steps_per_epoch(config, data)
    shape = " x ".join(map(str, data.train.inputs.shape[1:]))
    classes = f"{len(data.classes)} classes" if data.classes else "no classes"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines = {
        "method": model.name,
        "data": f"{data.name}: {len(data.train):,} + {len(data.test):,} {data.kind} of {shape}, "
        f"{classes}",
        "encoder": f"{config.backbone}: {_count(model.backbone):,} parameters, features of "
        f"{model.backbone.features}",
        "model": f"{_count(model):,} parameters, {trained:,} of them trained",
        "steps": f"{config.epochs} epochs of {steps} steps of {config.batch_size} {data.kind}: "
        f"{config.epochs * steps:,} steps",
        "where": f"{fabric.world_size} x {fabric.device.type}, {config.precision}"
        + (", steps replayed as a CUDA graph" if config.cuda_graph else ""),
        "out": str(folder.path),
    }
    return "\n".join(f"{name:<8} {value}" for name, value in lines.items())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

"""What a run ran on: versions, devices, threads."""

import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING

import torch

import fastssl
from fastssl import _dispatch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: What results may depend on.
PACKAGES = ("torch", "lightning-fabric", "numpy", "scikit-learn", "tokenizers", "triton")


def environment(fabric: "Fabric") -> dict:
    """Versions, the devices of a run and what ran for each operator, as values for JSON."""
    device = fabric.device
    operators = {
        name: _dispatch.availability(name).auto(device.type) for name in _dispatch.operators()
    }
    return {
        "fastssl": fastssl.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": fabric.world_size,
        "precision": fabric._precision.precision,
        "threads": torch.get_num_threads(),
        "operators": operators,
        "command": sys.argv,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

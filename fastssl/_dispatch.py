"""Which implementation of an operator runs.

With ``impl="auto"`` torch's dispatcher decides by device: the native kernel where one is
registered, the reference otherwise. A name asks for one implementation and raises where it cannot
run.
"""

import os
from dataclasses import dataclass, field
from importlib.util import find_spec

import torch

from fastssl import _library

#: Whether Triton kernels run in its interpreter (on CPU tensors); read once, as Triton does.
INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"

_operators: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class Availability:
    """Implementations of one operator: name to the reason why it cannot run (empty if it can)."""

    name: str
    reasons: dict[str, str] = field(default_factory=dict)

    def auto(self, device_type: str) -> str:
        """The implementation that ``impl="auto"`` picks for a device type."""
        native = _operators[self.name].get(device_type)
        return native if native and not self.reasons[native] else "reference"


def register(name: str, **native_by_device: str) -> None:
    """Declare an operator and the native implementation for each device type."""
    _operators[name] = native_by_device


def operators() -> list[str]:
    """Names of all operators."""
    return sorted(_operators)


def cpu_reason() -> str:
    """Why the C++ implementation cannot run, or an empty string."""
    return _library.cpu_error


def triton_reason() -> str:
    """Why Triton kernels cannot run here, or an empty string."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if INTERPRET or torch.cuda.is_available():
        return ""
    return "no CUDA device (TRITON_INTERPRET=1, set before import, runs it on the CPU)"


def cuda_reason() -> str:
    """Why the CUDA C++ implementation cannot run here, or an empty string."""
    if _library.cuda_error or torch.cuda.is_available():
        return _library.cuda_error
    return "no CUDA device"


_REASONS = {"cpu": cpu_reason, "triton": triton_reason, "cuda": cuda_reason}


def availability(name: str) -> Availability:
    """What can run here for operator `name`."""
    reasons = {native: _REASONS[native]() for native in _operators[name].values()}
    return Availability(name, {"reference": "", **reasons})


def check_impl(name: str, impl: str) -> None:
    """Raise ValueError where `impl` is not a name this operator knows."""
    known = ["auto", "reference", *sorted(set(_operators[name].values()))]
    if impl not in known:
        raise ValueError(f"impl: got {impl!r}, must be one of {', '.join(known)}")


def choose(name: str, impl: str, device: torch.device) -> str:
    """The implementation to run for tensors on `device`.

    Raises:
        ValueError: `impl` is not a name this operator knows.
        RuntimeError: `impl` is known but cannot run here or not on this device.
    """
    native = _operators[name]
    if impl == "auto":
        return native.get(device.type, "reference")
    if impl == "reference":
        return impl
    check_impl(name, impl)
    if reason := availability(name).reasons[impl]:
        raise RuntimeError(f"impl={impl!r} cannot run here: {reason}")
    interpreted = impl == "triton" and INTERPRET and device.type == "cpu"
    if native.get(device.type) != impl and not interpreted:
        raise RuntimeError(f"impl={impl!r} does not run on {device.type} tensors")
    return impl

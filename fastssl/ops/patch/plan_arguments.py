"""What all functions that draw plans take: the counters of the draw, a grid, a ratio."""

import math

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._checks import checked_integer, checked_number
from fastssl._library import raw
from fastssl._random import checked_ids, checked_seed, checked_step
from fastssl.ops.patch import reference_plans, schema_plans  # noqa: F401 (registers)

MOST_PATCHES = 1 << 23


class Counters:
    """Where the draws of a batch come from, checked; calls the raw operators."""

    def __init__(self, batch, seed, step, sample_ids, device, impl):
        device = checked_device(device)
        if device is None and isinstance(sample_ids, Tensor):
            device = sample_ids.device
        size = checked_batch(batch)
        self.sample_ids = checked_ids(sample_ids, size, device or torch.device("cpu"))
        self.device = self.sample_ids.device
        self.step, self.step_value = checked_step(step, self.device, "the plan")
        self.seed = checked_seed(seed)
        self.native = _dispatch.choose("patch", impl, self.device) != "reference"

    def draw(self, name: str, before: tuple, *after) -> tuple[Tensor, ...]:
        """The operator patch_`name`; `before` and `after` are its arguments around the step."""
        operator = raw(f"patch_{name}")
        function = operator if self.native else getattr(reference_plans, name)
        counters = (self.step, self.step_value, self.seed)
        return function(self.sample_ids, *before, *counters, *after)


def checked_batch(batch) -> int:
    """The number of samples itself."""
    return checked_integer("batch", batch, 0)


def checked_device(device) -> torch.device | None:
    """The device that a caller names; None for None."""
    if device is None or isinstance(device, torch.device):
        return device
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        pass
    raise ValueError(f"device: got {device!r}, must be a torch.device or the name of one")


def checked_grid(name: str, grid, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Patches along each axis; `axes` are the numbers of axes that are allowed."""
    if not isinstance(grid, (tuple, list)):
        raise TypeError(f"{name}: got {grid!r}, must be a tuple of integers")
    if len(grid) not in axes:
        wanted = " or ".join(str(n) for n in axes)
        raise ValueError(f"{name}: got {tuple(grid)}, must have {wanted} numbers")
    for number in grid:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name}: got {tuple(grid)}, must be a tuple of integers")
        if number < 1:
            raise ValueError(f"{name}: got {tuple(grid)}, must be at least 1 along each axis")
    if math.prod(grid) > MOST_PATCHES:
        raise ValueError(f"{name}: got {tuple(grid)}, must have at most 2^23 patches")
    return tuple(grid)


def checked_ratio(ratio) -> float:
    """The part of the patches that is removed, in [0, 1)."""
    return checked_number("ratio", ratio, 0, 1, ")")


def checked_range(name: str, value, low: float, high: float, end: str = "]") -> tuple[float, float]:
    """Two numbers in order, each as `checked_number` wants it."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: got {value!r}, must be a tuple (low, high)")
    first, last = (checked_number(name, number, low, high, end) for number in value)
    if first > last:
        raise ValueError(f"{name}: got {tuple(value)}, low must not be above high")
    return first, last


def checked_aspect(aspect, name: str = "aspect") -> tuple[float, float]:
    """A range of height / width."""
    return checked_range(name, aspect, 1e-3, 1e3)

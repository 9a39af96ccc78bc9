"""What operators ask of their arguments; a check raises with the argument's name."""

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def checked_floating(name: str, x, dims: int, shape: str) -> Tensor:
    """The tensor itself, floating-point and with `dims` dimensions, described by `shape`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: got {type(x).__name__}, must be a tensor")
    if x.dtype not in FLOATING:
        raise TypeError(
            f"{name}: got dtype {x.dtype}, must be float16, bfloat16, float32 or float64"
        )
    if x.layout != torch.strided:
        raise TypeError(f"{name}: got layout {x.layout}, must be a dense tensor")
    if x.dim() != dims:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, must be {shape}")
    return x


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What is computed in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def checked_integer(name: str, value, low: int, high: int | None = None) -> int:
    """The integer itself, at least `low` and at most `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, must be an integer")
    if value < low or (high is not None and value > high):
        wanted = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name}: got {value}, must be {wanted}")
    return value


def checked_number(name: str, value, low: float, high: float, end: str = "]") -> float:
    """The number itself, in [low, high] or, with `end` ")", in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {value!r}, must be a number")
    if not low <= value <= high or (end == ")" and value == high):
        raise ValueError(f"{name}: got {value}, must be in [{low}, {high}{end}")
    return float(value)


def checked_bool(name: str, value) -> bool:
    """The flag itself."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, must be True or False")
    return value

"""What the losses of the family ask of their arguments, and how they reduce."""

import torch
from torch import Tensor

from fastssl._autograd import autocast_enabled
from fastssl._checks import FLOATING, checked_floating, checked_number
from fastssl.ops.nt_xent import checked_temperature
from fastssl.ops.nt_xent.schema import REDUCTIONS

STRATEGIES = ("gather", "ring")


def checked_rows(name: str, x, like: Tensor | None = None, like_name: str = "", group=None):
    """A matrix of at least one row and column, of the width, dtype and device of `like`.

    With a process group an empty matrix passes: all ranks raise together, later.
    """
    checked_floating(name, x, 2, "[N, D]")
    if (x.shape[0] == 0 and group is None) or x.shape[1] == 0:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, N and D must be at least 1")
    if like is None:
        return
    if x.shape[1] != like.shape[1]:
        raise ValueError(
            f"{name}: got D = {x.shape[1]}, must be that of {like_name}, {like.shape[1]}"
        )
    if x.dtype != like.dtype:
        raise TypeError(f"{name}: got dtype {x.dtype}, must be that of {like_name}, {like.dtype}")
    if x.device != like.device:
        raise ValueError(
            f"{name}: got device {x.device}, must be that of {like_name}, {like.device}"
        )


def checked_pair(name0: str, x0, name1: str, x1, group=None) -> None:
    """Two matrices of one shape, dtype and device."""
    checked_rows(name0, x0, group=group)
    checked_rows(name1, x1, x0, name0, group=group)
    if x0.shape != x1.shape:
        raise ValueError(
            f"{name1}: got shape {tuple(x1.shape)}, must be that of {name0}, {tuple(x0.shape)}"
        )


def checked_labels(name: str, labels, count: int, device: torch.device) -> Tensor:
    """Integer labels [count] as int64."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: got {type(labels).__name__}, must be a tensor")
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"{name}: got dtype {labels.dtype}, must be an integer type")
    if labels.shape != (count,):
        raise ValueError(f"{name}: got shape {tuple(labels.shape)}, must be ({count},)")
    if labels.device != device:
        raise ValueError(f"{name}: got device {labels.device}, must be {device}")
    return labels.long()


def checked_scalar(name: str, value, device: torch.device) -> Tensor | float:
    """A number, or a tensor of one element as 0-d."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: got {value!r}, must be a number or a tensor of one element")
        return float(value)
    if value.numel() != 1:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, must have one element")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}: got dtype {value.dtype}, must be floating-point")
    return value.reshape(())


def inverse_temperature(temperature) -> Tensor | float:
    """What cosines are multiplied by."""
    if not isinstance(temperature, Tensor):
        return 1 / checked_temperature(temperature)
    if temperature.dim() != 0:
        raise ValueError(f"temperature: got shape {tuple(temperature.shape)}, must be 0-d")
    if temperature.dtype not in FLOATING:
        raise TypeError(f"temperature: got dtype {temperature.dtype}, must be floating-point")
    if temperature.device.type == "cpu" and not torch.compiler.is_compiling():
        checked_temperature(temperature.detach().item())
    return 1 / temperature.double()


def checked_margin(name: str, margin) -> float | None:
    """A margin in units of similarity, or None."""
    return None if margin is None else checked_number(name, margin, -float("inf"), float("inf"))


def checked_reduction(reduction) -> None:
    """Raise ValueError for a reduction that does not exist."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, must be one of {REDUCTIONS}")


def checked_strategy(strategy) -> None:
    """Raise ValueError for a strategy that does not exist."""
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy: got {strategy!r}, must be one of {STRATEGIES}")


def promoted(*tensors):
    """Under autocast, tensors of one dtype: the widest of theirs."""
    if not autocast_enabled(tensors[0]):
        return tensors
    if not all(isinstance(x, Tensor) and x.dtype in FLOATING for x in tensors):
        return tensors  # the checks will say so
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return tuple(x.to(dtype) for x in tensors)


def out_dtype(x: Tensor) -> torch.dtype:
    """A loss has the inputs' dtype; under autocast, at least float32."""
    return torch.promote_types(x.dtype, torch.float32) if autocast_enabled(x) else x.dtype


def reduced(losses: Tensor, reduction: str, share: float, dtype: torch.dtype) -> Tensor:
    """Losses of rows, float64, to what is returned."""
    if reduction == "none":
        return losses.to(dtype)
    total = losses.sum()
    return (total / share if reduction == "mean" else total).to(dtype)

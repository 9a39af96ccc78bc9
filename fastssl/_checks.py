"""What operators ask of tensors; a check raises with the argument's name."""

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

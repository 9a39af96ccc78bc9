"""What `apply` is told about each view and about its output, checked and put in numbers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.ops.augment.recipe import INTERPOLATIONS, checked_settings

SEMANTICS = ("tv-uint8", "tv-float", "pil")  # passed as their index
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8)
_FORMATS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class Settings:
    """The views' sizes, and 5 numbers for each as the raw operator `augment_apply` takes them."""

    sizes: tuple[tuple[int, int], ...]
    numbers: tuple[int, ...]
    semantics: int

    @classmethod
    def of(cls, semantics: str, views: int, *settings) -> "Settings":
        """From `apply`'s settings: each one value for all views, or a list with one per view."""
        if semantics not in SEMANTICS:
            raise ValueError(f"semantics: got {semantics!r}, must be one of {SEMANTICS}")
        names = ("size", "interpolation", "antialias", "gray_first", "blur_kernel")
        columns = []
        for name, value in zip((*names, "solarize_threshold"), settings, strict=True):
            values = value if isinstance(value, list) else [value] * views
            if len(values) != views:
                raise ValueError(f"{name}: got {len(values)} values, must be {views}, one per view")
            columns.append(values)
        sizes, numbers = [], []
        for size, interpolation, antialias, gray_first, taps, threshold in zip(
            *columns, strict=True
        ):
            size = checked_settings(size, interpolation, antialias, gray_first, taps, threshold)
            if taps is None:
                taps = 0 if semantics == "pil" else (min(size) // 10) | 1
            bicubic = INTERPOLATIONS.index(interpolation)
            antialias = antialias or semantics == "pil"  # as Pillow always does
            numbers += [bicubic, int(antialias), int(gray_first), taps, threshold]
            sizes.append(size)
        return cls(tuple(sizes), tuple(numbers), SEMANTICS.index(semantics))


def normalization(mean, std, channels: int, dtype: torch.dtype) -> tuple[list, list]:
    """Mean and standard deviation, one number per channel; raises where they are no use."""
    if dtype not in _DTYPES:
        raise TypeError(f"dtype: got {dtype}, must be float32, bfloat16, float16 or uint8")
    if dtype == torch.uint8:
        for name, value, usual in (("mean", mean, IMAGENET_MEAN), ("std", std, IMAGENET_STD)):
            if value is not None and value not in (usual, list(usual)):
                raise ValueError(f"{name}: got {value}, but dtype uint8 is not normalised")
        return [0.0] * channels, [1.0] * channels
    found = []
    for name, value, neutral in (("mean", mean, 0.0), ("std", std, 1.0)):
        value = [neutral] * channels if value is None else value
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{name}: got {value!r}, must be None or {channels} numbers")
        if len(value) != channels:
            raise ValueError(
                f"{name}: got {len(value)} numbers, must be {channels}, one per channel"
            )
        value = [float(x) for x in value]
        if not all(map(math.isfinite, value)) or (name == "std" and min(value) <= 0):
            above = " and above 0" if name == "std" else ""
            raise ValueError(f"{name}: got {value}, must be finite{above}")
        found.append(value)
    return found[0], found[1]


def outputs(
    out, sizes, batch: int, channels: int, dtype: torch.dtype, memory_format, like: Tensor
) -> list[Tensor]:
    """Tensors for the views: new ones, or `out` where it is given and fits."""
    if memory_format not in _FORMATS:
        raise ValueError(
            f"memory_format: got {memory_format}, must be contiguous_format or channels_last"
        )
    shapes = [(batch, channels, *size) for size in sizes]
    if out is None:
        new = {"dtype": dtype, "device": like.device, "memory_format": memory_format}
        return [torch.empty(shape, **new) for shape in shapes]
    if not isinstance(out, (tuple, list)) or not all(isinstance(x, Tensor) for x in out):
        raise TypeError(f"out: got {type(out).__name__}, must be a list of tensors, one per view")
    if len(out) != len(sizes):
        raise ValueError(f"out: got {len(out)} tensors, must be {len(sizes)}, one per view")
    # Tensors that a compiler traces have no address.
    memory = () if torch.compiler.is_compiling() else (*out, like)
    ranges = [range(x.data_ptr(), x.data_ptr() + x.nbytes) for x in memory]
    for v, (view, shape) in enumerate(zip(out, shapes, strict=True)):
        if view.dtype != dtype:
            raise TypeError(f"out[{v}]: got dtype {view.dtype}, must be {dtype}")
        if view.shape != shape:
            raise ValueError(f"out[{v}]: got shape {tuple(view.shape)}, must be {shape}")
        if view.device != like.device:
            raise ValueError(f"out[{v}]: got device {view.device}, must be {like.device}")
        if view.requires_grad:
            raise ValueError(f"out[{v}]: requires a gradient, which there is none")
        if not any(view.is_contiguous(memory_format=format) for format in _FORMATS):
            raise ValueError(f"out[{v}]: got strides {view.stride()}, must be contiguous")
        after = ranges[v + 1 :]
        if any(ranges[v].start < x.stop and x.start < ranges[v].stop for x in after):
            raise ValueError(f"out[{v}]: shares memory with another view or with the images")
    return list(out)

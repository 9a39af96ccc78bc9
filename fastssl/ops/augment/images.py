"""Batches of images in the forms the operator takes: one tensor, or packed images of any sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHANNELS = (1, 3)


@dataclass(frozen=True)
class PackedImages:
    """Images of different sizes in one tensor, one after the other; made by `pack`.

    data: uint8 or float32, 1-D; each image planar, [channels, height, width].
    shapes: int64 [B, 3], (offset in data, height, width) of each image.
    channels: 1 or 3.
    """

    data: Tensor
    shapes: Tensor
    channels: int

    def __len__(self) -> int:
        return self.shapes.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        """One image, [channels, height, width]; shares memory."""
        offset, height, width = self.shapes[index].tolist()
        size = self.channels * height * width
        return self.data[offset : offset + size].view(self.channels, height, width)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.data.device

    def to(self, device, non_blocking: bool = False) -> "PackedImages":
        """The same images on another device."""
        moved = (x.to(device, non_blocking=non_blocking) for x in (self.data, self.shapes))
        return PackedImages(*moved, self.channels)

    def pin_memory(self) -> "PackedImages":
        """In page-locked memory, as a DataLoader with pin_memory=True asks for."""
        return PackedImages(self.data.pin_memory(), self.shapes.pin_memory(), self.channels)


def pack(images: Sequence) -> PackedImages:
    """Images of different sizes as one batch; usable as a DataLoader's `collate_fn`.

    Args:
        images: tensors or arrays, each [C, H, W], [H, W, C] or [H, W] with C = 1 or 3 (where both
            readings are possible, [C, H, W]), or Pillow images of mode RGB or L; all uint8, or all
            floating-point in [0, 1]. All with the same C and on one device.

    Raises:
        TypeError: an image has the wrong type or dtype.
        ValueError: there is no image, or one has the wrong shape or device.
    """
    if not isinstance(images, Sequence) or isinstance(images, str):
        raise TypeError(f"images: got {type(images).__name__}, must be a list of images")
    if not images:
        raise ValueError("images: got an empty list")
    planes = [_planes(image, f"images[{i}]") for i, image in enumerate(images)]
    first = planes[0]
    for i, image in enumerate(planes):
        for what in ("dtype", "device"):
            if getattr(image, what) != getattr(first, what):
                error = TypeError if what == "dtype" else ValueError
                got, wanted = getattr(image, what), getattr(first, what)
                raise error(f"images[{i}]: got {what} {got}, must be that of images[0], {wanted}")
        if image.shape[0] != first.shape[0]:
            raise ValueError(
                f"images[{i}]: got {image.shape[0]} channels, must be as many as images[0] has, "
                f"{first.shape[0]}"
            )
    rows, offset = [], 0
    for image in planes:
        rows.append((offset, *image.shape[1:]))
        offset += image.numel()
    shapes = torch.tensor(rows, dtype=torch.int64).to(first.device)
    return PackedImages(torch.cat([x.reshape(-1) for x in planes]), shapes, first.shape[0])


def _planes(image, name: str) -> Tensor:
    """[C, H, W], uint8 or float32."""
    pillow = type(image).__module__.partition(".")[0] == "PIL"
    if pillow and image.mode not in ("RGB", "L"):
        raise TypeError(f"{name}: got mode {image.mode}, must be RGB or L: image.convert('RGB')")
    if not isinstance(image, Tensor):
        import numpy as np

        array = np.array(image)  # a copy: Pillow's memory cannot be written to
        if array.dtype == object:
            raise TypeError(f"{name}: got {type(image).__name__}, must be a tensor, array or image")
        image = torch.from_numpy(array)
    image = image.unsqueeze(0) if image.dim() == 2 else image
    if image.dim() != 3:
        raise ValueError(f"{name}: got shape {tuple(image.shape)}, must be [C, H, W] or [H, W, C]")
    if (pillow and image.shape[0] != 1) or _channels_last(image, 0):
        image = image.movedim(-1, 0)
    return _checked(image, name)


def _channels_last(x: Tensor, dim: int) -> bool:
    return x.shape[dim] not in CHANNELS and x.shape[-1] in CHANNELS


def _checked(x: Tensor, name: str) -> Tensor:
    """[..., C, H, W] with a dtype, channels and sides that can be used; float32 where floating."""
    if x.layout != torch.strided:
        raise TypeError(f"{name}: got layout {x.layout}, must be a dense tensor")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(f"{name}: got dtype {x.dtype}, must be uint8 or floating-point in [0, 1]")
    if x.shape[-3] not in CHANNELS:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, must have 1 or 3 channels")
    if x.shape[-2] < 1 or x.shape[-1] < 1:
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, height and width must be at least 1")
    return x.detach() if x.dtype == torch.uint8 else x.detach().float()


@dataclass(frozen=True)
class Batch:
    """What the raw operators take: images [B, C, H, W] of any strides, or packed with shapes."""

    images: Tensor
    shapes: Tensor | None
    size: int
    channels: int
    height: int = 0
    width: int = 0

    def sides(self) -> tuple[Tensor | int, Tensor | int]:
        """Heights and widths, int64 [B] where images differ."""
        if self.shapes is None:
            return self.height, self.width
        return self.shapes[:, 1], self.shapes[:, 2]


def _check_packed(x: PackedImages) -> None:
    """What `pack` makes passes; this is for those made by hand."""
    if x.data.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"x.data: got dtype {x.data.dtype}, must be uint8 or float32")
    if x.data.dim() != 1 or not x.data.is_contiguous():
        raise ValueError(f"x.data: got shape {tuple(x.data.shape)}, must be 1-D and contiguous")
    if x.shapes.dtype != torch.int64:
        raise TypeError(f"x.shapes: got dtype {x.shapes.dtype}, must be int64")
    if x.shapes.dim() != 2 or x.shapes.shape[1] != 3 or not len(x.shapes):
        raise ValueError(f"x.shapes: got shape {tuple(x.shapes.shape)}, must be [B, 3], B >= 1")
    if not x.shapes.is_contiguous() or x.shapes.device != x.data.device:
        raise ValueError("x.shapes: must be contiguous, and where x.data is")
    if x.channels not in CHANNELS:
        raise ValueError(f"x.channels: got {x.channels}, must be 1 or 3")


def batch(x) -> Batch:
    """Images as the raw operators take them, from all that the public functions accept."""
    if isinstance(x, (list, tuple)):
        x = pack(x)
    if isinstance(x, PackedImages):
        _check_packed(x)
        return Batch(x.data, x.shapes, len(x), x.channels)
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, must be a tensor, PackedImages or a list")
    if x.dim() != 4:
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, must be [B, C, H, W], [B, H, W, C] or a list of images"
        )
    if x.shape[0] == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, B must be at least 1")
    x = _checked(x.movedim(-1, 1) if _channels_last(x, 1) else x, "x")
    return Batch(x, None, *x.shape)

"""Images as sequences of patches, in any number of dimensions; plain PyTorch, differentiable."""

import math
import operator
from collections.abc import Sequence

from torch import Tensor

ORDERS = ("pqc", "cpq")  # passed to raw operators as their index


def patchify(images: Tensor, patch_size: int | Sequence[int], order: str = "pqc") -> Tensor:
    """Cuts images into patches, in raster order.

    Args:
        images: [B, C, *space] of any dtype and strides: sequences [B, C, L], images [B, C, H, W] or
            clips [B, C, T, H, W].
        patch_size: one number for every axis of space, or one for each; a patch of a clip is a
            tubelet (frames, height, width).
        order: of the numbers in a patch. "pqc": rows, columns, and channels fastest, as MAE's
            decoder predicts them (He et al. 2022); "cpq": channels slowest, as the weights of a
            convolution that embeds patches are laid out.

    Returns:
        [B, L, P] with P = C times the patch's area.

    Raises:
        TypeError: `images` is no tensor.
        ValueError: `patch_size` does not divide the images, or `order` is unknown.
    """
    patch = checked_patch(images, patch_size)
    channels_last = checked_order(order) == "pqc"
    grid = grid_of(images, patch)
    x = images.reshape(
        *images.shape[:2], *(n for pair in zip(grid, patch, strict=True) for n in pair)
    )
    outer, inner = range(2, x.dim(), 2), range(3, x.dim(), 2)
    x = x.permute(0, *outer, *((*inner, 1) if channels_last else (1, *inner)))
    return x.reshape(images.shape[0], math.prod(grid), images.shape[1] * math.prod(patch))


def unpatchify(
    patches: Tensor,
    patch_size: int | Sequence[int],
    grid: int | Sequence[int] | None = None,
    order: str = "pqc",
) -> Tensor:
    """The exact inverse of `patchify`.

    Args:
        patches: [B, L, P].
        patch_size: as `patchify` takes it; one number for as many axes as `grid` has.
        grid: patches along each axis; None for a square of two axes.
        order: of the numbers in a patch.

    Returns:
        [B, C, *space].

    Raises:
        TypeError: `patches` is no tensor.
        ValueError: the grid does not have L patches, P is no multiple of the patch's area, or
            `order` is unknown.
    """
    if not isinstance(patches, Tensor):
        raise TypeError(f"patches: got {type(patches).__name__}, must be a tensor")
    if patches.dim() != 3:
        raise ValueError(f"patches: got shape {tuple(patches.shape)}, must be [B, L, P]")
    batch, length, width = patches.shape
    if grid is None:
        grid = (math.isqrt(length),) * 2
    grid = sizes("grid", grid, len(grid) if isinstance(grid, Sequence) else 1)
    if math.prod(grid) != length:
        raise ValueError(f"grid: got {grid}, must have as many patches as patches has, {length}")
    patch = sizes("patch_size", patch_size, len(grid))
    if width % math.prod(patch):
        raise ValueError(f"patches: got width {width}, must be a multiple of {math.prod(patch)}")
    channels_last = checked_order(order) == "pqc"
    channels, axes = width // math.prod(patch), len(grid)
    x = patches.reshape(
        batch, *grid, *((*patch, channels) if channels_last else (channels, *patch))
    )
    at = axes + 1 if channels_last else axes + 2  # the patch's first axis
    pairs = [axis for n in range(axes) for axis in (1 + n, at + n)]
    x = x.permute(0, -1 if channels_last else axes + 1, *pairs)
    return x.reshape(batch, channels, *(n * p for n, p in zip(grid, patch, strict=True)))


def sizes(name: str, value, axes: int) -> tuple[int, ...]:
    """One positive integer for each axis."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes:
        raise ValueError(f"{name}: got {value}, must be one number or {axes}")
    try:
        values = tuple(operator.index(number) for number in values)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, must be whole numbers") from None
    if min(values) < 1:
        raise ValueError(f"{name}: got {value}, must be at least 1")
    return values


def checked_patch(images, patch_size) -> tuple[int, ...]:
    """The patch's size along each axis of the images; raises where it does not divide them."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images: got {type(images).__name__}, must be a tensor")
    if images.dim() not in (3, 4, 5):
        raise ValueError(
            f"images: got shape {tuple(images.shape)}, must be [B, C, L], [B, C, H, W] or "
            f"[B, C, T, H, W]"
        )
    patch = sizes("patch_size", patch_size, images.dim() - 2)
    if any(n % p or n == 0 for n, p in zip(images.shape[2:], patch, strict=True)):
        raise ValueError(f"patch_size: got {patch_size}, must divide {tuple(images.shape[2:])}")
    return patch


def checked_order(order: str) -> str:
    """The order itself; raises ValueError where it is not one."""
    if order not in ORDERS:
        raise ValueError(f"order: got {order!r}, must be one of {', '.join(ORDERS)}")
    return order


def grid_of(images: Tensor, patch: tuple[int, ...]) -> tuple[int, ...]:
    """Patches along each axis."""
    return tuple(n // p for n, p in zip(images.shape[2:], patch, strict=True))

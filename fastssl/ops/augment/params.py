"""The parameters of all views: drawn, returned, edited, replayed."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

GEOMETRY = ("top", "left", "height", "width")
GATES = ("flip", "jitter", "gray", "blur", "solarize")
FACTORS = ("brightness", "contrast", "saturation", "hue", "sigma")
_DTYPES = {
    **dict.fromkeys(GEOMETRY, torch.int32),
    **dict.fromkeys(GATES, torch.bool),
    "order": torch.int8,
    **dict.fromkeys(FACTORS, torch.float32),
}


@dataclass
class AugmentParams:
    """What was, or is to be, done to each image for each view; all [views, B] but `order`.

    top, left, height, width: the crop, in pixels of the image; int32.
    flip, jitter, gray, blur, solarize: whether the stage is applied; bool.
    order: of the jitter, [views, B, 4], int8: 0 brightness, 1 contrast, 2 saturation, 3 hue, in the
        order applied.
    brightness, contrast, saturation, hue: the jitter's factors, drawn whether or not it is
        applied; float32.
    sigma: the blur's, in pixels of the view; float32.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    gray: Tensor
    blur: Tensor
    solarize: Tensor
    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    sigma: Tensor

    @classmethod
    def unpack(
        cls, geometry: Tensor, gates: Tensor, order: Tensor, factors: Tensor
    ) -> "AugmentParams":
        """From the raw operators' [4, V, B], [5, V, B], [V, B, 4], [5, V, B]; shares memory."""
        return cls(*geometry.unbind(), *gates.unbind(), order, *factors.unbind())

    def packed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As the raw operators take them: geometry, gates, order, factors."""
        geometry, gates, factors = (
            torch.stack([getattr(self, name) for name in names])
            for names in (GEOMETRY, GATES, FACTORS)
        )
        return geometry, gates, self.order.contiguous(), factors

    @property
    def views(self) -> int:
        """How many views of each image."""
        return self.top.shape[0]

    def __len__(self) -> int:
        """How many images, B."""
        return self.top.shape[1]

    def __getitem__(self, index) -> "AugmentParams":
        """The parameters of some images: `params[2:5]`, or with a tensor of indices."""
        if isinstance(index, int):
            index = [index]
        return self._map(lambda x: x[:, index])

    def boxes(self) -> Tensor:
        """Crops as (x0, y0, x1, y1) in pixels of the image; int32 [views, B, 4]."""
        right, bottom = self.left + self.width, self.top + self.height
        return torch.stack([self.left, self.top, right, bottom], -1)

    def to(self, device, non_blocking: bool = False) -> "AugmentParams":
        """The same parameters on another device."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def _map(self, change) -> "AugmentParams":
        return replace(self, **{f.name: change(getattr(self, f.name)) for f in fields(self)})

    def check(self, views: int, size: int, sides: tuple, device: torch.device) -> None:
        """Raise where `views` views of `size` images with these heights and widths cannot be made.

        Values are looked at on the CPU only: on a GPU that would wait for the device.

        Raises:
            TypeError: a field is no tensor or has the wrong dtype.
            ValueError: a field has the wrong shape or device, or a value that is not allowed.
        """
        for field in fields(self):
            name, x = f"params.{field.name}", getattr(self, field.name)
            if not isinstance(x, Tensor):
                raise TypeError(f"{name}: got {type(x).__name__}, must be a tensor")
            wanted = (views, size, 4) if field.name == "order" else (views, size)
            if x.shape != wanted:
                raise ValueError(
                    f"{name}: got shape {tuple(x.shape)}, must be {wanted}, [views, B"
                    f"{', 4' if field.name == 'order' else ''}]"
                )
            if x.dtype != _DTYPES[field.name]:
                raise TypeError(f"{name}: got dtype {x.dtype}, must be {_DTYPES[field.name]}")
            if x.device != device:
                raise ValueError(f"{name}: got device {x.device}, must be that of x, {device}")
        if device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_values(*sides)

    def _check_values(self, tall: Tensor | int, wide: Tensor | int) -> None:
        for start, length, side, what in (
            ("top", "height", tall, "height"),
            ("left", "width", wide, "width"),
        ):
            at, extent = getattr(self, start).long(), getattr(self, length).long()
            _must(extent >= 1, length, extent, "must be at least 1")
            _must(at >= 0, start, at, "must not be negative")
            inside = at + extent <= side
            _must(inside, start, at, f"{start} + {length} must be inside the image's {what}")
        for name in ("brightness", "contrast", "saturation"):
            x = getattr(self, name)
            _must((x >= 0) & x.isfinite(), name, x, "must be finite and not negative")
        _must(self.hue.abs() <= 0.5, "hue", self.hue, "must be in [-0.5, 0.5]")
        usable = ~self.blur | ((self.sigma > 0) & self.sigma.isfinite())
        _must(usable, "sigma", self.sigma, "must be finite and above 0 where blurred")
        permuted = self.order.sort(-1).values == torch.arange(4, dtype=torch.int8)
        if not permuted.all():
            bad = self.order[~permuted.all(-1)][0].tolist()
            raise ValueError(f"params.order: got {bad}, must be a permutation of 0, 1, 2, 3")


def _must(allowed: Tensor, name: str, x: Tensor, what: str) -> None:
    if not allowed.all():
        raise ValueError(f"params.{name}: got {x[~allowed][0].item()}, {what}")

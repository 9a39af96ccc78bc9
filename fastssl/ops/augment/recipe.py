"""What one view is: its size and the distribution of its parameters."""

import math
from dataclasses import dataclass, fields

INTERPOLATIONS = ("bilinear", "bicubic")  # passed as their index
_PROBABILITIES = ("flip", "jitter", "gray", "blur", "solarize")


@dataclass(frozen=True)
class Recipe:
    """The random crop, flip, jitter, gray, blur and solarization of one view.

    The stages and what their numbers mean are torchvision's: RandomResizedCrop,
    RandomHorizontalFlip, RandomApply([ColorJitter]), RandomGrayscale, RandomApply([GaussianBlur])
    and RandomSolarize, in this order.

    Args:
        size: of the view, one number or (height, width).
        scale: the crop's area as a part of the image's, drawn from [low, high].
        ratio: the crop's width / height, drawn log-uniformly from [low, high].
        interpolation: "bilinear" or "bicubic".
        antialias: whether a smaller view averages over the crop's pixels. Pillow always does.
        flip: the probability of a mirrored view.
        jitter: the probability of the colour jitter: four operations in random order.
        brightness: a strength v for factors from [max(0, 1 - v), 1 + v], or the range (low, high).
        contrast: the same.
        saturation: the same.
        hue: a strength v for shifts from [-v, v] of a turn, or the range (low, high).
        gray: the probability of a view without colour.
        gray_first: gray before the jitter, as MoCo v1 has it, not after it.
        blur: the probability of the Gaussian blur.
        sigma: of the blur, in pixels of the view, drawn from [low, high].
        blur_kernel: how many taps the blur has, an odd number; None for a tenth of the view's
            shorter side (made odd) or, with semantics="pil", Pillow's own blur.
        solarize: the probability of inverting all levels from the threshold on.
        solarize_threshold: a level, 0 to 255.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field has a value that is not allowed.
    """

    size: int | tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    antialias: bool = True
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float | tuple[float, float] = 0.0
    contrast: float | tuple[float, float] = 0.0
    saturation: float | tuple[float, float] = 0.0
    hue: float | tuple[float, float] = 0.0
    gray: float = 0.0
    gray_first: bool = False
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int | None = None
    solarize: float = 0.0
    solarize_threshold: int = 128

    def __post_init__(self):
        for name in _PROBABILITIES:
            checked_number(name, getattr(self, name), 0, 1)
        _checked_range("scale", self.scale, 0, 1, above=True)
        _checked_range("ratio", self.ratio, 0, math.inf, above=True)
        _checked_range("sigma", self.sigma, 1e-6, math.inf)  # float32 has no room far below
        for name in ("brightness", "contrast", "saturation", "hue"):
            self.range(name)
        # What belongs to the pixels is checked where `apply` gets it, too.
        checked_settings(
            self.size,
            self.interpolation,
            self.antialias,
            self.gray_first,
            self.blur_kernel,
            self.solarize_threshold,
        )

    def range(self, name: str) -> tuple[float, float]:
        """From where brightness, contrast or saturation factors, or hue shifts, are drawn."""
        value = getattr(self, name)
        least, most, neutral = (-0.5, 0.5, 0) if name == "hue" else (0, math.inf, 1)
        if isinstance(value, (tuple, list)):
            return _checked_range(name, value, least, most)
        value = checked_number(name, value, 0, 0.5 if name == "hue" else math.inf)
        return max(least, neutral - value), neutral + value

    def numbers(self) -> list[float]:
        """The draw's 21 numbers, in the order of the raw operator `augment_draw`."""
        jitter = [x for n in ("brightness", "contrast", "saturation", "hue") for x in self.range(n)]
        numbers = [*self.scale, *self.ratio, *map(math.log, self.ratio), self.flip, self.jitter]
        numbers += [*jitter, self.gray, self.blur, *self.sigma, self.solarize]
        return [float(x) for x in numbers]

    def __repr__(self) -> str:
        """Only what differs from the defaults."""
        shown = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return f"Recipe({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"


def checked_settings(size, interpolation, antialias, gray_first, blur_kernel, solarize_threshold):
    """(height, width), and the settings of the pixels themselves; raises where one is no use."""
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(_is_int(side) for side in pair):
        raise TypeError(f"size: got {size!r}, must be an integer or (height, width)")
    if min(pair) < 1:
        raise ValueError(f"size: got {size!r}, must be at least 1")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation: got {interpolation!r}, must be one of {INTERPOLATIONS}")
    for name, value in (("antialias", antialias), ("gray_first", gray_first)):
        if not isinstance(value, bool):
            raise TypeError(f"{name}: got {value!r}, must be True or False")
    if blur_kernel is not None:
        if not _is_int(blur_kernel):
            raise TypeError(f"blur_kernel: got {blur_kernel!r}, must be an odd integer or None")
        if blur_kernel < 1 or blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel: got {blur_kernel}, must be odd and positive")
        if blur_kernel // 2 >= min(pair):
            raise ValueError(
                f"blur_kernel: got {blur_kernel}, its half must be smaller than the view, {size}"
            )
    if not _is_int(solarize_threshold):
        raise TypeError(f"solarize_threshold: got {solarize_threshold!r}, must be an integer")
    if not 0 <= solarize_threshold <= 255:
        raise ValueError(f"solarize_threshold: got {solarize_threshold}, must be from 0 to 255")
    return tuple(pair)


def checked_number(name: str, value, least: float, most: float) -> float:
    """The number itself; raises where it is none or not in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {value!r}, must be a number")
    if not least <= value <= most or math.isinf(value):
        raise ValueError(f"{name}: got {value}, must be in [{least}, {most}]")
    return value


def _checked_range(name: str, value, least: float, most: float, above: bool = False):
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: got {value!r}, must be (low, high)")
    low, high = (checked_number(name, x, least, most) for x in value)
    if low > high:
        raise ValueError(f"{name}: got {value}, low must not be above high")
    if above and low == least:
        raise ValueError(f"{name}: got {value}, must be above {least}")
    return low, high


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

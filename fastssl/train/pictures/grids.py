"""Many small images in one figure."""

import textwrap
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Inches of a cell, and the share of it that an image leaves free.
CELL, GAP = 1.2, 0.08

#: Of pixels: small images are shown as they are, square by square.
FILTER = "nearest"

#: Images in a row of a method's own picture.
COLUMNS = 10

#: Letters of a caption that fit a cell.
LETTERS = 14


def grid(
    rows: dict[str, Tensor],
    title: str,
    *,
    frames: dict[str, list[str | None]] | None = None,
    captions: dict[str, list[str]] | None = None,
) -> "Figure":
    """A figure of images, a named row of them below the other.

    Args:
        rows: images [N, C, H, W] in [0, 1] by the name of their row, C 1 or 3; number and size may
            differ from row to row.
        title: of the figure.
        frames: for rows by name, the colour of each image's frame, or None.
        captions: for rows by name, a text below each image.
    """
    from matplotlib.figure import Figure

    columns = max(len(images) for images in rows.values())
    # As high as wide, and room below for a caption.
    height = 1.18 if captions else 1.0
    left = 0.2 + 0.09 * max(len(name) for name in rows)
    wide, high = CELL * columns, CELL * height * len(rows)
    inches = max(4.5, left + wide)
    lines = textwrap.wrap(title, int(11 * inches))
    top = 0.15 + 0.19 * len(lines)
    figure = Figure(figsize=(inches, high + top))
    figure.text(0.5, 1 - 0.08 / (high + top), "\n".join(lines), ha="center", va="top")
    # One pair of axes for all of them: a pair for each takes seconds to lay out.
    axis = figure.add_axes((left / inches, 0, wide / inches, high / (high + top)))
    for line, (name, images) in enumerate(rows.items()):
        for column, image in enumerate(images.detach().float().cpu()):
            extent = _place(image, column, line * height)
            pixels = image.clamp(0, 1).permute(1, 2, 0).squeeze(-1).numpy()
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, extent=extent, interpolation=FILTER)
            if frames and frames.get(name) and frames[name][column]:
                _frame(axis, extent, frames[name][column])
            if captions and name in captions:
                text = textwrap.shorten(captions[name][column], LETTERS, placeholder="…")
                axis.text(column, line * height + 0.49, text, ha="center", va="top", fontsize=7)
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(height * len(rows) - 0.5, -0.5), xticks=[])
    axis.set_yticks([height * line for line in range(len(rows))], [*rows])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def joined(tiles: Tensor) -> Tensor:
    """Images [N, C, H, W] in [0, 1] of tiles [N, T, C, h, w] in raster order, white lines between.

    In a square if they fill one, otherwise in a row.
    """
    count = tiles.shape[1]
    root = round(count**0.5)
    columns = root if root**2 == count else count
    gap = max(1, tiles.shape[-1] // 10)
    tiles = F.pad(tiles, (0, gap, 0, gap), value=1.0).unflatten(1, (-1, columns))
    # [N, rows, columns, C, h, w] to [N, C, rows, h, columns, w]
    whole = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return whole[..., :-gap, :-gap]


def _place(image: Tensor, column: float, line: float) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of an image in the middle of its cell, sides in proportion."""
    height, width = image.shape[-2:]
    half = (1 - GAP) / 2 / max(height, width)
    x, y = half * width, half * height
    return column - x, column + x, line + y, line - y


def _frame(axis, extent: tuple[float, float, float, float], colour: str) -> None:
    from matplotlib.patches import Rectangle

    left, right, bottom, top = extent
    shape = Rectangle((left, top), right - left, bottom - top)
    shape.set(fill=False, edgecolor=colour, linewidth=2.5)
    axis.add_patch(shape)

"""Colours that the colour-blind can tell apart, and figures of small panels."""

from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Okabe and Ito, "Color Universal Design", 2008, with grey for black; first those that differ most.
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#777777",
)  # fmt: skip

#: Ten classes: Tol's "muted" scheme ("Colour Schemes", 2021) with black for its grey.
CLASSES = (
    "#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE",
    "#882255", "#44AA99", "#999933", "#AA4499", "#000000",
)  # fmt: skip

#: What has no class.
NONE = "#BBBBBB"

#: The two encoders, everywhere; they differ in marker and line too.
ENCODERS = {
    "untrained": {"color": "#E69F00", "marker": "o", "linestyle": "--", "markersize": 4},
    "pretrained": {"color": "#0072B2", "marker": "s", "linestyle": "-", "markersize": 4},
}

#: Panels in a line of `panels`.
COLUMNS = 3


def panels(count: int, sharey: bool = False) -> tuple[Figure, Iterator[Axes]]:
    """A figure of `count` equal panels, with a light grid, and its axes in reading order.

    Args:
        count: at least 1.
        sharey: whether all show the same range of values.
    """
    columns = min(count, COLUMNS)
    lines = -(-count // columns)
    figure = Figure(figsize=(4 * columns, 3 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=sharey).flatten()
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, iter(axes[:count])

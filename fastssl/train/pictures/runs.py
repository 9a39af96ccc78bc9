"""Several runs in one figure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastssl.train.pictures.curves import draw_online
from fastssl.train.pictures.labels import AXIS
from fastssl.train.pictures.style import COLOURS, panels

if TYPE_CHECKING:
    from fastssl.train.compare import Compared, Comparison

#: Tell runs apart where there are more than colours, and where colours do not count.
_LINES = ("-", "--", ":", "-.")


def side_by_side(comparison: "Comparison") -> Figure:
    """Losses and online accuracies by epoch, and for each probe the accuracies as bars.

    A bar is a pretrained encoder's accuracy, with the deviation over draws of labels; the black
    line across it is that of the untrained encoder.
    """
    runs, probes = comparison.runs, {}
    for probe, labels in comparison.measurements:
        probes.setdefault(probe, []).append(labels)
    online = [[line for line in run.metrics if "knn" in line] for run in runs]
    figure, axes = panels(1 + any(online) + len(probes))
    styles = [
        {"color": COLOURS[i % len(COLOURS)], "linestyle": _LINES[i // len(COLOURS) % len(_LINES)]}
        for i in range(len(runs))
    ]
    axis = next(axes)
    for run, style in zip(runs, styles, strict=True):
        epochs = [line["epoch"] for line in run.epochs]
        losses = [line["loss"] for line in run.epochs]
        axis.plot(epochs, losses, marker=".", label=run.name, **style)
    several = len({run.keywords["method"] for run in runs}) > 1
    axis.set(title="loss (of different kinds)" if several else "loss", xlabel="epoch")
    axis.xaxis.get_major_locator().set_params(integer=True)
    handles, names = axis.get_legend_handles_labels()
    if any(online):
        axis = next(axes)
        for lines, style in zip(online, styles, strict=True):
            draw_online(axis, lines, "knn", **style)
    for probe, labels in probes.items():
        mark = _bars(next(axes), runs, probe, labels)
        handles, names = [*handles[: len(runs)], mark], [*names[: len(runs)], "untrained encoder"]
    # As many names in a line as are sure to fit.
    inches = 0.09 * max(map(len, names)) + 0.7
    columns = min(len(names), max(1, int(figure.get_figwidth() / inches)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _bars(axis: Axes, runs: Sequence["Compared"], probe: str, labels: list[str]):
    """Draws a group of bars for each number of labels; returns the mark of untrained encoders."""
    width = 0.8 / max(3, len(runs))
    for number, run in enumerate(runs):
        places = [i + width * (number - (len(runs) - 1) / 2) for i in range(len(labels))]
        known = [
            (x, run.score(probe, label, "untrained"), run.score(probe, label, "pretrained"))
            for x, label in zip(places, labels, strict=True)
            if run.score(probe, label, "pretrained")
        ]
        axis.bar(
            [x for x, _, _ in known],
            [100 * after.mean for _, _, after in known],
            0.9 * width,
            yerr=[100 * after.deviation for _, _, after in known],
            capsize=3,
            color=COLOURS[number % len(COLOURS)],
            hatch=("", "//", "..", "xx")[number // len(COLOURS) % 4],
            zorder=2,
        )
        before = [100 * before.mean for _, before, _ in known]
        halves = 0.45 * width
        starts, ends = ([x + side * halves for x, _, _ in known] for side in (-1, 1))
        mark = axis.hlines(before, starts, ends, color="black", linewidth=2, zorder=3)
    axis.set_xticks(range(len(labels)), labels)
    axis.set(title=f"{probe}: accuracy, %", xlabel=AXIS, xlim=(-0.5, len(labels) - 0.5))
    return mark

"""Accuracies over the number of labels."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from fastssl.train.evaluation import Row
from fastssl.train.pictures.labels import AXIS, in_order
from fastssl.train.pictures.style import ENCODERS, panels


def accuracies(rows: Sequence[Row]) -> Figure | None:
    """A panel for each probe: accuracy on test samples, pretrained against untrained.

    Returns:
        A figure, or None without rows.
    """
    probes = list(dict.fromkeys(row.probe for row in rows))
    if not probes:
        return None
    figure, axes = panels(len(probes), sharey=True)
    for probe, axis in zip(probes, axes, strict=True):
        of_probe = {row.labels: row for row in rows if row.probe == probe}
        labels = in_order(of_probe)
        for title, style in ENCODERS.items():
            scores = [getattr(of_probe[label], title) for label in labels]
            axis.errorbar(
                range(len(labels)),
                [100 * score.mean for score in scores],
                [100 * score.deviation for score in scores],
                capsize=5,
                label=f"{title} encoder",
                **style,
            )
        axis.set_xticks(range(len(labels)), labels)
        axis.set(title=f"{probe}: accuracy, %", xlabel=AXIS)
        axis.margins(x=0.15)
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure

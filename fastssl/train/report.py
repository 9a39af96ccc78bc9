"""A run in one table and one picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from sklearn.manifold import TSNE

from fastssl.train.data import Data
from fastssl.train.evaluate import Features, Row, Score

#: Test images on the maps: t-SNE's time grows faster than their number.
POINTS = 1000


def table(rows: list[Row]) -> Table:
    """The test accuracies of `evaluate.compare`, in percent, and the gain in points."""
    made = Table(title="logistic regression on frozen features")
    for heading in ("labels per class", "untrained, %", "pretrained, %", "gain"):
        made.add_column(heading, justify="right")
    for row in rows:
        labels = "all" if row.labels is None else str(row.labels)
        scores = (_percent(row.untrained), _percent(row.pretrained))
        made.add_row(labels, *scores, f"{100 * row.gain:+.1f}")
    return made


def _percent(score: Score) -> str:
    deviation = f" ± {100 * score.deviation:.1f}" if score.deviation else ""
    return f"{100 * score.mean:.1f}{deviation}"


def picture(
    path: Path, metrics: list[dict], data: Data, maps: dict[str, Features], seed: int
) -> None:
    """Draws the loss of every step and a t-SNE map of test features for each encoder.

    Args:
        path: of the picture, PNG.
        metrics: the lines of metrics.jsonl.
        data: gives the classes that colour the maps, if it has any.
        maps: features by the title of their map.
        seed: of t-SNE (van der Maaten and Hinton 2008).
    """
    figure = Figure(figsize=(5 * (1 + len(maps)), 4.5), layout="constrained")
    axes = figure.subplots(1, 1 + len(maps))
    steps = [line for line in metrics if line["event"] == "step"]
    axes[0].plot([line["step"] for line in steps], [line["loss"] for line in steps], linewidth=1)
    axes[0].set(title="loss", xlabel="step")
    labels = data.test.labels[:POINTS].numpy()
    few = 1 < len(data.classes) <= 10  # as many as tab10 has colours
    colours = {"cmap": "tab10" if few else "turbo", "vmin": 0}
    colours["vmax"] = 9 if few else max(1, len(data.classes) - 1)
    for axis, (title, features) in zip(axes[1:], maps.items(), strict=True):
        places = _map(features.test[:POINTS], seed)
        points = axis.scatter(*places.T, c=labels, s=8, **colours)
        axis.set(title=f"{title}: t-SNE of test features", xticks=[], yticks=[])
    if few:
        handles, _ = points.legend_elements(num=np.unique(labels).tolist())
        names = [data.classes[label] for label in np.unique(labels)]
        figure.legend(handles, names, loc="outside right center", frameon=False)
    figure.savefig(path, format="png", dpi=110)


def _map(features: np.ndarray, seed: int) -> np.ndarray:
    if len(features) < 2:
        return np.zeros((len(features), 2))
    perplexity = min(30, (len(features) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)

"""Maps of features in the plane."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from fastssl.train.pictures.curves import draw_steps
from fastssl.train.pictures.style import CLASSES, NONE

#: Test samples on a map: t-SNE's time grows faster than their number.
POINTS = 1000


def some(count: int, most: int, seed: int = 0) -> torch.Tensor:
    """Ids of at most `most` of `count` samples, int64, ascending: all, or a random choice.

    The first would not do: in a folder they may be of one class.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def tsne(
    maps: dict[str, np.ndarray],
    labels: np.ndarray,
    classes: Sequence[str],
    seed: int,
    metrics: list[dict] | None = None,
) -> Figure:
    """A t-SNE map (van der Maaten and Hinton 2008) of the same samples for each encoder.

    Args:
        maps: features [N, D] by the title of their map.
        labels: classes of the N samples, int64; -1 for none.
        classes: their names; fewer than two colour nothing.
        seed: of t-SNE.
        metrics: the lines of metrics.jsonl; given, a panel before the maps shows the loss.
    """
    before = metrics is not None
    figure = Figure(figsize=(4.7 * (before + len(maps)) + 1, 4.5), layout="constrained")
    axes = figure.subplots(1, before + len(maps), squeeze=False)[0]
    if before:
        draw_steps(axes[0], [line for line in metrics if line["event"] == "step"], "loss")
    for axis, (title, features) in zip(axes[before:], maps.items(), strict=True):
        _scatter(axis, _places(features, seed), labels, classes)
        axis.set(title=f"{title}: t-SNE of {len(labels):,} test features", xticks=[], yticks=[])
    handles, names = axes[-1].get_legend_handles_labels()
    if handles:
        columns = 1 if len(names) <= 20 else 2
        figure.legend(
            handles, names, loc="outside right center", frameon=False, markerscale=2, ncols=columns
        )
    return figure


def _scatter(axis: Axes, places: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    known = labels >= 0 if len(classes) > 1 else np.zeros(len(labels), bool)
    axis.scatter(*places[~known].T, color=NONE, s=8)
    if len(classes) > len(CLASSES):
        axis.scatter(
            *places[known].T, c=labels[known], s=8, cmap="viridis", vmin=0, vmax=len(classes) - 1
        )
        return
    for label in np.unique(labels[known]):
        here = places[labels == label]
        axis.scatter(*here.T, color=CLASSES[label], s=8, label=classes[label])
        # The names on the map serve those who cannot tell ten colours apart.
        axis.annotate(
            classes[label][:12],
            np.median(here, axis=0),
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _places(features: np.ndarray, seed: int) -> np.ndarray:
    """Places in the plane, [N, 2]; all the same for an encoder that has collapsed."""
    scaled = StandardScaler().fit_transform(features)
    # Scaled numbers spread by 1 or, but for rounding, not at all: there t-SNE crashes the process.
    if scaled.std() < 1e-6:
        return np.zeros((len(features), 2))
    perplexity = min(30, (len(features) - 1) / 3)
    init = "pca" if features.shape[1] > 1 else "random"
    return TSNE(init=init, perplexity=perplexity, random_state=seed).fit_transform(scaled)

"""All pictures of a run, into its folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastssl.train.data import Data
from fastssl.train.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastssl.train.saved import Saved

#: What `draw` may draw besides the method's own pictures.
NAMES = ("curves", "accuracy", "tsne", "views", "neighbours")

#: Dots per inch of every picture.
DPI = 110

#: Training images among which neighbours are looked for: more is a long wait without a GPU.
AMONG = 5000


@torch.no_grad()
def draw(saved: "Saved", device: torch.device) -> list[Path]:
    """Draws all pictures that a run's data and method allow into its folder.

    curves.png where a step was logged, accuracy.png where the run was measured, tsne.png, for
    images views.png and neighbours.png, and what the method's own `Method.pictures` gives. A kill
    leaves a picture whole or as it was.

    Args:
        saved: the run; its model and untrained encoder are moved to `device`.
        device: where to compute features and views.

    Returns:
        The pictures, in the order in which they were drawn.

    Raises:
        UsageError: the folder cannot be written to, its results are damaged, or a feature is not
            finite.
    """
    from fastssl.train.evaluation.features import encode
    from fastssl.train.pictures.accuracy import accuracies
    from fastssl.train.pictures.curves import curves
    from fastssl.train.pictures.maps import POINTS, some, tsne
    from fastssl.train.pictures.samples import neighbours, views
    from fastssl.train.results import measured

    folder, data, seed = saved.folder, saved.data, saved.config.seed
    model, encoders = saved.model.to(device).eval(), (saved.untrained, saved.model.backbone)
    drawn = []

    def add(name: str, figure: "Figure | None") -> None:
        if figure is not None:
            drawn.append(save(folder.path / f"{name}.png", figure))

    add("curves", curves(folder.read_metrics()))
    add("accuracy", accuracies(measured(folder).rows))
    tests = some(len(data.test), POINTS, seed)
    before, after = (encode(encoder, data.test.inputs, device, tests) for encoder in encoders)
    maps = {"untrained": before.numpy(), "pretrained": after.numpy()}
    add("tsne", tsne(maps, data.test.labels[tests].numpy(), data.classes, seed))
    if data.kind != "texts":
        add("views", views(model, data, device, seed))
        among = some(len(data.train), AMONG, seed)
        keys = encode(model.backbone, data.train.inputs, device, among)
        add("neighbours", neighbours(data, (among, keys), (tests, after), seed))
    for name, figure in model.pictures(data, device).items():
        add(name, figure)
    return drawn


def report(
    path: Path, metrics: list[dict], data: Data, maps: dict[str, np.ndarray], seed: int
) -> None:
    """Draws the loss of every step and a t-SNE map of test features for each encoder.

    Args:
        path: of the picture, PNG.
        metrics: the lines of metrics.jsonl.
        data: gives the classes that colour the maps, if it has any.
        maps: features of all test samples, [N, D], by the title of their map.
        seed: of t-SNE, and of the choice where there are more samples than fit a map.
    """
    from fastssl.train.pictures.maps import POINTS, some, tsne

    tests = some(len(data.test), POINTS, seed).numpy()
    chosen = {title: features[tests] for title, features in maps.items()}
    save(path, tsne(chosen, data.test.labels.numpy()[tests], data.classes, seed, metrics))


def save(path: Path, figure: "Figure") -> Path:
    """Writes a figure as PNG, in one piece or not at all, and returns its path."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path

"""What a method sees, and what an encoder finds alike."""

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from fastssl.train.data import Data, Split
from fastssl.train.method import Method
from fastssl.train.pictures.grids import grid, joined
from fastssl.train.pictures.maps import some
from fastssl.train.views import MEAN, STD

#: Images in a picture, and neighbours of each.
SHOWN, NEAREST = 8, 5

#: Frames of neighbours of the same and of another class; green and red that differ in lightness.
SAME, OTHER = "#009E73", "#D55E00"


def views(method: Method, data: Data, device: torch.device, seed: int) -> Figure | None:
    """Training images and below them what the method makes of them in a first step.

    Args:
        method: on `device`.
        data: of images.
        device: where to augment.
        seed: chooses the images.

    Returns:
        A figure, or None where the method's views hold no images.
    """
    ids = some(len(data.train), SHOWN, seed)
    images = data.train.inputs[ids].to(device)
    made = method.views(images, ids.to(device), 0)
    # All images' first view, all their second: as `torch.cat` of views puts them.
    shown = [part for v in made if _is_images(v, images) for part in v.split(len(images))]
    if not shown:
        return None
    rows = {f"view {number}": _pixels(view) for number, view in enumerate(shown, 1)}
    title = f"{data.name}: training images and the views that {method.name} makes of them"
    return grid({"image": images.float() / 255} | rows, title)


def _is_images(view, images: Tensor) -> bool:
    return (
        isinstance(view, Tensor)
        and view.ndim in (4, 5)
        and len(view) % len(images) == 0
        and view.shape[-3] == images.shape[1]
        and (view.dtype == torch.uint8 or view.is_floating_point())
    )


def _pixels(view: Tensor) -> Tensor:
    """Images [N, C, H, W] in [0, 1] of a view of images or of tiles, [N, T, C, h, w]."""
    scaled = view.float() / 255 if view.dtype == torch.uint8 else view.float() * STD + MEAN
    return joined(scaled) if view.ndim == 5 else scaled


def neighbours(
    data: Data, keys: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], seed: int
) -> Figure:
    """Test images and below each the training images whose features are most alike, by cosine.

    Args:
        data: of images; its classes, if there are any, colour the frames.
        keys: ids of the training images to look among, int64 [M], and their features [M, D].
        queries: ids of the test images to choose from, int64 [N], and their features [N, D].
        seed: chooses the test images.
    """
    shown = some(len(queries[0]), SHOWN, seed)
    cosines = F.normalize(queries[1][shown]) @ F.normalize(keys[1]).T
    # One row for each rank.
    nearest = keys[0][cosines.topk(min(NEAREST, len(keys[0]))).indices].T
    rows, captions, frames = {}, {}, {}

    def add(name: str, split: Split, ids: Tensor) -> Tensor:
        rows[name] = split.inputs[ids].float() / 255
        captions[name] = _names(split.labels[ids], data.classes)
        return split.labels[ids]

    asked = add("test image", data.test, queries[0][shown])
    for rank, ids in enumerate(nearest, 1):
        found = add(f"nearest {rank}", data.train, ids)
        frames[f"nearest {rank}"] = [
            None if min(pair) < 0 else SAME if pair[0] == pair[1] else OTHER
            for pair in zip(asked.tolist(), found.tolist(), strict=True)
        ]
    title = f"the nearest of {len(keys[0]):,} training images by cosine of features"
    if len(data.classes) < 2:
        return grid(rows, title)
    title += "; green frames: the same class, red: another"
    return grid(rows, title, frames=frames, captions=captions)


def _names(labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    return [classes[label] if 0 <= label < len(classes) else "" for label in labels.tolist()]

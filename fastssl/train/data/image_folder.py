"""A folder of images of any size as a data set in memory."""

from pathlib import Path

import torch
from torch import Tensor

from fastssl.train import progress
from fastssl.train.data.kinds import Data, Split
from fastssl.train.errors import UsageError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}

#: Every fifth image of a class is for testing, where the folder does not say which are.
FIFTH = 5

#: Files named in the line about those that cannot be read.
NAMED = 3


def image_folder(path: Path, side: int) -> Data:
    """The images in a folder and everything below it, RGB, resized and cropped to squares.

    Classes are the folders directly in `path`, in the order of their names, if there are two or
    more with images and none lies beside them; otherwise the data has no classes. If `path` holds
    folders named train and test, or train and val, these are the splits, each with its classes;
    otherwise every fifth image of a class, in the order of paths, is for testing. Images of
    different classes take turns, so that the first few of a split are of all.

    Each image is turned as its camera says, its shorter side is brought to `side` (bicubic, with
    antialiasing), and the middle kept. Of 16-bit levels the upper 8 bits count. Files that cannot
    be read, or hold other numbers than levels, are left out and reported. A class without an image
    to train on is none; hidden files and folders are not looked at.

    Args:
        path: of the folder.
        side: of the images.

    Raises:
        UsageError: no such folder, too few images, or splits of different classes.
    """
    if not path.is_dir():
        raise UsageError(f"data: {path} is not a folder")
    test = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    unread: list[str] = []
    if (path / "train").is_dir() and test:
        splits = [_by_class(folder) for folder in (path / "train", test)]
        if splits[0].keys() != splits[1].keys():
            raise UsageError(f"data: {path / 'train'} and {test} hold different classes")
        read = [{k: _read(files, side, unread) for k, files in s.items()} for s in splits]
    else:
        images = {k: _read(files, side, unread) for k, files in _by_class(path).items()}
        last = FIFTH - 1
        read = [
            {k: [x for i, x in enumerate(v) if i % FIFTH != last] for k, v in images.items()},
            {k: v[last::FIFTH] for k, v in images.items()},
        ]
    if unread:
        more = f" and {len(unread) - NAMED} more" if len(unread) > NAMED else ""
        names = ", ".join(unread[:NAMED])
        progress.note(f"data: left out {len(unread)} that cannot be read: {names}{more}")
    known = [kind for kind, images in read[0].items() if images]
    read = [{kind: split[kind] for kind in known} for split in read]
    counts = [sum(map(len, split.values())) for split in read]
    if not all(counts):
        raise UsageError(
            f"data: {path} has {counts[0]} images to train on and {counts[1]} to test on, there "
            f"must be some of each; of a class's images every {FIFTH}th is for testing"
        )
    classes = tuple(read[0])
    return Data(path.resolve().name, classes if len(classes) > 1 else (), *map(_split, read))


def _by_class(path: Path) -> dict[str, list[Path]]:
    files, found = [], {}
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        files.append(file)
        found.setdefault(parts[0] if len(parts) > 1 else "", []).append(file)
    if "" in found or len(found) < 2:
        return {"": files}
    return dict(sorted(found.items()))


def _read(files: list[Path], side: int, unread: list[str]) -> list[Tensor]:
    """Readable images, each uint8 [3, side, side]; the others' paths are added to `unread`."""
    import numpy as np
    from PIL import Image, ImageOps

    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                # JPEGs are decoded no larger than needed: at least twice the size.
                opened.draft("RGB", (2 * side, 2 * side))
                image = _levels(ImageOps.exif_transpose(opened)).convert("RGB")
            image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
        # A damaged file raises almost anything.
        except Exception as error:
            unread.append(f"{file} ({error or type(error).__name__})")
        else:
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return images


def _levels(image):
    """An image of 8-bit levels; Pillow itself would cut 16-bit levels off at 255."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"numbers of mode {image.mode}, not levels")
    return image


def _split(images: dict[str, list[Tensor]]) -> Split:
    turns = sorted(
        (place, kind) for kind, of in enumerate(images.values()) for place in range(len(of))
    )
    of = list(images.values())
    return Split(
        torch.stack([of[kind][place] for place, kind in turns]),
        torch.tensor([kind for _, kind in turns]),
    )

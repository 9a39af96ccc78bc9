"""A folder of images of any size as a data set, in memory where it fits."""

from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastssl.train.data.kinds import Data, Split
from fastssl.train.data.lazy import LazyImages
from fastssl.train.data.pixels import SUFFIXES, check_header, decode
from fastssl.train.data.splits import FIFTH, held_out, ranks
from fastssl.train.data.unread import note_left_out, reason
from fastssl.train.errors import UsageError

#: Bytes of decoded images up to which they are kept in memory.
LARGEST = 4 << 30

#: Headers read at a time: network file systems answer late, but many at once.
HEADERS = 16

#: Files handed to the threads at once.
CHUNK = 4096


def image_folder(path: Path, side: int) -> Data:
    """The images in a folder and everything below it, RGB, resized and cropped to squares.

    Classes are the folders directly in `path`, in the order of their names, if there are two or
    more with images and none lies beside them; otherwise the data has no classes. If `path` holds
    folders named train and test, or train and val, these are the splits, each with its classes;
    otherwise every fifth image of a class, in the order of paths, is for testing. Images of
    different classes take turns, so that the first few of a split are of all.

    Each image is brought to size as `fastssl.train.data.pixels.decode` says. Files that cannot be
    read, or hold other numbers than levels, are left out and reported. A class without an image
    to train on is none; hidden files and folders are not looked at.

    Images that need more than 4 GiB when decoded are read when they are needed, see
    `fastssl.train.data.lazy.LazyImages`: only their headers are read at once, and a file that turns
    out to be damaged later is replaced by the next of its class, and counted.

    Args:
        path: of the folder.
        side: of the images.

    Raises:
        UsageError: no such folder, too few images, or splits of different classes.
    """
    if not path.is_dir():
        raise UsageError(f"data: {path} is not a folder")
    test = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
    if (path / "train").is_dir() and test:
        found = [_by_class(folder) for folder in (path / "train", test)]
        if found[0].keys() != found[1].keys():
            raise UsageError(f"data: {path / 'train'} and {test} hold different classes")
    else:
        found = [_by_class(path)]
    files = [[(f, kind) for kind, of in enumerate(s.values()) for f in of] for s in found]
    lazily = sum(map(len, files)) * 3 * side**2 > LARGEST
    unread: list[str] = []
    read = [_readable(of, side, lazily, unread) for of in files]
    note_left_out(unread)
    if len(read) == 1:
        images, labels = read[0]
        for_test = held_out(labels)
        read = [_where(rows, images, labels) for rows in (~for_test, for_test)]
    known = read[0][1].unique()
    read = [_where(torch.isin(labels, known), images, labels) for images, labels in read]
    counts = [len(images) for images, _ in read]
    if not all(counts):
        raise UsageError(
            f"data: {path} has {counts[0]} images to train on and {counts[1]} to test on, there "
            f"must be some of each; of a class's images every {FIFTH}th is for testing"
        )
    names = list(found[0])
    classes = tuple(names[kind] for kind in known.tolist())
    splits = [_split(images, torch.searchsorted(known, labels), side) for images, labels in read]
    classes = classes if len(classes) > 1 else ()
    return Data(path.resolve().name, classes, *splits, left_out=len(unread))


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


def _readable(
    files: list[tuple[Path, int]], side: int, lazily: bool, unread: list[str]
) -> tuple[list[Tensor | tuple[str, int]], Tensor]:
    """Images of readable files and their labels; the others' paths are added to `unread`.

    An image is uint8 [3, side, side] or, to be read later, its path and length in bytes.
    """

    def read(path: Path) -> Tensor | tuple[str, int] | Exception:
        try:
            if not lazily:
                return decode(path, side)
            check_header(path)
            return str(path), path.stat().st_size
        # A damaged file raises almost anything.
        except Exception as error:
            return error

    images, labels = [], []
    with ThreadPoolExecutor(HEADERS if lazily else torch.get_num_threads()) as pool:
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            for (path, label), got in zip(
                chunk, pool.map(read, [f for f, _ in chunk]), strict=True
            ):
                if isinstance(got, Exception):
                    unread.append(f"{path} ({reason(got)})")
                else:
                    images.append(got)
                    labels.append(label)
    return images, torch.tensor(labels, dtype=torch.int64)


def _where(rows: Tensor, images: list, labels: Tensor) -> tuple[list, Tensor]:
    return list(compress(images, rows.tolist())), labels[rows]


def _split(images: list[Tensor | tuple[str, int]], labels: Tensor, side: int) -> Split:
    turns = (ranks(labels) * (labels.max() + 1) + labels).argsort()
    images, labels = [images[i] for i in turns.tolist()], labels[turns]
    if isinstance(images[0], Tensor):
        return Split(torch.stack(images), labels)
    paths, lengths = zip(*images, strict=True)
    parts = np.zeros((len(paths), 3), np.int64)
    parts[:, 0], parts[:, 2] = np.arange(len(paths)), lengths
    return Split(LazyImages(paths, side, parts, labels), labels)

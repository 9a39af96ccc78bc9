"""WebDataset's tar shards, read where a sample lies and when it is asked for."""

import itertools
import json
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from fastssl.train.data.kinds import Data, Split
from fastssl.train.data.lazy import LazyImages
from fastssl.train.data.pixels import SUFFIXES
from fastssl.train.data.splits import FIFTH, by_number, held_out
from fastssl.train.errors import UsageError

#: Shards indexed at a time: network file systems answer late, but many at once.
AT_ONCE = 8

#: Shards that a pattern may stand for.
MOST = 100_000

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def shards(pattern: str, side: int) -> Data:
    """Images in tar shards, as the library webdataset and its tools write them, RGB squares.

    A sample is the files of a shard that share a name up to its first dot, in the order of the
    shards: an image (.jpg, .png, .webp, ...), and as its label a whole number in a .cls file, or
    under the key "label" of a .json file; a sample without one, or with -1, has no label. Samples
    without an image are left out. Classes are called by their numbers.

    Only the places of the samples are read at first; images are read when they are needed, and
    brought to size as for a folder of images, see `fastssl.train.data.lazy.LazyImages`. One that
    then cannot be read is replaced by the next of its label, and counted.

    If the pattern holds the word train and the same pattern with test or val instead of it stands
    for any files, these are for testing; otherwise every fifth sample of a class is. A shard that
    is cut short or damaged is an error, since the rest of its samples would be missing in silence.

    Args:
        pattern: paths of uncompressed tar files; braces stand for ranges and choices as in a shell,
            `train-{000000..000012}.tar`, and stars for any characters.
        side: to which the images are brought.

    Raises:
        UsageError: there are no such files, one is not a whole tar file, a label is not a number,
            or there are too few samples.
    """
    paths = _find(pattern)
    splits = [_index(paths, side)]
    tests = _tests(pattern)
    if tests:
        splits.append(_index(tests, side))
    else:
        images, labels = splits[0]
        for_test = held_out(labels)
        splits = [(images.take(rows), labels[rows]) for rows in (~for_test, for_test)]
    counts = [len(images) for images, _ in splits]
    if not all(counts):
        raise UsageError(
            f"data: {pattern} has {counts[0]} images to train on and {counts[1]} to test on, there "
            f"must be some of each; without shards for it every {FIFTH}th is for testing"
        )
    classes, labels = by_number(*(labels for _, labels in splits))
    made = [Split(images, of) for (images, _), of in zip(splits, labels, strict=True)]
    return Data(Path(paths[0]).resolve().parent.name, classes, *made)


def expand(pattern: str) -> list[str]:
    """What braces stand for, in order: `{a,b}` for choices, `{08..12}` for padded numbers.

    Raises:
        UsageError: more than 100,000 paths.
    """
    parts, counts = [], 1
    # Texts and the insides of braces take turns.
    for i, part in enumerate(_BRACES.split(pattern)):
        parts.append(_choices(part) if i % 2 else [part])
        counts *= len(parts[-1])
        if counts > MOST:
            raise UsageError(f"data: {pattern} stands for more than {MOST:,} shards")
    return ["".join(choice) for choice in itertools.product(*parts)]


def _choices(inside: str) -> list[str] | range:
    numbers = _RANGE.fullmatch(inside)
    if not numbers:
        return inside.split(",") if "," in inside else ["{" + inside + "}"]
    first, last = numbers.groups()
    # As a shell: a zero alone pads nothing.
    padded = any(len(number) > 1 and number[0] == "0" for number in numbers.groups())
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    values = range(int(first), int(last) + step, step)
    if len(values) > MOST:
        return values
    return [str(value).zfill(width) for value in values]


def _find(pattern: str, missing_is_error: bool = True) -> list[str]:
    found: dict[str, None] = {}
    for path in expand(str(Path(pattern).expanduser())):
        literal = not has_magic(path) or Path(path).is_file()
        matches = [path] if literal else sorted(glob(path))
        if missing_is_error and not (matches and all(Path(m).is_file() for m in matches)):
            raise UsageError(f"data: {path} is missing, or not a file")
        found.update(dict.fromkeys(m for m in matches if Path(m).is_file()))
    return list(found)


def _tests(pattern: str) -> list[str]:
    """Shards for testing, named as those to train on with another word; empty if there are none."""
    before, train, after = pattern.rpartition("train")
    if not train:
        return []
    for word in ("test", "val"):
        # Folders and files may both say it, or the files alone.
        for other in (pattern.replace("train", word), before + word + after):
            if found := _find(other, missing_is_error=False):
                return found
    return []


@dataclass
class _Sample:
    """Where a sample's image lies, first byte and length, and its label where one was found."""

    image: tuple[int, int] | None = None
    label: int | None = None
    labelled_by: str = ""


def _index(paths: list[str], side: int) -> tuple[LazyImages, torch.Tensor]:
    parts, labels = [], []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number, (places, of) in enumerate(pool.map(_index_shard, paths)):
            parts.append(np.insert(places, 0, number, axis=1))
            labels.append(of)
    labels = torch.from_numpy(np.concatenate(labels))
    return LazyImages(paths, side, np.concatenate(parts), labels), labels


def _index_shard(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Places of a shard's images, int64 [n, 2], first byte and length, and labels, int64 [n]."""
    samples: dict[str, _Sample] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
            for member in shard:
                _add(samples, path, member, file)
            file.seek(shard.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError("no mark of its end")
    except tarfile.TarError as error:
        raise UsageError(
            f"data: {path} is not an uncompressed tar file, is cut short or damaged ({error})"
        ) from None
    except OSError as error:
        raise UsageError(f"data: {path} cannot be read ({error.strerror})") from None
    whole = [sample for sample in samples.values() if sample.image]
    places = np.array([sample.image for sample in whole], np.int64).reshape(-1, 2)
    labels = [-1 if sample.label is None else sample.label for sample in whole]
    return places, np.array(labels, np.int64)


def _add(samples: dict[str, _Sample], path: str, member: tarfile.TarInfo, file: BinaryIO) -> None:
    """Notes what a member says of its sample."""
    folder, _, name = member.name.rpartition("/")
    stem, _, kind = name.partition(".")
    kind = kind.lower()
    if not (member.isreg() and stem) or "__MACOSX" in folder:
        return
    sample = samples.setdefault(f"{folder}/{stem}", _Sample())
    if "." + kind in SUFFIXES:
        sample.image = sample.image or (member.offset_data, member.size)
    # What a .cls file says counts more.
    elif kind == "cls" or (kind == "json" and sample.labelled_by != "cls"):
        file.seek(member.offset_data)
        label = _label(kind, file.read(member.size), f"data: {path}: {member.name}")
        if label is not None:
            sample.label, sample.labelled_by = label, kind


def _label(kind: str, content: bytes, name: str) -> int | None:
    try:
        if kind == "cls":
            label = int(content)
        else:
            held = json.loads(content)
            label = held.get("label") if isinstance(held, dict) else None
    except ValueError as error:
        raise UsageError(f"{name} holds no label ({error})") from None
    if label is None:
        return None
    if type(label) is not int or not -1 <= label < 2**63:
        raise UsageError(f"{name} holds the label {label!r}, must be a whole number from -1")
    return label

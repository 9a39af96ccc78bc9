"""Images and labels in one numpy archive, as MedMNIST and Keras ship them."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastssl.train.data.kinds import Data, Split
from fastssl.train.data.splits import FIFTH, by_number, held_out
from fastssl.train.errors import UsageError

#: Names of the arrays of images and labels, to train on and to test on.
SPLITS = (
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("train_images", "train_labels"), ("val_images", "val_labels")),
    (("x_train", "y_train"), ("x_test", "y_test")),
)

#: Names of the arrays where the file does not say what is for testing.
WHOLE = (("images", "labels"), ("train_images", "train_labels"), ("x_train", "y_train"))


def npz(path: Path) -> Data:
    """Images in a numpy archive (.npz), 8-bit, grey or RGB, as large as they are.

    The arrays are called train_images, train_labels, test_images and test_labels as in MedMNIST,
    whose val_images serve for testing only where there are no test_images; or x_train, y_train,
    x_test and y_test as in Keras; or images and labels, of which every fifth of a class is for
    testing. Other arrays are not read, and nothing is unpickled.

    Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels; where both could
    be meant, channels are last. Labels are whole numbers [N], with any dimensions of 1 beside, or
    are left out; a negative one stands for none. Classes are called by their numbers.

    Raises:
        UsageError: the file is missing, damaged or no such archive, or its arrays are others.
    """
    arrays = _read(path)
    names = next((pair for pair in SPLITS if pair[0][0] in arrays and pair[1][0] in arrays), None)
    if names:
        splits = [(_images(path, arrays, *of), _labels(path, arrays, *of)) for of in names]
        shapes = [tuple(images.shape[1:]) for images, _ in splits]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"{path}: images to train on are {shapes[0]} (channels, height, width), those to "
                f"test on {shapes[1]}, must be the same"
            )
    else:
        of = next((of for of in WHOLE if of[0] in arrays), None)
        if of is None:
            held = ", ".join(arrays) or "nothing"
            raise UsageError(
                f"{path}: holds {held}; must hold train_images and test_images, x_train and "
                "x_test, or images"
            )
        images, labels = _images(path, arrays, *of), _labels(path, arrays, *of)
        for_test = held_out(labels)
        splits = [(images[rows], labels[rows]) for rows in (~for_test, for_test)]
    counts = [len(images) for images, _ in splits]
    if not all(counts):
        raise UsageError(
            f"{path}: has {counts[0]} images to train on and {counts[1]} to test on, there must be "
            f"some of each; where there are no names for them, every {FIFTH}th is for testing"
        )
    classes, labels = by_number(*(labels for _, labels in splits))
    made = [Split(images, of) for (images, _), of in zip(splits, labels, strict=True)]
    return Data(path.stem, classes, *made)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays that are known by name; for others None."""
    known = {name for pair in (*SPLITS, WHOLE) for of in pair for name in of}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] if name in known else None for name in names}
        for name, array in held.items():
            # Of what is no array numpy returns the bytes.
            if isinstance(array, bytes):
                raise ValueError(f"{name} is no array")
        return held
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path}: not a numpy archive (.npz), or damaged: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    # A damaged archive raises almost anything.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UsageError(f"{path}: not a numpy archive (.npz), or damaged: {reason}") from None


def _images(path: Path, arrays: dict[str, np.ndarray], name: str, _: str) -> Tensor:
    array, shape = arrays[name], list(arrays[name].shape)
    if array.dtype != np.uint8:
        raise UsageError(f"{path}: {name} has dtype {array.dtype}, must be uint8")
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise UsageError(
            f"{path}: {name} has shape {shape}, must be [N, H, W], [N, H, W, C] or "
            "[N, C, H, W] with 1 or 3 channels"
        )
    if 0 in shape[1:]:
        raise UsageError(f"{path}: {name} has shape {shape}, its images are empty")
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(path: Path, arrays: dict[str, np.ndarray], images: str, name: str) -> Tensor:
    count = len(arrays[images])
    if name not in arrays:
        return torch.full((count,), -1)
    array = arrays[name]
    if array.dtype.kind not in "bui":
        raise UsageError(f"{path}: {name} has dtype {array.dtype}, must be whole numbers")
    if array.size != count or max(array.shape, default=1) != count:
        raise UsageError(
            f"{path}: {name} has shape {list(array.shape)}, must be one number for each of the "
            f"{count} {images}"
        )
    return torch.from_numpy(array.reshape(-1).astype(np.int64))

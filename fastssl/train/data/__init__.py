"""Data sets by name, each in a file of its own: a fixed split of training and test samples."""

from pathlib import Path

from fastssl.train.data.kinds import Data, Split

__all__ = ["CHOICES", "Data", "Split", "load"]

#: What `load` takes, as told to users.
CHOICES = (
    "digits",
    "cifar10",
    "cifar100",
    "folder:PATH",
    "wds:PATTERN",
    "npz:PATH",
    "digits-captions",
    "captions:CSV",
    "pydoc",
    "text:PATH",
)

#: The kinds whose images may be of any size.
ANY_SIZE = ("folder", "wds", "captions")


def load(
    name: str, root: Path | None = None, limit: int | None = None, image_size: int = 32
) -> Data:
    """Loads a data set by its name.

    Args:
        name: one of `CHOICES`.
        root: folder that holds CIFAR's own folders; the others need none.
        limit: keep only the first samples of each split.
        image_size: side to which images of any size are brought.

    Raises:
        UsageError: files are missing or damaged.
    """
    kind, _, place = name.partition(":")
    return _LOADERS[kind](place, root, image_size).first(limit)


def _digits(place, root, image_size) -> Data:
    from fastssl.train.data.digits import digits

    return digits()


def _cifar10(place, root, image_size) -> Data:
    from fastssl.train.data.cifar import cifar10

    return cifar10(root)


def _cifar100(place, root, image_size) -> Data:
    from fastssl.train.data.cifar import cifar100

    return cifar100(root)


def _folder(place, root, image_size) -> Data:
    from fastssl.train.data.image_folder import image_folder

    return image_folder(Path(place), image_size)


def _shards(place, root, image_size) -> Data:
    from fastssl.train.data.shards import shards

    return shards(place, image_size)


def _npz(place, root, image_size) -> Data:
    from fastssl.train.data.npz import npz

    return npz(Path(place))


def _digits_captions(place, root, image_size) -> Data:
    from fastssl.train.data.captions import digits_captions

    return digits_captions()


def _captions(place, root, image_size) -> Data:
    from fastssl.train.data.captions import captions

    return captions(Path(place), image_size)


def _pydoc(place, root, image_size) -> Data:
    from fastssl.train.data.text import pydoc

    return pydoc()


def _text(place, root, image_size) -> Data:
    from fastssl.train.data.text import text

    return text(Path(place))


#: Imported only when they are asked for: each brings what it needs.
_LOADERS = {
    "digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "folder": _folder,
    "wds": _shards,
    "npz": _npz,
    "digits-captions": _digits_captions,
    "captions": _captions,
    "pydoc": _pydoc,
    "text": _text,
}

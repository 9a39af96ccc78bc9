"""CIFAR's canonical files, read without running any code that they might hold."""

import io
import math
import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastssl.train.data.kinds import Data, Split
from fastssl.train.errors import UsageError

CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR100_FOLDER = "cifar-100-python"


def cifar10(root: Path | None) -> Data:
    """CIFAR-10, 50,000 + 10,000 photographs of 32 x 32, from its canonical Python files.

    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The files are
    pickles, read without running any code they might hold.

    Raises:
        UsageError: no root, a missing file, or a file that is not a CIFAR-10 batch.
    """
    folder = _folder("cifar10", root, CIFAR10_FOLDER)
    classes = _read_names(folder / "batches.meta", b"label_names")
    batches = [_read_batch(folder / f"data_batch_{i}", b"labels", classes) for i in range(1, 6)]
    train = Split(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    return Data(
        "cifar10", classes, train, Split(*_read_batch(folder / "test_batch", b"labels", classes))
    )


def cifar100(root: Path | None) -> Data:
    """CIFAR-100, 50,000 + 10,000 photographs of 32 x 32 of 100 fine classes; read like CIFAR-10.

    Raises:
        UsageError: no root, a missing file, or a file that is not of CIFAR-100.
    """
    folder = _folder("cifar100", root, CIFAR100_FOLDER)
    classes = _read_names(folder / "meta", b"fine_label_names")
    splits = [
        Split(*_read_batch(folder / name, b"fine_labels", classes)) for name in ("train", "test")
    ]
    return Data("cifar100", classes, *splits)


def _folder(data: str, root: Path | None, name: str) -> Path:
    if root is None:
        raise UsageError(f"root: data={data!r} needs the folder that holds {name}")
    folder = Path(root) / name
    if not folder.is_dir():
        raise UsageError(f"root: {root} holds no folder {name}")
    return folder


def _read_names(path: Path, key: bytes) -> tuple[str, ...]:
    names = _read_pickle(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise UsageError(f"{path}: holds no list {key.decode()}")
    return tuple(name.decode(errors="replace") for name in names)


def _read_batch(path: Path, key: bytes, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    batch = _read_pickle(path)
    data, labels, name = batch.get(b"data"), batch.get(key), key.decode()
    if not isinstance(data, _Array) or len(data.shape) != 2 or data.shape[1] != 3072:
        raise UsageError(f"{path}: data must be a uint8 array of shape [N, 3072]")
    count = data.shape[0]
    if not isinstance(labels, list) or len(labels) != count:
        raise UsageError(f"{path}: {name} must be a list of {count} numbers, one for each image")
    if not all(type(label) is int and 0 <= label < len(classes) for label in labels):
        raise UsageError(f"{path}: {name} must be whole numbers from 0 to {len(classes) - 1}")
    images = torch.from_numpy(data.numpy()).view(count, 3, 32, 32)
    return images, torch.tensor(labels, dtype=torch.int64)


class _Array:
    """Stands in for numpy's array while a pickle is read: bytes and a shape, nothing that runs."""

    shape: tuple[int, ...] = ()

    def __setstate__(self, state):
        _, self.shape, dtype, fortran, self.content = state
        if not isinstance(dtype, _DType) or dtype.code not in ("u1", b"u1") or fortran:
            raise pickle.UnpicklingError("an array that is not uint8 in row-major order")
        if len(self.content) != math.prod(self.shape):
            raise pickle.UnpicklingError(f"{len(self.content)} bytes of an array {self.shape}")

    def numpy(self) -> np.ndarray:
        return np.frombuffer(self.content, np.uint8).reshape(self.shape).copy()


class _DType:
    """Stands in for numpy's dtype; a uint8's byte order and alignment do not matter."""

    def __init__(self, code, *_):
        self.code = code

    def __setstate__(self, state):
        pass


def _reconstruct(kind, *_) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("an array of a foreign class")
    return _Array()


def _encode(text: str, codec: str) -> bytes:
    # Python 3 writes bytes this way in old protocols.
    if codec != "latin1":
        raise pickle.UnpicklingError(f"bytes in {codec!r}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers, strings and stand-ins for arrays; knows no other name."""

    KNOWN = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module, name):
        try:
            return self.KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which is refused") from None


def _read_pickle(path: Path) -> dict:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # A damaged pickle raises almost anything.
    except Exception as error:
        raise UsageError(f"{path}: not a CIFAR file, or damaged: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: not a CIFAR file: holds {type(value).__name__}, not a dict")
    return value

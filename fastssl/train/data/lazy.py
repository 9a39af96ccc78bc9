"""Images that are read and decoded when they are asked for, for data sets larger than memory."""

import copy
import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from fastssl.train import progress
from fastssl.train.data.pixels import decode
from fastssl.train.data.unread import NAMED, reason
from fastssl.train.errors import UsageError

#: Archives that a process holds open.
OPEN = 64

#: Images in a row that may be unreadable before it is an error.
TRIES = 100


class LazyImages:
    """Stands for a tensor of images, uint8 [N, 3, side, side], that are read when indexed.

    An index is a number, a slice, or int64 ids [n] as a tensor, array or list. Each process opens
    its own files, so that the object may be sent to the workers of a `DataLoader`. A call decodes
    in as many threads as torch has, which is one in a worker.

    An image that cannot be read is replaced by the next of the same label that can, always by the
    same one, so that neither ids nor labels move. The first few are reported at once, and
    `unreadable` names all that were met, in whichever process.

    Args:
        paths: of image files or of archives.
        side: of the images, which are brought to it as `fastssl.train.data.pixels.decode` says.
        parts: int64 [N, 3], for each image the number of its path, its first byte in that file and
            its length in bytes. An image whose first byte is 0 is a file of its own.
        labels: int64 [N].

    Attributes:
        dtype: `torch.uint8`.
    """

    dtype = torch.uint8

    def __init__(self, paths: Sequence[str], side: int, parts: np.ndarray, labels: Tensor):
        self.paths, self.side, self.parts, self.labels = list(paths), side, parts, labels
        self._handles = _Handles()
        # Workers write where the first process reads.
        self._bad = torch.zeros(len(parts), dtype=torch.uint8).share_memory_()

    @property
    def shape(self) -> torch.Size:
        """(N, 3, side, side)."""
        return torch.Size((len(self.parts), 3, self.side, self.side))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index) -> Tensor:
        """Images, uint8 [n, 3, side, side], or [3, side, side] where the index is a number.

        Raises:
            IndexError: there is no such image.
            UsageError: an archive can no longer be read, or 100 images in a row are unreadable.
        """
        ids = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        if ids.ndim == 0:
            return self._read(int(ids)).contiguous()
        if not len(ids):
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        threads = min(torch.get_num_threads(), len(ids))
        if threads == 1:
            return torch.stack([self._read(i) for i in ids.tolist()])
        with ThreadPoolExecutor(threads) as pool:
            return torch.stack(list(pool.map(self._read, ids.tolist())))

    def take(self, index) -> "LazyImages":
        """Some of the images as an object of the same kind; the index is a slice or a tensor."""
        taken = copy.copy(self)
        taken.parts, taken.labels = self.parts[index], self.labels[index]
        # Kept shared where the index is a slice, which is a view.
        taken._bad = self._bad[index].share_memory_()
        return taken

    def first(self, count: int) -> "LazyImages":
        """The first `count` images."""
        return self.take(slice(count))

    def fingerprint(self) -> int:
        """A checksum of names, places and lengths; the images themselves are not read."""
        names = "\0".join(Path(self.paths[i]).name for i in np.unique(self.parts[:, 0]))
        return zlib.crc32(np.ascontiguousarray(self.parts).tobytes(), zlib.crc32(names.encode()))

    def unreadable(self) -> list[str]:
        """Names of the images that could not be read until now and were replaced."""
        return [self._name(i) for i in self._bad.nonzero()[:, 0].tolist()]

    def _read(self, i: int) -> Tensor:
        for other in islice(self._alike(i), TRIES):
            try:
                return decode(io.BytesIO(self._content(other)), self.side)
            except (UsageError, MemoryError):
                raise
            # A damaged file raises almost anything.
            except Exception as error:
                self._report(other, error)
        raise UsageError(f"data: {self._name(i)} and those that could replace it cannot be read")

    def _alike(self, i: int) -> Iterator[int]:
        """An image and then, in turn, the others of its label."""
        yield i
        alike = (self.labels == self.labels[i]).nonzero()[:, 0]
        yield from alike.roll(-int(torch.searchsorted(alike, i)))[1:].tolist()

    def _content(self, i: int) -> bytes:
        file, start, length = self.parts[i].tolist()
        path = self.paths[file]
        if not start:
            return Path(path).read_bytes()
        try:
            content = self._handles.open(path).read(start, length)
        except OSError as error:
            raise UsageError(f"data: {path} cannot be read ({error.strerror})") from None
        if len(content) < length:
            raise UsageError(f"data: {path} has become shorter since it was indexed")
        return content

    def _report(self, i: int, error: Exception) -> None:
        if self._bad[i]:
            return
        self._bad[i] = 1
        if self._bad.sum() <= NAMED:
            why = reason(error)
            progress.note(f"data: {self._name(i)} cannot be read and is replaced ({why})")

    def _name(self, i: int) -> str:
        file, start, _ = self.parts[i].tolist()
        path = self.paths[file]
        if not start:
            return path
        # The last block before a member's content is its header.
        try:
            header = self._handles.open(path).read(start - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        except (OSError, UsageError):
            return f"{path} at {start}"
        return f"{path}: {tarfile.TarInfo.frombuf(header, 'utf-8', 'replace').name}"


class _Handles:
    """Archives that this process has open, the last that were used; copies begin with none."""

    def __init__(self):
        self.lock, self.by_path = Lock(), {}

    def __reduce__(self):
        return _Handles, ()

    def open(self, path: str) -> "_Handle":
        with self.lock:
            handle = self.by_path.pop(path, None) or _Handle(path)
            self.by_path[path] = handle
            if len(self.by_path) > OPEN:
                # Closed when no other thread reads it any more.
                del self.by_path[next(iter(self.by_path))]
            return handle


class _Handle:
    """An open file that is read at any place, by threads and forked processes alike."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY)

    def read(self, start: int, length: int) -> bytes:
        """The bytes from `start` on; fewer than `length` only where the file ends."""
        content = bytearray()
        while len(content) < length:
            part = os.pread(self.number, length - len(content), start + len(content))
            if not part:
                break
            content += part
        return bytes(content)

    def __del__(self):
        # Not there if it could not be opened.
        if hasattr(self, "number"):
            os.close(self.number)

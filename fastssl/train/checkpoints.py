"""Checkpoints that a kill at any instant leaves whole, and whose damage is noticed.

A run keeps two, the last and the one before, and their SHA-256 sums in a file beside them. A new
one is written in full, its sum is added, the last becomes the previous, and only then does it take
the last's name: at each instant both names stand for whole files whose sums are on the list.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from fastssl.train.errors import UsageError
from fastssl.train.files import replacing, settle


class DirectIO(TorchCheckpointIO):
    """Writes where it is told; Fabric's own way writes elsewhere first, and moves the file."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        """Writes a checkpoint to `path`.

        Raises:
            OSError: the disk is full, or does not let us write.
        """
        with open(path, "wb") as file:
            torch.save(checkpoint, file)


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self.last = folder / "last.ckpt"
        self.previous = folder / "previous.ckpt"
        self.sums = folder / "checkpoints.sha256"

    @property
    def files(self) -> list[Path]:
        """All that a run writes here."""
        return [self.last, self.previous, self.sums]

    def begun(self) -> bool:
        """Whether there is any; a run that was killed very early has none."""
        return self.last.exists() or self.previous.exists()

    @contextmanager
    def replacing(self, *, enabled: bool = True) -> Iterator[Path]:
        """A path to write the next checkpoint to; see `replacing`."""
        temporary = self.last.with_name(self.last.name + ".part")
        try:
            yield temporary
            if enabled:
                settle(temporary)
                self._keep(temporary)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UsageError(
                f"out: cannot write {self.last}: {error.strerror or error}; "
                f"the checkpoint before it is whole"
            ) from error

    def _keep(self, temporary: Path) -> None:
        known, new = self._known(), _sum(temporary)
        # Nothing is forgotten before the files are in place: any of these may be there until then.
        self._write_sums([new, *known])
        if self.last.exists():
            link = self.previous.with_name(self.previous.name + ".part")
            link.unlink(missing_ok=True)
            try:
                os.link(self.last, link)
            # Not every file system has links.
            except OSError:
                shutil.copyfile(self.last, link)
            os.replace(link, self.previous)
        before = _sum(self.last) if self.last.exists() else None
        os.replace(temporary, self.last)
        self._write_sums([new, before])

    def _write_sums(self, sums: list[str | None]) -> None:
        """The last checkpoint's first, then any that the previous may have."""
        names = [self.last.name, *[self.previous.name] * (len(sums) - 1)]
        lines = [f"{value}  {name}\n" for value, name in zip(sums, names, strict=True) if value]
        with replacing(self.sums) as path:
            path.write_text("".join(lines))

    def _known(self) -> list[str]:
        if not self.sums.is_file():
            return []
        return [
            line.partition(" ")[0] for line in self.sums.read_text(errors="replace").splitlines()
        ]

    def verify(self) -> None:
        """Reads the last checkpoint and compares its sum.

        Raises:
            UsageError: it is not the file that the run wrote; the message says what it is.
        """
        if self._is_whole(self.last):
            return
        hint = ""
        if self._is_whole(self.previous):
            hint = f"; {self.previous.name} beside it is whole: copy it over {self.last.name}"
        raise UsageError(f"resume: {self.last} {_what(self.last)}{hint}")

    def _is_whole(self, path: Path) -> bool:
        return path.is_file() and _sum(path) in self._known()


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _what(path: Path) -> str:
    """What a file is that is not a checkpoint of the run, for a sentence."""
    if not path.is_file():
        return "does not exist"
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        return "is empty"
    if not start.startswith(b"PK"):
        return f"is no checkpoint: it begins with {start!r}"
    if not zipfile.is_zipfile(path):
        return f"is cut short, {path.stat().st_size:,} bytes are left"
    return "is not the checkpoint that this run wrote: its SHA-256 is not in checkpoints.sha256"

"""Files that are whole or not there, whatever happens while they are written."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastssl.train.errors import UsageError


@contextmanager
def replacing(path: Path, *, enabled: bool = True) -> Iterator[Path]:
    """A path to write to; `path` gets the whole of it or, after a kill, keeps what it had.

    Processes that only take part in the writing pass `enabled=False`.

    Raises:
        UsageError: the disk is full, or does not let us write.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        yield temporary
        if enabled:
            settle(temporary)
            os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"out: cannot write {path}: {error.strerror or error}") from error
    except Exception:
        temporary.unlink(missing_ok=True)
        raise


def settle(path: Path) -> None:
    """Waits until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def save(path: Path, value) -> None:
    """Writes what `torch.save` can, in one piece or not at all."""
    # A file of ours, because torch's own has errors that do not say what is wrong with the disk.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(value, file)


def write_json(path: Path, value) -> None:
    """Writes a value as indented JSON, in one piece or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")

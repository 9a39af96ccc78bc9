"""The folder of a run: what is in it, and how it survives a kill at any instant."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastssl.train.errors import UsageError

#: Keywords that may differ between a run and its continuation.
_FREE = {"out", "root", "resume", "overwrite", "evaluate"}


class RunFolder:
    """Paths of a run's files and the rules for writing them.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.backbone = path / "backbone.pt"
        self.results = path / "results.json"
        self.picture = path / "report.png"

    def check(self, described: dict) -> None:
        """Checks that a run of these keywords may use the folder; changes nothing.

        Raises:
            UsageError: the folder is in use and neither `resume` nor `overwrite` is given, or it
                holds nothing to resume, or a run of other keywords.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"out: {self.path} is not a folder")
        if described["resume"]:
            self._check_same(described)
        elif self.path.is_dir() and any(self.path.iterdir()) and not described["overwrite"]:
            raise UsageError(f"out: {self.path} is not empty; give overwrite or resume")

    def read_config(self) -> dict:
        """What the run was told, its method among it.

        Raises:
            UsageError: the folder holds no run.
        """
        try:
            described = json.loads(self.config.read_text())
            return {**described, "method": described["method"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"out: {self.path} holds no run ({error})") from None

    def read_checkpoint(self) -> dict:
        """The content of the last checkpoint, on the CPU.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        try:
            return torch.load(self.checkpoint, "cpu", weights_only=True)
        # A damaged file raises almost anything.
        except Exception as error:
            raise UsageError(f"{self.checkpoint} is no checkpoint, or damaged: {error}") from error

    def begin(self, described: dict) -> None:
        """Makes the folder ready for a new run and writes its config.json."""
        # Only what a run writes: out may be somebody's folder of other things.
        for file in [*vars(self).values(), *self._pictures()]:
            if file != self.path:
                file.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, described)

    def _pictures(self) -> list[Path]:
        """What the last run's method drew, by its results."""
        try:
            names = json.loads(self.results.read_text())["pictures"]
            return [self.path / f"{Path(name).name}.png" for name in names]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _check_same(self, described: dict) -> None:
        try:
            before = json.loads(self.config.read_text())
        except (OSError, ValueError):
            before = None
        if before is None or not self.checkpoint.is_file():
            raise UsageError(f"resume: {self.path} holds no checkpoint to continue from")
        for name, now in described.items():
            if name not in _FREE and before.get(name) != now:
                raise UsageError(
                    f"{name}: the run in {self.path} has {before.get(name)!r}, "
                    f"cannot resume it with {now!r}"
                )

    def forget_after(self, step: int) -> None:
        """Drops lines of metrics later than a checkpoint, and one that a kill cut short."""
        kept = [json.dumps(line) for line in self.read_metrics() if line["step"] <= step]
        with replacing(self.metrics) as path:
            path.write_text("".join(line + "\n" for line in kept))

    def read_metrics(self) -> list[dict]:
        """The lines of metrics.jsonl up to the first that is incomplete."""
        lines = []
        if self.metrics.exists():
            for line in self.metrics.read_text().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break
        return lines


@contextmanager
def replacing(path: Path, *, enabled: bool = True) -> Iterator[Path]:
    """A path to write to; `path` gets the whole of it or, after a kill, keeps what it had.

    Processes that only take part in the writing pass `enabled=False`.
    """
    temporary = path.with_name(path.name + ".part")
    yield temporary
    if enabled:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """Writes a value as indented JSON, in one piece or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")

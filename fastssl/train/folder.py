"""The folder of a run: what is in it, and who may write there."""

import json
from contextlib import suppress
from pathlib import Path

import torch

from fastssl.train import pictures
from fastssl.train.checkpoints import Checkpoints
from fastssl.train.errors import UsageError
from fastssl.train.files import replacing, write_json

#: Keywords that may differ between a run and its continuation.
FREE = {"out", "root", "resume", "overwrite", "evaluate", "config", "dry_run", "workers"}


class RunFolder:
    """Paths of a run's files and the rules for writing them.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.exported = path / "exported.pt"
        self.results = path / "results.json"
        self.markdown = path / "results.md"
        self.evaluation = path / "evaluation.json"
        self.evaluation_markdown = path / "evaluation.md"
        self.report = path / "report.png"
        self.not_finite = path / "not-finite.pt"
        self.checkpoints = Checkpoints(path)

    def check(self, described: dict, defaults: dict) -> None:
        """Checks that a run of these keywords may use the folder; changes nothing.

        Args:
            described: the keywords.
            defaults: what a run had for keywords that came after it.

        Raises:
            UsageError: the folder is in use and neither `resume` nor `overwrite` is given, or what
                it holds is no run to resume, or a run of other keywords.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"out: {self.path} is not a folder")
        # A run that was killed as it began leaves no more than a file that is not whole.
        held = self.path.is_dir() and any(f.suffix != ".part" for f in self.path.iterdir())
        if held and described["resume"]:
            self._check_same(described, defaults)
        elif held and not described["overwrite"]:
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
            raise UsageError(f"out: {self.path} holds no run ({error!r})") from None

    def read_checkpoint(self) -> dict:
        """The content of the last checkpoint, on the CPU, its sum verified.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        self.checkpoints.verify()
        return torch.load(self.checkpoints.last, "cpu", weights_only=True)

    def check_samples(self, checkpoint: dict, samples: int, argument: str) -> None:
        """Checks that a checkpoint is of a run on these samples, by `Split.fingerprint`.

        Raises:
            UsageError: it is not; the message begins with the argument.
        """
        if checkpoint["samples"] != samples:
            raise UsageError(f"{argument}: {self.path} was trained on other samples")

    def forget_results(self) -> None:
        """Removes what was measured; training goes on."""
        for file in (self.results, self.markdown, self.evaluation, self.evaluation_markdown):
            file.unlink(missing_ok=True)

    def begin(self, described: dict, environment: dict) -> None:
        """Makes the folder ready for a new run; writes config.json and environment.json."""
        # Only what a run writes: out may be somebody's folder of other things.
        written = [file for file in vars(self).values() if isinstance(file, Path)]
        try:
            for file in [*written, *self.checkpoints.files, *self._pictures(), *self._others()]:
                if file != self.path:
                    file.unlink(missing_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"out: cannot write to {self.path}: {error.strerror}") from error
        write_json(self.config, described)
        write_json(self.environment, environment)

    def _pictures(self) -> list[Path]:
        """What may have been drawn of the last run, its method's pictures by its results."""
        names = list(pictures.NAMES)
        with suppress(OSError, ValueError, KeyError, TypeError):
            names += json.loads(self.results.read_text())["pictures"]
        return [self.path / f"{Path(name).name}.png" for name in names]

    def _others(self) -> list[Path]:
        patterns = ("events.out.tfevents.*.fastssl", "*.part", "features.npz", "features.parquet")
        return [file for pattern in patterns for file in self.path.glob(pattern)]

    def _check_same(self, described: dict, defaults: dict) -> None:
        before = defaults | self.read_config()
        for name, now in described.items():
            if name not in FREE and before.get(name) != now:
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
            for line in self.metrics.read_text(errors="replace").splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break
        return lines

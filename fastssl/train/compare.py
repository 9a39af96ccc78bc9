"""Several runs side by side, from what their folders say: neither data nor weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastssl.train.errors import UsageError
from fastssl.train.evaluation import Score, tables
from fastssl.train.files import replacing, write_json
from fastssl.train.folder import FREE, RunFolder
from fastssl.train.method import Task
from fastssl.train.pictures.drawing import save
from fastssl.train.pictures.labels import in_order
from fastssl.train.results import Results, measured

if TYPE_CHECKING:
    from rich.table import Table

#: Keywords that have a line of their own, and those that say nothing of what was learned.
_SHOWN = ("method", "data", "backbone", "epochs")
_NEVER = FREE | {"online", "cuda_graph"}

_NOTE = (
    "Accuracies on test samples in percent, mean and deviation over draws of labels. "
    "Losses are comparable within a method only."
)


@dataclass(frozen=True)
class Compared:
    """One run.

    Attributes:
        name: of its folder, or the path where two folders have the same name.
        path: its folder.
        keywords: what it was told, its method among it.
        metrics: the lines of metrics.jsonl.
        results: what was measured afterwards.
    """

    name: str
    path: Path
    keywords: dict
    metrics: list[dict]
    results: Results

    @property
    def epochs(self) -> list[dict]:
        """The lines of the epochs that were finished."""
        return [line for line in self.metrics if line["event"] == "epoch"]

    @property
    def loss(self) -> float | None:
        """The mean over the last epoch, or None."""
        return self.epochs[-1]["loss"] if self.epochs else None

    @property
    def seconds(self) -> float | None:
        """How long the epochs took, or None."""
        return sum(line["seconds"] for line in self.epochs) if self.epochs else None

    def score(self, probe: str, labels: str, encoder: str) -> Score | None:
        """The accuracy of an encoder, "untrained" or "pretrained", or None."""
        for row in self.results.rows:
            if (row.probe, row.labels) == (probe, labels):
                return getattr(row, encoder)
        return None


@dataclass(frozen=True)
class Comparison:
    """Several runs.

    Attributes:
        runs: in the order in which they were given.
    """

    runs: list[Compared]

    @property
    def differing(self) -> dict[str, list]:
        """Keywords in which the runs differ, with the value of each; None where it has none.

        Without method, data, backbone and epochs, and what does not change what is learned.
        """
        names = dict.fromkeys(name for run in self.runs for name in run.keywords)
        values = {
            name: [run.keywords.get(name) for run in self.runs]
            for name in names
            if name not in _NEVER.union(_SHOWN)
        }
        return {name: of for name, of in values.items() if any(v != of[0] for v in of)}

    @property
    def measurements(self) -> list[tuple[str, str]]:
        """Every probe and number of labels that some run has, probe by probe, from few to many."""
        rows = [row for run in self.runs for row in run.results.rows]
        return [
            (probe, labels)
            for probe in dict.fromkeys(row.probe for row in rows)
            for labels in in_order(row.labels for row in rows if row.probe == probe)
        ]

    def table(self) -> "Table":
        """A column for each run, for the terminal."""
        from rich.table import Table
        from rich.text import Text

        made = Table(caption=_NOTE)
        made.add_column("", no_wrap=True)
        for run in self.runs:
            # As Text, since brackets in strings are markup.
            made.add_column(Text(run.name), justify="right", overflow="fold")
        for section in self._sections():
            for name, cells in section.items():
                made.add_row(name, *map(Text, cells))
            made.add_section()
        return made

    def markdown(self) -> str:
        """The same table as Markdown."""
        heading = ("", *(run.name for run in self.runs))
        lines = [heading, (":--", *["--:"] * len(self.runs))]
        lines += [(name, *cells) for of in self._sections() for name, cells in of.items()]
        # A bar within a cell would end it.
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + f"\n\n{_NOTE}\n"

    def as_json(self) -> dict:
        """The same as values that JSON can hold; accuracies from 0 to 1."""
        runs = [
            {
                "run": str(run.path),
                **{name: run.keywords.get(name) for name in ("method", "data", "backbone")},
                "epochs": run.keywords.get("epochs"),
                "epochs_done": len(run.epochs),
                "seconds": run.seconds,
                "loss": run.loss,
                **tables.as_json(run.results.rows, run.results.task),
            }
            for run in self.runs
        ]
        return {"runs": runs, "differing": self.differing}

    def write(self, out: Path) -> list[Path]:
        """Writes compare.md, compare.json and compare.png, each in one piece or not at all.

        Args:
            out: folder to write to, made if it is missing.

        Returns:
            The three paths.

        Raises:
            UsageError: the folder cannot be written to.
        """
        from fastssl.train.pictures.runs import side_by_side

        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"out: cannot write to {out}: {error.strerror}") from error
        text, values, picture = (out / f"compare.{ending}" for ending in ("md", "json", "png"))
        with replacing(text) as temporary:
            temporary.write_text(self.markdown())
        write_json(values, self.as_json())
        save(picture, side_by_side(self))
        return [text, values, picture]

    def _sections(self) -> list[dict[str, list[str]]]:
        """Groups of lines: a name, and a cell for each run."""
        told = {
            name: [_text(run.keywords.get(name)) for run in self.runs]
            for name in ("method", "data", "backbone")
        }
        reached = {
            "epochs": [f"{len(r.epochs)} of {r.keywords.get('epochs')}" for r in self.runs],
            "seconds": ["" if r.seconds is None else f"{r.seconds:.0f}" for r in self.runs],
            "loss": ["" if r.loss is None else f"{r.loss:.4g}" for r in self.runs],
            "own question": [_task(r.results.task) for r in self.runs],
        }
        differing = {name: [_text(value) for value in of] for name, of in self.differing.items()}
        accuracies = {
            f"{probe}, {labels}: {encoder}": [
                _percent(run.score(probe, labels, encoder)) for run in self.runs
            ]
            for probe, labels in self.measurements
            for encoder in ("untrained", "pretrained")
        }
        return [told | differing, reached, accuracies]


def compare(runs: Sequence[Path], out: Path | None = None) -> Comparison:
    """Reads the folders of runs, finished or not, to show them side by side.

    Args:
        runs: folders, one or more.
        out: folder to write the comparison to, see `Comparison.write`; None to write nothing.

    Raises:
        UsageError: a folder holds no run, its results are damaged, or `out` cannot be written to.
    """
    if not runs:
        raise UsageError("runs: got none, must be one or more folders")
    paths = [Path(path) for path in runs]
    names = [path.resolve().name for path in paths]
    read = [
        _read(path, name if names.count(name) == 1 else str(path))
        for path, name in zip(paths, names, strict=True)
    ]
    comparison = Comparison(read)
    if out is not None:
        comparison.write(Path(out))
    return comparison


def _read(path: Path, name: str) -> Compared:
    folder = RunFolder(path)
    try:
        keywords = folder.read_config()
    except UsageError as error:
        raise UsageError(f"runs: {str(error).removeprefix('out: ')}") from None
    return Compared(name, path, keywords, folder.read_metrics(), measured(folder))


def _text(value) -> str:
    return "" if value is None else str(value)


def _task(task: Task | None) -> str:
    if task is None:
        return ""
    return f"{task.question}: {100 * task.accuracy:.1f}, by chance {100 * task.chance:.1f}"


def _percent(score: Score | None) -> str:
    return "" if score is None else tables.percent(score)

"""Results as a table on the terminal, as Markdown and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastssl.train.evaluation.labels import DRAWS
from fastssl.train.evaluation.scores import Row, Score, is_clear
from fastssl.train.method import Task

if TYPE_CHECKING:
    from rich.table import Table

_HEADINGS = ("probe", "labels", "untrained, %", "pretrained, %", "gain", "clear")

_NOTE = (
    f"Accuracy on test samples; labels per class, mean and deviation over {DRAWS} draws of labels. "
    f"Clear: the gain is larger than either deviation."
)


def table(rows: Sequence[Row], task: Task | None = None) -> "Table":
    """Test accuracies in percent, and what pretraining adds, in points.

    Args:
        rows: from `fastssl.train.evaluation.rows`.
        task: how well the method answers its own question, for the caption.
    """
    from rich.table import Table
    from rich.text import Text

    # As Text, since brackets in strings are markup.
    caption = Text(_sentence(task)) if task else None
    made = Table(title="what the features are worth", caption=caption)
    for heading in _HEADINGS:
        made.add_column(heading, justify="left" if heading == "probe" else "right")
    for row in rows:
        made.add_row(*_cells(row))
    return made


def markdown(rows: Sequence[Row], task: Task | None = None) -> str:
    """The same table as Markdown, with its notes; without rows only the task's sentence."""
    parts = []
    if rows:
        lines = [_HEADINGS, (":--", *["--:"] * (len(_HEADINGS) - 1)), *map(_cells, rows)]
        parts = ["\n".join(f"| {' | '.join(line)} |" for line in lines), _NOTE]
    if task:
        parts.append(_sentence(task))
    return "".join(part + "\n\n" for part in parts)[:-1]


def as_json(rows: Sequence[Row], task: Task | None = None) -> dict:
    """Rows and task as values that JSON can hold; accuracies from 0 to 1."""
    described = [
        dataclasses.asdict(row)
        | {"gain": row.gain, "deviation": row.deviation, "clear": is_clear(row)}
        for row in rows
    ]
    return {"rows": described, "task": task and dataclasses.asdict(task)}


def from_json(described: dict) -> tuple[list[Row], Task | None]:
    """What `as_json` was given.

    Raises:
        KeyError, TypeError: it was not made by `as_json`.
    """
    rows = [
        Row(row["probe"], row["labels"], Score(**row["untrained"]), Score(**row["pretrained"]))
        for row in described["rows"]
    ]
    task = described["task"]
    return rows, task and Task(**task)


def _cells(row: Row) -> tuple[str, ...]:
    scores = (percent(row.untrained), percent(row.pretrained))
    # One draw has no deviation.
    clear = ("yes" if is_clear(row) else "no") if row.deviation else ""
    return row.probe, row.labels, *scores, f"{100 * row.gain:+.1f}", clear


def percent(score: Score) -> str:
    """A score in percent, with its deviation where there is one: "81.2 ± 5.0"."""
    deviation = f" ± {100 * score.deviation:.1f}" if score.deviation else ""
    return f"{100 * score.mean:.1f}{deviation}"


def _sentence(task: Task) -> str:
    return (
        f"The method's own question, {task.question}: {100 * task.accuracy:.1f} % right, "
        f"by chance {100 * task.chance:.1f} %"
    )

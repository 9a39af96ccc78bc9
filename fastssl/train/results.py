"""What a run's folder says that the run has reached, without its data or its weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from fastssl.train.errors import UsageError
from fastssl.train.evaluation import Row, tables
from fastssl.train.folder import RunFolder
from fastssl.train.method import Task


@dataclass(frozen=True)
class Results:
    """What was measured after training.

    Attributes:
        rows: accuracies; empty where there are none.
        task: how well the method answers its own question, if it was asked.
    """

    rows: list[Row] = field(default_factory=list)
    task: Task | None = None


def measured(folder: RunFolder) -> Results:
    """What results.json holds, and evaluation.json, whose later accuracies count more.

    Raises:
        UsageError: one of them is there and damaged.
    """
    rows, task = {}, None
    for path in (folder.results, folder.evaluation):
        if path.exists():
            read = _read(path)
            rows |= {(row.probe, row.labels): row for row in read.rows}
            task = read.task or task
    return Results([*rows.values()], task)


def _read(path: Path) -> Results:
    try:
        return Results(*tables.from_json(json.loads(path.read_text())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} holds no results, or is damaged: {error!r}") from None

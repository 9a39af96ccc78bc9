import io
import json
import re

import pytest
from rich.console import Console

from fastssl.train import UsageError
from fastssl.train.compare import compare
from fastssl.train.evaluation import Row, Score, tables
from fastssl.train.method import Task

ROWS = [
    Row("logistic", "all", Score(0.5, 0.0), Score(0.9, 0.0)),
    Row("logistic", "5", Score(0.3, 0.01), Score(0.612, 0.02)),
]


def write_run(path, rows=(), task=None, epochs=2, knn=0.5, **keywords):
    path.mkdir(parents=True)
    told = {"method": "simclr", "data": "digits", "backbone": "small", "epochs": 2, "lr": 0.1}
    (path / "config.json").write_text(json.dumps(told | {"out": str(path)} | keywords))
    lines = []
    for i in range(1, epochs + 1):
        lines.append({"event": "epoch", "step": i, "epoch": i, "loss": 1 / i, "seconds": 1.5})
        lines.append({"event": "online", "step": i, "epoch": i, "knn": knn})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if rows or task:
        (path / "results.json").write_text(json.dumps(tables.as_json(rows, task)))
    return path


def printed(comparison):
    console = Console(width=150, file=io.StringIO())
    console.print(comparison.table())
    return console.file.getvalue()


def cells(text, name):
    lines = [re.split(r" ?[│|] ?", line)[1:-1] for line in text.splitlines()]
    (found,) = [line[1:] for line in lines if line and line[0].strip() == name]
    return [cell.strip() for cell in found]


def test_runs_are_shown_side_by_side(tmp_path):
    first = write_run(tmp_path / "a", ROWS, Task("which rotation", 0.8, 0.25), temperature=0.5)
    second = write_run(tmp_path / "b", ROWS[1:], method="mae", lr=0.2, note="[/b] | [red]")
    killed = write_run(tmp_path / "c", epochs=0)
    comparison = compare([first, second, killed], tmp_path / "new" / "out")
    written = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert written == {"compare.md", "compare.json", "compare.png"}
    markdown = (tmp_path / "new" / "out" / "compare.md").read_text()
    for text in (markdown, printed(comparison)):
        assert cells(text, "method") == ["simclr", "mae", "simclr"]
        assert cells(text, "epochs") == ["2 of 2", "2 of 2", "0 of 2"]
        assert cells(text, "loss") == ["0.5", "0.5", ""]
        assert cells(text, "seconds") == ["3", "3", ""]
        assert cells(text, "lr") == ["0.1", "0.2", "0.1"]
        assert cells(text, "own question") == ["which rotation: 80.0, by chance 25.0", "", ""]
        assert cells(text, "logistic, 5: pretrained") == ["61.2 ± 2.0", "61.2 ± 2.0", ""]
        assert cells(text, "logistic, all: untrained") == ["50.0", "", ""]
        assert "backbone" in text and str(tmp_path) not in text
    values = json.loads((tmp_path / "new" / "out" / "compare.json").read_text())
    assert [run["epochs_done"] for run in values["runs"]] == [2, 2, 0]
    assert values["runs"][0]["task"]["accuracy"] == 0.8 and values["runs"][2]["rows"] == []
    assert values["differing"] == {
        "lr": [0.1, 0.2, 0.1],
        "temperature": [0.5, None, None],
        "note": [None, "[/b] | [red]", None],
    }


def test_later_accuracies_count_more(tmp_path):
    run = write_run(tmp_path / "a", ROWS)
    later = [Row("logistic", "5", Score(0.3, 0), Score(0.7, 0)), *ROWS[:1]]
    (run / "evaluation.json").write_text(json.dumps(tables.as_json(later)))
    comparison = compare([run])
    assert comparison.measurements == [("logistic", "5"), ("logistic", "all")]
    assert comparison.runs[0].score("logistic", "5", "pretrained").mean == 0.7
    assert not comparison.differing


def test_the_same_name_is_told_apart_by_its_path(tmp_path):
    runs = [write_run(tmp_path / part / "run") for part in "ab"]
    assert [run.name for run in compare(runs).runs] == [str(path) for path in runs]


def test_what_is_no_run_is_an_error_that_names_it(tmp_path):
    run = write_run(tmp_path / "a", ROWS)
    with pytest.raises(UsageError, match=r"^runs: .*nothing holds no run"):
        compare([run, tmp_path / "nothing"])
    with pytest.raises(UsageError, match="^runs: got none"):
        compare([])
    (run / "results.json").write_text("[]")
    with pytest.raises(UsageError, match="results.json holds no results"):
        compare([run])
    with pytest.raises(UsageError, match="^out: cannot write to"):
        compare([write_run(tmp_path / "b")], run / "config.json")

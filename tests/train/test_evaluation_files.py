import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyarrow import parquet
from rich.console import Console
from torch import nn

from fastssl.train import UsageError
from fastssl.train.data import Data, Split
from fastssl.train.evaluation import Row, Score, tables
from fastssl.train.evaluation.embed import embed
from fastssl.train.method import Task

ROWS = [
    Row("knn-20", "5", Score(0.4, 0.02), Score(0.5, 0.03)),
    Row("logistic", "1%", Score(0.81234, 0.05), Score(0.8, 0.01)),
    Row("logistic", "all", Score(0.9, 0.0), Score(0.95, 0.0)),
]
TASK = Task("which rotation", 0.8, 0.25)


@pytest.fixture
def run(tmp_path):
    generator = torch.Generator().manual_seed(0)
    splits = [
        Split(
            torch.randint(0, 256, (count, 1, 2, 3), dtype=torch.uint8, generator=generator),
            torch.arange(count) % 3 - 1,
        )
        for count in (7, 4)
    ]
    folder = SimpleNamespace(path=tmp_path / "run")
    model = SimpleNamespace(backbone=nn.Flatten())
    return SimpleNamespace(
        folder=folder, data=Data("toy", ("zero", "öne"), *splits), model=model, untrained=None
    )


def test_npz_and_parquet_hold_the_same(run):
    archive, table = embed(run)
    assert sorted(path.name for path in run.folder.path.iterdir()) == [archive.name, table.name]
    with np.load(archive, allow_pickle=False) as file:
        held = dict(file)
    read = parquet.read_table(table)
    assert held["classes"].tolist() == ["zero", "öne"]
    assert json.loads(read.schema.metadata[b"classes"]) == ["zero", "öne"]
    assert set(read.column_names) == {"sample_id", "split", "label", "features"}
    for name in read.column_names:
        assert held[name].tolist() == read[name].to_pylist()
    assert held["features"].shape == (11, 6) and held["features"].dtype == np.float32
    assert str(read.schema.field("features").type).startswith("fixed_size_list")
    assert held["sample_id"].tolist() == [*range(7), *range(4)]
    assert held["split"].tolist() == ["train"] * 7 + ["test"] * 4
    wanted = run.data.test.inputs.flatten(1).numpy() / 255 * 4 - 2
    np.testing.assert_allclose(held["features"][7:], wanted, rtol=1e-5, atol=1e-6)
    assert held["label"].tolist() == [*run.data.train.labels, *run.data.test.labels]


def test_features_are_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    archive, table = embed(run, tmp_path / "new" / "folder")
    before = archive.read_bytes(), table.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UsageError, match="^out: cannot write .*features.npz: No space left"):
        embed(run, tmp_path / "new" / "folder")
    assert before == (archive.read_bytes(), table.read_bytes())
    with pytest.raises(UsageError, match="^out: .*features.npz is not a folder"):
        embed(run, archive)


def test_json_is_read_as_it_was_written():
    described = json.loads(json.dumps(tables.as_json(ROWS, TASK)))
    assert tables.from_json(described) == (ROWS, TASK)
    assert [row["clear"] for row in described["rows"]] == [True, False, True]
    assert described["rows"][0]["gain"] == pytest.approx(0.1)
    assert tables.from_json(tables.as_json([])) == ([], None)


def test_markdown_has_a_line_for_each_row():
    lines = tables.markdown(ROWS, TASK).splitlines()
    assert lines[0] == "| probe | labels | untrained, % | pretrained, % | gain | clear |"
    assert lines[2] == "| knn-20 | 5 | 40.0 ± 2.0 | 50.0 ± 3.0 | +10.0 | yes |"
    assert lines[3] == "| logistic | 1% | 81.2 ± 5.0 | 80.0 ± 1.0 | -1.2 | no |"
    assert lines[4] == "| logistic | all | 90.0 | 95.0 | +5.0 |  |"
    assert lines[-1] == (
        "The method's own question, which rotation: 80.0 % right, by chance 25.0 %"
    )
    assert tables.markdown([]) == ""
    assert tables.markdown([], TASK) == lines[-1] + "\n"


def test_the_table_says_the_same():
    console = Console(width=120, file=io.StringIO())
    console.print(tables.table(ROWS, TASK))
    shown = console.file.getvalue()
    assert "81.2 ± 5.0" in shown and "+10.0" in shown and "which rotation" in shown

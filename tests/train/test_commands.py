"""The commands that look at runs, configuration files, and the plan of a run."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fastssl import cli
from fastssl.train import UsageError, open_run, pretrain
from fastssl.train.methods.simclr import SimCLRConfig

FLAGS = {
    "limit": 96, "batch_size": 48, "width": 4, "epochs": 2, "hidden": 8, "dim": 8,
    "accelerator": "cpu", "online": 1,
}  # fmt: skip


def call(*args):
    return CliRunner().invoke(cli.app, [*map(str, args)])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    pretrain("simclr", out=out, evaluate=False, **FLAGS)
    return out


def test_eval_prints_and_writes_the_same(out):
    made = call("eval", out, "--probes", "logistic,linear", "--labels", "2,50%")
    assert made.exit_code == 0, made.output
    rows = json.loads((out / "evaluation.json").read_text())["rows"]
    named = [("logistic", "2"), ("logistic", "50%"), ("linear", "2"), ("linear", "50%")]
    assert [(row["probe"], row["labels"]) for row in rows] == named
    shown = f"{100 * rows[0]['pretrained']['mean']:.1f}"
    assert shown in made.output and shown in (out / "evaluation.md").read_text()


def test_eval_refuses_what_cannot_be(out):
    made = call("eval", out, "--labels", "90")
    assert made.exit_code == 2 and "labels: got 90 per class, class" in made.stderr
    made = call("eval", out, "--probes", "knn")
    assert made.exit_code == 2 and "probes" in made.stderr
    made = call("eval", out, "--device", "abacus")
    assert made.exit_code == 2 and made.stderr.startswith("fastssl: device: got 'abacus'")
    made = call("eval", out.parent)
    assert made.exit_code == 2 and "holds no run" in made.stderr


def test_embed_and_plot_write_files(out, tmp_path):
    made = call("embed", out, "--out", tmp_path)
    assert made.exit_code == 0, made.output
    assert {path.name for path in tmp_path.iterdir()} == {"features.npz", "features.parquet"}
    made = call("plot", out)
    assert made.exit_code == 0, made.output
    for name in ("curves", "tsne", "views", "neighbours"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_compare_names_what_differs(out, tmp_path):
    pretrain("simclr", out=tmp_path / "other", evaluate=False, **FLAGS | {"lr": 0.5})
    made = call("compare", out, tmp_path / "other", "--out", tmp_path)
    assert made.exit_code == 0 and "0.002" in made.output and "0.5" in made.output
    assert (tmp_path / "compare.md").exists() and (tmp_path / "compare.png").exists()


def test_an_opened_run_is_the_run(out):
    saved = open_run(out)
    weights = torch.load(out / "exported.pt", weights_only=True)
    opened = saved.model.backbone.state_dict()
    assert all(torch.equal(opened[name], weights[name]) for name in weights)
    assert not torch.equal(saved.untrained[0].weight, weights["0.weight"])


def test_events_are_those_of_the_metrics(out):
    (events,) = out.glob("events.out.tfevents.*.fastssl")
    content = events.read_bytes()
    assert all(tag in content for tag in (b"step/loss", b"epoch/waiting", b"online/rank_me"))
    online = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    online = [line for line in online if line["event"] == "online"]
    assert len(online) == 2 and 0 <= online[0]["knn"] <= 1 <= online[0]["rank_me"]


def test_dry_run_says_what_it_would_do_and_does_nothing(tmp_path):
    made = call("train", "simclr", "--dry-run", "--out", tmp_path / "x", "--epochs", 7)
    assert made.exit_code == 0, made.output
    assert "7 epochs of 11 steps of 128 images: 77 steps" in made.output
    assert "23,408 parameters" in made.output and not (tmp_path / "x").exists()


def test_a_file_sets_keywords_and_flags_count_more(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("method: simclr\nepochs: 9\nlr: 1e-3\nlimit: 256\n")
    made = call("train", "simclr", "--config", file, "--epochs", 3, "--dry-run")
    assert made.exit_code == 0 and "3 epochs of 2 steps of 128 images" in made.output
    assert SimCLRConfig.from_keywords({"config": file}, "simclr").lr == 1e-3


def test_a_run_can_be_opened_when_its_file_has_gone(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("".join(f"{name}: {value}\n" for name, value in FLAGS.items()))
    pretrain("simclr", config=file, out=tmp_path / "run", evaluate=False)
    file.unlink()
    assert open_run(tmp_path / "run").config.width == 4


def test_a_run_can_be_opened_when_its_data_has_moved(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(60) % 3)
    np.savez(tmp_path / "other.npz", images=255 - images, labels=np.arange(60) % 3)
    options = FLAGS | {"batch_size": 16, "epochs": 1, "evaluate": False}
    pretrain("simclr", data=f"npz:{tmp_path / 'a.npz'}", out=tmp_path / "run", **options)
    (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    with pytest.raises(UsageError, match="a.npz"):
        open_run(tmp_path / "run")
    assert len(open_run(tmp_path / "run", data=f"npz:{tmp_path / 'b.npz'}").data.classes) == 3
    with pytest.raises(UsageError, match="^data: .* was trained on other samples"):
        open_run(tmp_path / "run", data=f"npz:{tmp_path / 'other.npz'}")


def test_float64_is_looked_at_and_exported_as_float32(tmp_path):
    run = pretrain("simclr", out=tmp_path, **FLAGS | {"precision": "64-true", "epochs": 1})
    assert run.rows and all(p.dtype == torch.float32 for p in run.backbone.parameters())


def test_a_run_can_be_repeated_from_its_own_configuration(out, tmp_path):
    pretrain("simclr", config=out / "config.json", out=tmp_path)
    first, second = (torch.load(o / "exported.pt", weights_only=True) for o in (out, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "epoch: no such argument; did you mean 'epochs'?"),
        ("batch-size: 3", "batch-size: no such argument; did you mean 'batch_size'?"),
        ("epochs: many", "epochs: got 'many', must be int"),
        ("- epochs", "config: .* holds list, must be keys and values"),
        ("epochs: [", "config: .* is not YAML"),
        ("method: mae", "config: .* is for mae, not for simclr"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=f"^{message}"):
        pretrain("simclr", config=tmp_path / "run.yaml")
    with pytest.raises(UsageError, match="^config: .*cannot be read"):
        pretrain("simclr", config=tmp_path / "none.yaml")


def test_data_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="^data: simclr trains on images, pydoc has texts"):
        pretrain("simclr", data="pydoc")


def test_help_reads_like_documentation():
    made = call("train", "simclr", "--help")
    assert made.exit_code == 0
    for part in ("--temperature", "--data", "digits|cifar10", "--dry-run", "contrasted"):
        assert part in made.output

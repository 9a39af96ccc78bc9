import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fastssl.train import Config, Method, UsageError, method, pretrain
from fastssl.train.backbones import encoder
from fastssl.train.config import option
from fastssl.train.networks import Small
from fastssl.train.views import to_float

TINY = {
    "limit": 160, "batch_size": 64, "width": 4, "epochs": 2, "hidden": 8, "dim": 8,
    "accelerator": "cpu",
}  # fmt: skip
FILES = {
    "config.json", "environment.json", "metrics.jsonl", "last.ckpt", "previous.ckpt",
    "checkpoints.sha256", "exported.pt", "report.png", "results.json", "results.md",
}  # fmt: skip


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out):
    return [(line["step"], line["loss"]) for line in lines(out) if line["event"] == "step"]


def same_weights(out0, out1, name="exported.pt"):
    first, second = (torch.load(out / name, weights_only=True) for out in (out0, out1))
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return pretrain("simclr", out=tmp_path_factory.mktemp("run"), **TINY)


def test_writes_everything_that_it_promises(run):
    events = {path.name for path in run.out.glob("events.out.tfevents.*.fastssl")}
    assert {path.name for path in run.out.iterdir()} == FILES | events and len(events) == 1
    config = json.loads((run.out / "config.json").read_text())
    assert config["method"] == "simclr" and config["width"] == 4 and config["temperature"] == 0.5
    events = [line["event"] for line in lines(run.out)]
    assert events == ["step", "step", "epoch"] * 2
    step = lines(run.out)[0]
    assert {"step", "epoch", "loss", "lr", "agreement", "images_per_second"} <= step.keys()
    assert (run.out / "report.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((run.out / "results.json").read_text())
    logistic = [row["labels"] for row in results["rows"] if row["probe"] == "logistic"]
    assert logistic == ["1", "5", "10", "all"]
    assert all(0 <= row["pretrained"]["mean"] <= 1 for row in results["rows"])


def test_backbone_loads_with_plain_pytorch(run):
    saved = torch.load(run.out / "exported.pt", weights_only=True)
    fresh = Small(channels=1, width=4).eval()
    fresh.load_state_dict(saved)
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(fresh(to_float(images)), run.backbone(to_float(images)))
    checkpoint = torch.load(run.out / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == TINY["epochs"]


def test_the_same_seed_gives_the_same_run_and_another_does_not(run, tmp_path):
    for seed in (0, 1):
        pretrain("simclr", out=tmp_path / str(seed), seed=seed, evaluate=False, **TINY)
    assert same_weights(run.out, tmp_path / "0") and losses(run.out) == losses(tmp_path / "0")
    assert not same_weights(run.out, tmp_path / "1")


def test_a_finished_run_can_be_evaluated_later(run, tmp_path):
    pretrain("simclr", out=tmp_path, evaluate=False, **TINY)
    assert not (tmp_path / "report.png").exists()
    again = pretrain("simclr", out=tmp_path, resume=True, **TINY)
    assert again.rows == run.rows and same_weights(run.out, tmp_path)
    assert (tmp_path / "report.png").exists()


def test_a_used_folder_is_kept_unless_told(run, tmp_path):
    stranger = tmp_path / "thesis.txt"
    stranger.write_text("years of work")
    with pytest.raises(UsageError, match="^out: .*not empty; give overwrite or resume"):
        pretrain("simclr", out=tmp_path, **TINY)
    assert list(tmp_path.iterdir()) == [stranger]
    pretrain("simclr", out=tmp_path, overwrite=True, evaluate=False, **TINY)
    assert stranger.read_text() == "years of work" and (tmp_path / "exported.pt").exists()
    with pytest.raises(UsageError, match="^out: .*is not a folder"):
        pretrain("simclr", out=stranger, overwrite=True, **TINY)


def test_errors_come_before_the_folder_is_made(tmp_path):
    with pytest.raises(UsageError, match="^root: "):
        pretrain("simclr", out=tmp_path / "run", data="cifar10", root=tmp_path)
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        UsageError, match="^method: got 'simclear', must be one of autoencoder, byol, "
    ):
        pretrain("simclear")
    with pytest.raises(UsageError, match="^batch_size: got 512, the data has 160"):
        pretrain("simclr", out=tmp_path / "run", **TINY | {"batch_size": 512})


def test_resnet18_and_bfloat16_train(tmp_path):
    options = TINY | {"backbone": "resnet18", "precision": "bf16-mixed", "epochs": 1}
    run = pretrain("simclr", out=tmp_path, evaluate=False, **options)
    assert run.backbone(torch.zeros(2, 1, 32, 32)).shape == (2, 32)
    assert all(p.dtype == torch.float32 for p in run.backbone.parameters())


def test_a_method_is_one_class(tmp_path, monkeypatch):
    """What CONTRIBUTING tells authors of methods: nothing but this class is needed."""
    monkeypatch.setattr(method, "_methods", dict(method._methods))

    @dataclass(kw_only=True)
    class ToyConfig(Config):
        strength: float = option(1.0, "Weight of the loss.", above=0)

    class Autoencoder(Method):
        name = "toy"
        Config = ToyConfig

        def __init__(self, config, data):
            super().__init__(config, data)
            self.backbone = encoder(config, data)
            self.decoder = nn.Linear(self.backbone.features, 32 * 32)

        def views(self, images, sample_ids, step):
            return (to_float(images),)

        def forward(self, images):
            error = self.decoder(self.backbone(images)) - images.flatten(1)
            return {"loss": self.config.strength * error.square().mean(), "error": error.std()}

    options = {k: v for k, v in TINY.items() if k not in ("hidden", "dim")}
    pretrain("toy", out=tmp_path, evaluate=False, strength=2.0, lr=0.05, **options)
    steps = losses(tmp_path)
    assert steps[-1][1] < steps[0][1]
    with pytest.raises(UsageError, match="^strength: got -1.0, must be above 0"):
        pretrain("toy", out=tmp_path, strength=-1)

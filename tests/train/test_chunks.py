"""SimCLR's --chunk-size: the run that one pass gives, where batch norm does not see the chunks."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fastssl import cli
from fastssl.train import UsageError, method, pretrain
from fastssl.train.methods.simclr import SimCLR

TINY = {
    "limit": 160, "batch_size": 48, "width": 4, "epochs": 2, "hidden": 8, "dim": 8,
    "accelerator": "cpu", "evaluate": False,
}  # fmt: skip


def curve(out, event="step"):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["agreement"]) for line in lines if line["event"] == event]


def without_batch_norm(module):
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, nn.GroupNorm(2, child.num_features))
        else:
            without_batch_norm(child)


@pytest.fixture
def plain(monkeypatch):
    """SimCLR with group norm, for which an image is alone in the batch."""
    monkeypatch.setattr(method, "_methods", dict(method._methods))

    class Plain(SimCLR):
        name = "plain"

        def __init__(self, config, data):
            super().__init__(config, data)
            without_batch_norm(self)

    return "plain"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_curve_is_that_of_one_pass(plain, tmp_path, precision):
    keywords = TINY | {"precision": precision}
    whole = pretrain(plain, out=tmp_path / "whole", **keywords)
    parts = pretrain(plain, out=tmp_path / "parts", chunk_size=20, **keywords)
    exact = precision == "32-true"
    expected = torch.tensor(curve(whole.out))
    assert len(expected) == 6
    torch.testing.assert_close(
        torch.tensor(curve(parts.out)), expected, rtol=1e-4 if exact else 2e-2, atol=0
    )
    if exact:
        for p, q in zip(parts.backbone.parameters(), whole.backbone.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_chunks_pass_the_encoder(tmp_path, monkeypatch):
    sizes = []
    forward = SimCLR.forward
    monkeypatch.setattr(
        SimCLR, "forward", lambda self, *v: sizes.append([len(x) for x in v]) or forward(self, *v)
    )
    pretrain("simclr", out=tmp_path, chunk_size=20, **TINY | {"epochs": 1})
    assert sizes == [[20], [20], [8]] * 4 * 3


def test_a_run_in_chunks_resumes(tmp_path, monkeypatch):
    keywords = TINY | {"chunk_size": 20}
    whole = pretrain("simclr", out=tmp_path / "whole", **keywords)

    def stop(self, progress):
        if progress > 0.5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain("simclr", out=tmp_path / "broken", **keywords)
    resumed = pretrain("simclr", out=tmp_path / "broken", resume=True, **keywords)
    assert curve(resumed.out) == curve(whole.out)
    first, second = whole.backbone.state_dict(), resumed.backbone.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(UsageError, match=r"^chunk_size: the run in .* has 20, cannot resume"):
        pretrain("simclr", out=resumed.out, resume=True, **keywords | {"chunk_size": 16})


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (1, "got 1, must be at least 2"),
        (2.0, "got 2.0, must be int"),
        (47, "got 47, leaves one of 48 images for the last chunk, too few for batch norm"),
    ],
)
def test_chunk_sizes_that_cannot_be(size, message):
    with pytest.raises(UsageError, match=f"^chunk_size: {message}"):
        pretrain("simclr", chunk_size=size, **TINY)


def test_the_flag(tmp_path):
    flags = "--limit 64 --batch-size 32 --width 4 --epochs 1 --no-evaluate --chunk-size 12"
    command = ["train", "simclr", "--out", str(tmp_path), *flags.split(), "--accelerator", "cpu"]
    made = CliRunner().invoke(cli.app, command)
    assert made.exit_code == 0, made.output
    assert '"chunk_size": 12' in (tmp_path / "config.json").read_text()

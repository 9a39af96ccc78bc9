"""Runs that are killed at any instant and resumed; damaged files; full disks."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from lightning_fabric import Fabric

from fastssl.train import UsageError, pretrain
from fastssl.train.methods.simclr import SimCLR

TINY = {
    "limit": 96, "batch_size": 48, "width": 4, "epochs": 2, "hidden": 8, "dim": 8,
    "accelerator": "cpu", "evaluate": False, "online": 1,
}  # fmt: skip


def weights(out):
    return torch.load(out / "exported.pt", weights_only=True)


def same_weights(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    pretrain("simclr", out=out, **TINY)
    return out


def in_child(function):
    """Runs a function in a process of its own, and returns how that ended, as `os.waitpid` says."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as error:
            print(error, flush=True)
            os._exit(3)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number, function, instead=kill):
    calls = iter(range(1, number + 1))

    def counted(*args, **keywords):
        if next(calls, 0) == number:
            return instead(*args, **keywords)
        return function(*args, **keywords)

    return counted


def half_of_it(fabric, path, state):
    """The first half of a checkpoint, and then the end."""
    torch.save({"epoch": 1}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    kill()


def test_a_finished_run_keeps_its_results_when_it_is_resumed(tmp_path):
    options = TINY | {"evaluate": True}
    pretrain("simclr", out=tmp_path, **options)
    results = (tmp_path / "results.json").read_text()
    pretrain("simclr", out=tmp_path, resume=True, **TINY)
    assert (tmp_path / "results.json").read_text() == results and '"logistic"' in results


def test_results_of_a_run_that_goes_on_are_void(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "after_step", at_call(3, SimCLR.after_step))
        in_child(lambda: pretrain("simclr", out=tmp_path, **TINY))
    (tmp_path / "evaluation.json").write_text("of the first epoch")
    pretrain("simclr", out=tmp_path, resume=True, **TINY)
    assert not (tmp_path / "evaluation.json").exists()


# All that a run replaces: configuration, environment; sums, the first checkpoint, sums; metrics;
# sums, the previous and the last checkpoint, sums, of both epochs; weights and results.
@pytest.mark.parametrize(
    ("owner", "name", "number", "instead"),
    [
        *[(os, "replace", number, kill) for number in range(1, 17)],
        *[(SimCLR, "after_step", number, kill) for number in (1, 2, 3, 4)],
        *[(Fabric, "save", number, half_of_it) for number in (2, 3)],
    ],
)
def test_killed_at_any_instant_it_ends_where_an_unbroken_run_does(
    unbroken, tmp_path, monkeypatch, owner, name, number, instead
):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, at_call(number, getattr(owner, name), instead))
        ended = in_child(lambda: pretrain("simclr", out=tmp_path, **TINY))
    assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL
    if (tmp_path / "metrics.jsonl").exists():
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"event": "st')
    pretrain("simclr", out=tmp_path, resume=True, **TINY)
    assert same_weights(weights(unbroken), weights(tmp_path))
    assert losses(unbroken) == losses(tmp_path)


def test_the_command_is_killed_and_resumed(tmp_path):
    flags = "--limit 96 --batch-size 48 --width 4 --hidden 8 --dim 8 --online 1 --no-evaluate"
    command = [sys.executable, "-m", "fastssl", "train", "simclr", *flags.split()]
    command += ["--accelerator", "cpu", "--epochs", "40", "--out", str(tmp_path / "killed")]
    threads = {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | threads)
    metrics, started = tmp_path / "killed" / "metrics.jsonl", time.monotonic()
    while not (metrics.exists() and metrics.read_text().count('"event": "epoch"') > 2):
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() - started < 120
        time.sleep(0.01)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    keywords = TINY | {"epochs": 40}
    pretrain("simclr", out=tmp_path / "killed", resume=True, **keywords)
    pretrain("simclr", out=tmp_path / "whole", **keywords)
    assert same_weights(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is cut short"),
        (lambda whole: b"", "is empty"),
        (lambda whole: b"years of work", "is no checkpoint: it begins with b'years of'"),
        (lambda whole: whole.replace(b"epoch", b"opoch"), "is not the checkpoint that this run"),
    ],
)
def test_a_damaged_checkpoint_is_an_error_and_the_one_before_works(
    unbroken, tmp_path, damage, message
):
    monkey = at_call(4, SimCLR.after_step)
    original, SimCLR.after_step = SimCLR.after_step, monkey
    try:
        in_child(lambda: pretrain("simclr", out=tmp_path, **TINY))
    finally:
        SimCLR.after_step = original
    last = tmp_path / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    with pytest.raises(UsageError, match=rf"^resume: .*last.ckpt {message}.*previous.ckpt beside"):
        pretrain("simclr", out=tmp_path, resume=True, **TINY)
    last.write_bytes((tmp_path / "previous.ckpt").read_bytes())
    pretrain("simclr", out=tmp_path, resume=True, **TINY)
    assert same_weights(weights(unbroken), weights(tmp_path))


def test_resume_refuses_what_it_cannot_continue(unbroken, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="^out: .*holds no run"):
        pretrain("simclr", out=tmp_path, resume=True, **TINY)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="^out: .*holds no run"):
        pretrain("simclr", out=tmp_path, resume=True, **TINY)
    with pytest.raises(UsageError, match=r"^lr: the run in .* has 0.002, cannot resume .* 0.1"):
        pretrain("simclr", out=unbroken, resume=True, lr=0.1, **TINY)


def test_a_full_disk_is_an_error_and_the_last_checkpoint_whole(unbroken, tmp_path, capfd):
    """No file may grow beyond half a checkpoint after the first epoch."""
    size = (unbroken / "last.ckpt").stat().st_size

    def fill(self, progress):
        if progress > 0.5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))

    original, SimCLR.after_step = SimCLR.after_step, fill
    try:
        ended = in_child(lambda: pretrain("simclr", out=tmp_path, **TINY))
    finally:
        SimCLR.after_step = original
    assert os.WIFEXITED(ended) and os.WEXITSTATUS(ended) == 3
    printed = capfd.readouterr().out
    assert f"out: cannot write {tmp_path / 'last.ckpt'}: File too large" in printed
    assert "the checkpoint before it is whole" in printed
    assert not list(tmp_path.glob("*.part"))
    pretrain("simclr", out=tmp_path, resume=True, **TINY)
    assert same_weights(weights(unbroken), weights(tmp_path))


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="^out: cannot write to /proc/fastssl: "):
        pretrain("simclr", out="/proc/fastssl", **TINY)


def test_a_loss_that_is_not_finite_leaves_what_led_to_it(tmp_path, monkeypatch):
    forward = SimCLR.forward

    def spoilt(self, *views):
        logs = forward(self, *views)
        self.calls = getattr(self, "calls", 0) + 1
        return logs | {"loss": logs["loss"] * (float("nan") if self.calls == 3 else 1)}

    monkeypatch.setattr(SimCLR, "forward", spoilt)
    with pytest.raises(UsageError, match="^lr: the loss is nan at step 3; .*not-finite.pt holds"):
        pretrain("simclr", out=tmp_path, **TINY)
    kept = torch.load(tmp_path / "not-finite.pt", weights_only=True)
    assert (kept["step"], kept["epoch"], kept["parameters_after"]) == (3, 2, 2)
    assert kept["sample_ids"].unique().numel() == 48 and kept["sample_ids"].max() < 96
    # The parameters are those before the step, which are those of the last checkpoint.
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["model"]
    assert all(torch.equal(kept["model"][name], last[name]) for name in ("projector.0.weight",))

"""Two processes: the curve of one, batch norm over both, and the end of one ends the other."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fastssl.train import UsageError, pretrain, processes

SCRIPT = Path(__file__).with_name("in_processes.py")
SHORT = {
    "limit": 96, "batch_size": 32, "epochs": 2, "accelerator": "cpu", "evaluate": False,
    "online": 0,
}  # fmt: skip
#: Float64, because max-pooling's ties and Adam make much of float32's last digit.
EXACT = SHORT | {"precision": "64-true"}
SMALL = {"width": 4}
RUNS = {
    "simclr": EXACT | SMALL | {"hidden": 8, "dim": 8},
    "moco": EXACT | SMALL,
    "byol": EXACT | SMALL,
    "simsiam": EXACT | SMALL,
    "dino": EXACT | SMALL,
    "supervised": EXACT | SMALL,
    "rotation": EXACT | SMALL,
    "jigsaw": EXACT | SMALL,
    "clip": EXACT | SMALL,
    "relative-patch": EXACT | SMALL | {"hidden": 8},
    "autoencoder": EXACT | SMALL | {"decoder_width": 4, "noise": 0.25},
    "gan": EXACT | SMALL | {"generator_width": 4, "noise_size": 8},
    "patch-order": SHORT | {"width": 16},
    "mae": SHORT,
    "simmim": SHORT,
    "mlm": SHORT | {"width": 16},
}


def start(out, runs, victim=-1):
    """Two processes of SCRIPT, as torchrun starts them but without what it does when one ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), str(out), json.dumps(runs), str(victim)]
    return [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return torch.tensor([line["loss"] for line in lines if line["event"] == "step"])


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    runs = [(name, name, keywords) for name, keywords in RUNS.items()]
    for process in start(out, runs):
        printed = process.communicate(timeout=400)[0]
        assert process.returncode == 0, printed
    return out


@pytest.mark.parametrize("method", RUNS)
def test_two_processes_have_the_loss_curve_of_one(of_two, tmp_path, method):
    pretrain(method, out=tmp_path, **RUNS[method])
    one, two = losses(tmp_path), losses(of_two / method)
    assert len(one) == 6
    torch.testing.assert_close(two, one, rtol=1e-4, atol=0)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_end_of_one_process_ends_the_other_with_an_error(tmp_path, victim):
    endless = RUNS["simclr"] | {"epochs": 10_000}
    pair = start(tmp_path, [("run", "simclr", endless)], victim)
    assert pair[victim].wait(timeout=120) == -signal.SIGKILL
    before = time.monotonic()
    survivor = pair[1 - victim]
    printed = survivor.communicate(timeout=60)[0]
    assert survivor.returncode not in (0, None) and "Connection" in printed
    assert time.monotonic() - before < 60


def test_torchrun_starts_the_command(tmp_path):
    launcher = "torch.distributed.run --standalone --nproc-per-node 2 -m fastssl train simclr"
    flags = "--epochs 1 --limit 96 --batch-size 32 --width 4 --online 0 --accelerator cpu"
    command = [sys.executable, "-m", *launcher.split(), *flags.split()]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"written to {tmp_path}") == 1
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 2
    assert json.loads((tmp_path / "results.json").read_text())["rows"]


def test_the_batch_must_be_shareable(monkeypatch):
    with pytest.raises(UsageError, match="^batch_size: got 33, must be a multiple of devices"):
        pretrain("simclr", batch_size=33, devices=2, accelerator="cpu")


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 5)])
def test_synchronised_batch_norm_is_batch_norm(alone, affine, shape):
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    plain = kind(3, affine=affine).double()
    synced = processes.SyncBatchNorm(3, affine=affine).double()
    x = (5 + torch.randn(shape, dtype=torch.float64)).requires_grad_()
    y = x.detach().clone().requires_grad_()
    for _ in range(2):
        first, second = plain(x), synced(y)
        torch.testing.assert_close(first, second)
    weight = torch.randn_like(x)
    (first * weight).sum().backward()
    (second * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for name, buffer in plain.state_dict().items():
        torch.testing.assert_close(synced.state_dict()[name], buffer)
    torch.testing.assert_close(plain.eval()(x), synced.eval()(y))

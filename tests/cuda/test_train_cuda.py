"""Training steps recorded as CUDA graphs. What stands for a GPU: tests/train/test_cuda_graph.py.

The first half needs nothing but torch; the trainer itself needs its extra packages.
"""

import json
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest
import torch
from train_extras import missing

import fastssl
from fastssl import augment, nt_xent

pytestmark = [pytest.mark.cuda]

STEPS, BATCH = 9, 64


class Called:
    """Takes steps eagerly, from the same buffers."""

    def __init__(self, device=None):
        pass

    def warm_up(self, function):
        return function()

    def capture(self, function):
        return function


def loaded():
    """The trainer's modules that need no extra packages, also where those are missing."""
    try:
        import_module("fastssl.train")
    except ModuleNotFoundError:
        package = types.ModuleType("fastssl.train")
        package.__path__ = [str(Path(fastssl.__file__).parent / "train")]
        sys.modules["fastssl.train"] = package
    return import_module("fastssl.train.networks"), import_module("fastssl.train.replay")


@pytest.fixture(scope="module")
def parts():
    before = dict(sys.modules)
    yield loaded()
    for name in [name for name in sys.modules if name.startswith("fastssl.train")]:
        if name not in before:
            del sys.modules[name]


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


class SimCLRStep:
    """A whole step of SimCLR: views, network, loss, gradients, optimizer."""

    def __init__(self, parts, kind, autocast=False, ask=False):
        networks, replay = parts
        torch.manual_seed(0)
        model = torch.nn.Sequential(networks.Small(3, 8), networks.mlp(32, 32, 16))
        self.model = model.to("cuda", memory_format=torch.channels_last)
        # Adam makes much of the last digit of a gradient that is zero but for rounding.
        self.optimizer = torch.optim.AdamW(model.parameters(), 1.0, eps=1e-4)
        replay.make_capturable(self.optimizer, torch.device("cuda"))
        self.augment = augment.SimCLR(32, seed=7)
        self.autocast, self.ask = autocast, ask
        graphs = Called() if kind == "eager" else replay.CudaGraphs(torch.device("cuda"))
        self.taken = replay.Replayed(self.step, self.optimizer, graphs)

    def step(self, images, sample_ids, step):
        self.views = self.augment(images, sample_ids=sample_ids, step=step)
        self.optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.autocast):
            loss = nt_xent(*map(self.model, self.views))
        loss.backward()
        self.optimizer.step()
        if self.ask:
            loss.item()
        return {"loss": loss}

    def run(self, first=0, last=STEPS):
        losses = []
        for step in range(first, last):
            images, ids = batch(step)
            self.optimizer.param_groups[0]["lr"] = rate(step)
            losses.append(self.taken(images, ids, step)["loss"].clone())
            assert self.optimizer.param_groups[0]["lr"] == rate(step)
        return torch.stack(losses).cpu()

    def state(self):
        return {k: v.cpu().clone() for k, v in self.model.state_dict().items()}


def rate(step):
    return 1e-3 * (step + 1) / STEPS


def batch(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 3, 40, 40), dtype=torch.uint8, generator=generator)
    ids = torch.randperm(1000, generator=generator)[:BATCH]
    return images.cuda(), ids.cuda()


def close(found, expected, allowed=1e-5):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=allowed, msg=name)


def spread(one, two):
    """The largest difference of two dicts of tensors, as a number."""
    assert one.keys() == two.keys()
    values = [(one[k].double() - two[k].double()).abs().max() for k in one if one[k].numel()]
    return max(x.item() for x in values)


def alike(found, first, second, allowed):
    """The same bits where two runs of the same kind agree to the bit: else as close as they are.

    Each is (state, losses); where two runs differ, a third may be some times as far from them.
    """
    found, first, second = (
        {**state, "its losses": losses} for state, losses in (found, first, second)
    )
    if all(torch.equal(value, second[name]) for name, value in first.items()):
        assert [name for name, value in first.items() if not torch.equal(found[name], value)] == []
    else:
        close(found, first, max(allowed, 10 * spread(first, second)))


@pytest.mark.parametrize("autocast", [False, True])
def test_captured_steps_are_the_eager_ones(parts, deterministic, autocast):
    eager, again = (SimCLRStep(parts, "eager", autocast) for _ in range(2))
    captured = SimCLRStep(parts, "captured", autocast)
    losses = [of.run() for of in (eager, again, captured)]
    expected, repeated, found = (of.state() for of in (eager, again, captured))
    alike(*zip((found, expected, repeated), (losses[2], *losses[:2]), strict=True), allowed=1e-5)
    # Each step counts once, those before the recording too.
    assert int(found["0.2.num_batches_tracked"]) == 2 * STEPS
    state = captured.optimizer.state[next(captured.model.parameters())]
    assert int(state["step"]) == STEPS


def test_each_replay_draws_its_own_views(parts):
    captured = SimCLRStep(parts, "captured")
    for step in range(STEPS):
        images, ids = batch(step)
        captured.taken(images, ids, step)
        expected = augment.SimCLR(32, seed=7)(images, sample_ids=ids, step=step)
        assert all(map(torch.equal, captured.views, expected))


def test_the_rate_is_read_at_each_replay(parts):
    captured = SimCLRStep(parts, "captured")
    captured.run(0, 5)
    before = captured.state()["1.0.weight"]
    captured.optimizer.param_groups[0]["lr"] = 0.0
    captured.taken(*batch(5), 5)
    assert torch.equal(captured.state()["1.0.weight"], before)
    captured.optimizer.param_groups[0]["lr"] = 1e-3
    captured.taken(*batch(6), 6)
    assert not torch.equal(captured.state()["1.0.weight"], before)


def test_replays_do_not_wait_for_the_device(parts):
    captured = SimCLRStep(parts, "captured")
    captured.run(0, 5)
    batches = [batch(step) for step in range(5, STEPS)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, given in enumerate(batches, 5):
            captured.taken(*given, step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_waits_is_an_error():
    """In a process of its own: after a recording that failed, torch is not what it was."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_train_cuda as t; "
    code += "t.SimCLRStep(t.loaded(), 'captured', ask=True).run()"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and "cuda_graph: this step cannot be recorded" in ended.stderr


SHORT = {
    "limit": 96, "batch_size": 32, "epochs": 3, "width": 4, "accelerator": "cuda",
    "evaluate": False, "online": 1,
}  # fmt: skip
RUNS = {
    "simclr": {"hidden": 8, "dim": 8},
    "moco": {},
    "moco, v3": {"version": "v3"},
    "byol": {},
    "simsiam": {},
    "dino": {"frozen_epochs": 0},
    "mae": {"width": 96},
    "simmim": {"width": 96},
    "rotation": {},
    "jigsaw": {},
    "relative-patch": {"hidden": 8},
    "patch-order": {"width": 16},
    "autoencoder": {"decoder_width": 4, "noise": 0.25},
    "gan": {"generator_width": 4, "noise_size": 8},
    "clip": {},
    "clip, siglip": {"loss": "siglip"},
    "mlm": {"width": 16},
    "supervised": {},
}


@pytest.fixture(scope="module")
def train():
    if reason := missing():
        pytest.skip(reason)
    return import_module("fastssl.train")


def trained(train, name, out, **keywords):
    train.pretrain(name.partition(",")[0], out=out, **SHORT | RUNS[name] | keywords)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["event"] == "step"]
    return torch.load(out / "exported.pt", "cpu", weights_only=True), torch.tensor(losses)


@pytest.mark.parametrize("name", RUNS)
def test_captured_runs_are_the_eager_ones(train, deterministic, monkeypatch, tmp_path, name):
    """The same optimizer, steps and buffers, recorded or not."""
    from fastssl.train import replay

    captured = trained(train, name, tmp_path / "captured", cuda_graph=True)
    with monkeypatch.context() as patch:
        patch.setattr(replay, "CudaGraphs", Called)
        first, second = (trained(train, name, tmp_path / x, cuda_graph=True) for x in "ab")
    assert len(captured[1]) == 9
    alike(captured, first, second, allowed=1e-3)


def test_a_captured_run_is_that_of_the_trainer_without(train, deterministic, tmp_path):
    """Float64, because Adam makes much of the last digit; another kernel of the optimizer."""
    options = {"precision": "64-true"}
    eager, losses = trained(train, "simsiam", tmp_path / "eager", **options)
    found, again = trained(train, "simsiam", tmp_path / "graph", cuda_graph=True, **options)
    torch.testing.assert_close(again, losses, rtol=1e-5, atol=1e-6)
    close(found, eager)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_is_the_unbroken_one(train, deterministic, monkeypatch, tmp_path, precision):
    from fastssl.train.methods.simclr import SimCLR

    options = {"cuda_graph": True, "precision": precision}
    first, second = (trained(train, "simclr", tmp_path / x, **options) for x in "ab")

    def stop(self, progress):
        if progress > 4 / 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SimCLR, "after_step", stop)
        trained(train, "simclr", tmp_path / "broken", **options)
    found = trained(train, "simclr", tmp_path / "broken", resume=True, **options)
    alike(found, first, second, allowed=1e-3)

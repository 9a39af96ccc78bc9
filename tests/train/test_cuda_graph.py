"""Steps that are recorded and replayed, on the CPU: what stands for the graph is in graph_tape.py.

On a GPU: tests/cuda/test_train_cuda.py.
"""

import json

import pytest
import torch
from graph_tape import Called, Tape
from test_processes import RUNS
from typer.testing import CliRunner

from fastssl import MemoryBank, cli
from fastssl.train import UsageError, method, pretrain, replay
from fastssl.train._seeds import derived
from fastssl.train.methods.dino import DINOConfig
from fastssl.train.methods.simclr import SimCLR, SimCLRConfig

SHORT = {
    "limit": 96, "batch_size": 32, "epochs": 3, "accelerator": "cpu", "evaluate": False,
    "online": 1,
}  # fmt: skip
TINY = SHORT | {"width": 4, "hidden": 8, "dim": 8}


def run(name, out, **keywords):
    pretrain(name, out=out, **keywords)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    kept = torch.load(out / "last.ckpt", weights_only=True)
    return kept, [(line["step"], line["lr"], line["loss"]) for line in steps]


def same(first, second):
    (one, of_one), (two, of_two) = first, second
    assert of_one == of_two and len(of_one) == 9
    assert one["model"].keys() == two["model"].keys()
    for key, value in one["model"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, two["model"][key]), key


@pytest.fixture
def stand_in(monkeypatch):
    """Makes runs replay on the CPU; gives what replays."""

    def use(kind):
        made = []

        def build(device):
            made.append(kind(device))
            return made[-1]

        monkeypatch.setattr(replay, "check", lambda device, processes: None)
        monkeypatch.setattr(replay, "CudaGraphs", build)
        return made

    return use


@pytest.fixture
def fused(monkeypatch):
    """The optimizer's kernel that counts steps in a tensor, as on a GPU."""
    plain = method.Method.optimizer

    def optimizer(self):
        made = plain(self)
        for group in made.param_groups:
            group["fused"] = True
        return made

    monkeypatch.setattr(method.Method, "optimizer", optimizer)


#: Keywords with which a method's steps can be recorded.
CAPTURABLE = {name: {**keywords, **SHORT, "online": 0} for name, keywords in RUNS.items()}
CAPTURABLE["dino"] |= {"frozen_epochs": 0}
CAPTURABLE |= {"moco, v3": CAPTURABLE["moco"] | {"version": "v3"}}
CAPTURABLE |= {"clip, siglip": CAPTURABLE["clip"] | {"loss": "siglip"}}


def test_replayed_steps_are_those_of_the_eager_trainer(stand_in, tmp_path):
    eager = run("simclr", tmp_path / "eager", **TINY)
    made = stand_in(Called)
    same(eager, run("simclr", tmp_path / "graph", cuda_graph=True, **TINY))
    (called,) = made
    assert called.events == ["warm-up"] * 3 + ["capture"] + ["replay"] * 6


@pytest.mark.parametrize("name", CAPTURABLE)
def test_nothing_of_a_recorded_step_is_left_to_the_host(
    stand_in, fused, monkeypatch, tmp_path, name
):
    """Operators, addresses and numbers of one step, repeated, take all later ones."""
    kind, keywords = name.partition(",")[0], CAPTURABLE[name]
    eager = run(kind, tmp_path / "eager", **keywords)
    made = stand_in(Tape)
    # As on a GPU while a graph is recorded: the rows move, not the window.
    monkeypatch.setattr(MemoryBank, "_captured", lambda self: made[0].recording)
    same(eager, run(kind, tmp_path / "graph", cuda_graph=True, **keywords))
    (tape,) = made
    assert tape.events == ["warm-up"] * 3 + ["capture"] + ["replay"] * 6
    assert any("fused_adamw" in name for name in tape.names)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_is_resumed_ends_as_one_that_was_not(
    stand_in, fused, monkeypatch, tmp_path, epochs
):
    made = stand_in(Tape)
    unbroken = run("simclr", tmp_path / "unbroken", cuda_graph=True, **TINY)

    def stop(self, progress):
        if progress > (3 * epochs + 1) / 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SimCLR, "after_step", stop)
        run("simclr", tmp_path / "broken", cuda_graph=True, **TINY)
    same(unbroken, run("simclr", tmp_path / "broken", cuda_graph=True, resume=True, **TINY))
    # A new process warms up anew, with steps of the run.
    left = 9 - 3 * epochs
    assert made[-1].events == ["warm-up"] * 3 + ["capture"] * (left > 3) + ["replay"] * (left - 3)


def test_a_run_without_a_step_to_record_is_taken_eagerly(stand_in, tmp_path):
    made = stand_in(Called)
    pretrain("simclr", out=tmp_path, cuda_graph=True, **TINY | {"epochs": 1, "limit": 64})
    assert made[0].events == ["warm-up"] * 2


def test_a_step_that_asks_the_host_is_noticed_by_the_tape(stand_in, fused, monkeypatch, tmp_path):
    """The stand-in itself: what a method decides on the host is not decided again."""
    eager = run("simclr", tmp_path / "eager", **TINY)
    forward = SimCLR.forward

    def counted(self, *views):
        self.calls = getattr(self, "calls", 0) + 1
        logs = forward(self, *views)
        return logs | {"loss": logs["loss"] * (2 if self.calls % 2 else 1)}

    monkeypatch.setattr(SimCLR, "forward", counted)
    other = run("simclr", tmp_path / "other", **TINY)
    stand_in(Tape)
    taped = run("simclr", tmp_path / "graph", cuda_graph=True, **TINY)
    assert eager[1] != other[1] and other[1][:4] == taped[1][:4] and other[1] != taped[1]


def test_a_loss_that_is_not_finite_is_seen_at_the_next_reading(stand_in, monkeypatch, tmp_path):
    stand_in(Called)
    forward = SimCLR.forward

    def spoilt(self, *views):
        logs = forward(self, *views)
        self.calls = getattr(self, "calls", 0) + 1
        return logs | {"loss": logs["loss"] * (float("nan") if self.calls == 8 else 1)}

    monkeypatch.setattr(SimCLR, "forward", spoilt)
    with pytest.raises(UsageError, match="^lr: the loss is nan at step 8; .*not-finite.pt holds"):
        pretrain("simclr", out=tmp_path, cuda_graph=True, **TINY | {"epochs": 4, "online": 0})
    kept = torch.load(tmp_path / "not-finite.pt", weights_only=True)
    assert (kept["step"], kept["parameters_after"]) == (8, 9)
    # The batch's own ids, not what stands in the buffers by now.
    order = torch.randperm(96, generator=torch.Generator().manual_seed(derived(0, 2)))
    assert torch.equal(kept["sample_ids"], order[32:64])


def test_what_cannot_be_recorded_is_an_error_that_says_why(stand_in, monkeypatch, tmp_path):
    class Refusing(Called):
        def capture(self, function):
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nMore.")
            except RuntimeError:
                # As torch's context does when it ends a capture that has failed.
                raise RuntimeError("operation failed due to a previous error") from None

    stand_in(Refusing)
    message = "^cuda_graph: this step cannot be recorded, train without: operation not permitted"
    with pytest.raises(UsageError, match=f"{message} when stream is capturing$"):
        pretrain("simclr", out=tmp_path, cuda_graph=True, **TINY)


@pytest.mark.parametrize(
    ("config", "keywords", "message"),
    [
        (SimCLRConfig, {"devices": 2}, r"cannot be combined with devices \(2\)"),
        (SimCLRConfig, {"precision": "16-mixed"}, "cannot be combined with precision='16-mixed'"),
        (SimCLRConfig, {"chunk_size": 8}, r"cannot be combined with chunk_size \(8\)"),
        (DINOConfig, {}, r"cannot be combined with frozen_epochs \(1\), .*; give frozen_epochs 0"),
        (SimCLRConfig, {"cuda_graph": 1}, "got 1, must be bool"),
    ],
)
def test_what_cannot_be_combined_is_refused_before_training(config, keywords, message):
    with pytest.raises(UsageError, match=f"^cuda_graph: {message}"):
        config.from_keywords({"cuda_graph": True, **keywords})


def test_without_a_gpu_it_is_an_error_before_training(tmp_path):
    with pytest.raises(UsageError, match="^cuda_graph: needs a CUDA device, .* would be on cpu$"):
        pretrain("simclr", out=tmp_path / "run", cuda_graph=True, **TINY)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="^cuda_graph: cannot be combined with 2 processes"):
        replay.check(torch.device("cuda"), 2)


def test_the_command_has_the_flag_and_a_file_the_keyword(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("cuda_graph: true\naccelerator: cpu\n")
    for given in (["--cuda-graph", "--accelerator", "cpu"], ["--config", str(file)]):
        made = CliRunner().invoke(cli.app, ["train", "simclr", "--dry-run", *given])
        assert made.exit_code == 2 and made.stderr.startswith("fastssl: cuda_graph: needs a CUDA")


def test_the_plan_says_that_steps_are_replayed(stand_in, tmp_path):
    stand_in(Called)
    command = ["train", "simclr", "--dry-run", "--cuda-graph", "--accelerator", "cpu"]
    made = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "x")])
    assert "1 x cpu, 32-true, steps replayed as a CUDA graph" in made.output


def test_a_run_from_before_the_keyword_can_be_resumed(tmp_path):
    pretrain("simclr", out=tmp_path, **TINY)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described.pop("cuda_graph") is False
    (tmp_path / "config.json").write_text(json.dumps(described))
    pretrain("simclr", out=tmp_path, resume=True, **TINY)
    with pytest.raises(UsageError, match="^cuda_graph: the run in .* has False, cannot resume"):
        pretrain("simclr", out=tmp_path, resume=True, cuda_graph=True, **TINY)


def test_inputs_of_another_shape_are_refused():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter], 0.1)
    steps = replay.Replayed(lambda inputs, ids, step: {"loss": inputs.sum()}, optimizer, Called())
    steps(torch.ones(4, 2), torch.arange(4), 0)
    with pytest.raises(ValueError, match=r"^inputs: got shape \(3, 2\), .* have \(4, 2\)$"):
        steps(torch.ones(3, 2), torch.arange(3), 1)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_an_optimizer_of_a_gpu_keeps_its_state_there():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter], 0.1)
    replay.make_capturable(optimizer, torch.device("cpu"))
    assert not optimizer.param_groups[0]["capturable"]
    replay.make_capturable(optimizer, torch.device("cuda"))
    group = optimizer.param_groups[0]
    assert group["capturable"] and group["fused"] and not group["foreach"]
    plain = torch.optim.SGD([parameter], 0.1)
    replay.make_capturable(plain, torch.device("cuda"))
    assert "capturable" not in plain.param_groups[0]

"""Gradient caching: batch norm and other state, memory, errors."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastssl import cached_step, nt_xent

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(dtype=torch.float64):
    return nn.Sequential(
        nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 4)
    ).to(dtype)


def views(dtype=torch.float64, count=21):
    return list(torch.randn(2, count, 6, dtype=dtype))


def in_chunks(encoder, view, size):
    return torch.cat([encoder(chunk) for chunk in view.split(size)])


def assert_same_gradients(module, other, tolerance=1e-12):
    for p, q in zip(module.parameters(), other.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= tolerance * max(1, q.grad.abs().max())


def assert_same_buffers(module, other):
    first, second = dict(module.named_buffers()), dict(other.named_buffers())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_batch_norm_by_chunk_updates_its_statistics_once():
    encoder, x = network(), views()
    whole = copy.deepcopy(encoder)
    torch.manual_seed(1)
    nt_xent(*(in_chunks(whole, view, 8) for view in x)).backward()
    torch.manual_seed(1)
    cached_step(encoder, x, nt_xent, chunk_size=8)
    assert_same_gradients(encoder, whole)
    assert_same_buffers(encoder, whole)
    assert encoder[1].num_batches_tracked == 6 and encoder.training


def test_fixed_batch_norm_is_one_pass_whatever_the_chunks():
    encoder, x = network(), views()
    in_chunks(encoder, x[0] + 1, 7)
    encoder[3].p = 0.0
    encoder.zero_grad()
    before = copy.deepcopy(encoder)
    whole = copy.deepcopy(encoder)
    whole[1].eval()
    nt_xent(*(whole(view) for view in x)).backward()
    for size in (None, 1, 8):
        encoder.zero_grad()
        cached_step(encoder, x, nt_xent, chunk_size=size, batch_norm="fixed")
        assert_same_gradients(encoder, whole)
        assert_same_buffers(encoder, before)
        assert all(module.training for module in encoder.modules())


def test_fixed_batch_norm_trains_again_after_an_error():
    encoder = network()
    with pytest.raises(ZeroDivisionError):
        cached_step(encoder, views(), lambda *z: 1 / 0, chunk_size=8, batch_norm="fixed")
    assert all(module.training for module in encoder.modules())


class Stateful(nn.Module):
    """Outputs that depend on buffers: small, large, and one that is exchanged at each call."""

    def __init__(self):
        super().__init__()
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)).double()
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))
        self.register_buffer("large", torch.zeros(1 << 17, dtype=torch.float64))
        self.register_buffer("still", torch.zeros(1 << 17, dtype=torch.float64))
        self.register_buffer("absent", None)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.large[:6] += x.detach().sum(0)
        return self.linear(x - self.mean) + self.large[:6].tanh() + self.still[:6]


@pytest.mark.parametrize("training", [True, False])
def test_buffers_are_replayed(training):
    encoder, x = Stateful().train(training), views()
    whole = copy.deepcopy(encoder)
    nt_xent(*(in_chunks(whole, view, 8) for view in x)).backward()
    cached_step(encoder, x, nt_xent, chunk_size=8)
    assert_same_gradients(encoder, whole)
    assert_same_buffers(encoder, whole)


def test_a_graph_over_the_same_encoder_survives():
    """Buffers in evaluation mode are not written to, or backward would refuse."""
    encoder, x = network().eval(), views()
    other = encoder(x[0]).sum()
    cached_step(encoder, x, nt_xent, chunk_size=8)
    other.backward()


@pytest.mark.slow
def test_batch_8192_trains_in_the_memory_of_batch_256():
    """Peaks of resident memory, in a process each, of a whole step.

    All embeddings and their gradients come on top, and a quarter for what the loss holds and the
    peak's noise.
    """
    # Else the allocator keeps what was freed, and the peak is not of what is held.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    peaks = []
    for count, size in ((256, 0), (8192, 256)):
        command = [sys.executable, "-c", MEMORY, str(count), str(size)]
        made = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert made.returncode == 0, made.stderr
        peaks.append(json.loads(made.stdout))
    if None in peaks:
        pytest.skip("Linux does not tell the peak of resident memory here")
    embeddings = 2 * 2 * 8192 * 64 * 4 / 2**20
    assert peaks[1] <= 1.25 * peaks[0] + embeddings, peaks
    assert 20 < peaks[0] < 100, peaks  # or another part than activations was measured


MEMORY = """
import json, sys
import torch
from torch import nn
from benchmarks.measure import peak_memory
from fastssl import cached_step, nt_xent

count, size = int(sys.argv[1]), int(sys.argv[2]) or None
torch.manual_seed(0)
torch.set_num_threads(1)
encoder = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
    nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(64, 64),
)
optimizer = torch.optim.SGD(encoder.parameters(), 0.1)
def step(count, size):
    optimizer.zero_grad()
    cached_step(encoder, views[:, :count].unbind(), nt_xent, chunk_size=size)
    optimizer.step()
views = torch.randn(2, count, 3, 16, 16)
step(16, 8)  # what is set up once
print(json.dumps(peak_memory(lambda: step(count, size))))
"""


def returning(value):
    class Encoder(nn.Module):
        def forward(self, *_, **__):
            return value

    return Encoder()


LINEAR = nn.Linear(6, 4)
X = torch.zeros(3, 6)
CALL = {"encoder": LINEAR, "views": [X, X], "loss": nt_xent, "chunk_size": 2}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"encoder": lambda x: x}, TypeError, "encoder: got function, must be a module or a seq"),
        ({"encoder": [LINEAR, 3]}, TypeError, r"encoder\[1\]: got int, must be a module"),
        ({"encoder": [LINEAR]}, ValueError, "encoder: got 1 modules, must be one for each view, 2"),
        ({"views": X}, TypeError, "views: got Tensor, must be a list or tuple of views"),
        ({"views": []}, ValueError, "views: got none, must be at least one"),
        ({"views": [X, "a"]}, TypeError, r"views\[1\]: got str, must be a tensor, or a tuple or"),
        ({"views": [X, ()]}, ValueError, r"views\[1\]: got no tensors, must be at least one"),
        ({"views": [{"x": 3}, X]}, TypeError, r"views\[0\]\['x'\]: got int, must be a tensor"),
        ({"views": [X, (X, X[:2])]}, ValueError, r"views\[1\]\[1\]: got 2 rows, the view's first"),
        ({"views": [X, X[:0]]}, ValueError, r"views\[1\]: got shape \(0, 6\), must be \[N, ...\]"),
        ({"views": [X, X[0, 0]]}, ValueError, r"views\[1\]: got shape \(\), must be \[N, ...\]"),
        ({"loss": 3}, TypeError, "loss: got int, must be callable"),
        ({"loss": lambda *z: 3.0}, TypeError, "loss: returned float, must return a tensor"),
        ({"loss": lambda *z: z}, ValueError, r"loss: returned shape \(3, 4\), must be a scalar"),
        ({"loss": lambda *z: (*z, 1)}, TypeError, "loss: returned a tuple of 3, must return a"),
        ({"loss": lambda *z: torch.ones(())}, ValueError, "loss: depends on no embedding and no"),
        ({"chunk_size": 0}, ValueError, "chunk_size: got 0, must be at least 1"),
        ({"chunk_size": 2.0}, TypeError, "chunk_size: got 2.0, must be an integer"),
        ({"batch_norm": "eval"}, ValueError, r"batch_norm: got 'eval', must be one of \('chunk'"),
        ({"backward": None}, TypeError, "backward: got NoneType, must be callable"),
        (
            {"encoder": nn.BatchNorm1d(6, track_running_stats=False), "batch_norm": "fixed"},
            ValueError,
            "batch_norm: got 'fixed', but the encoder has no running statistics",
        ),
        ({"encoder": returning((X, X))}, TypeError, "encoder: returned tuple, must return a tenso"),
        (
            {"encoder": [LINEAR, returning({"z": X})]},
            TypeError,
            r"encoder\[1\]: returned dict, must return a tensor",
        ),
        ({"encoder": returning(X.long())}, TypeError, "encoder: returned dtype torch.int64, must"),
        (
            {"encoder": returning(X[:1])},
            ValueError,
            r"encoder: returned shape \(1, 6\) for 2 rows of views\[0\], must be \[2, ...\]",
        ),
    ],
)
def test_errors_name_the_argument(changed, error, message):
    arguments = CALL | changed
    with pytest.raises(error, match=f"^{message}"):
        cached_step(arguments.pop("encoder"), arguments.pop("views"), arguments.pop("loss"),
                    **arguments)  # fmt: skip


def test_without_gradients_it_refuses():
    with torch.no_grad(), pytest.raises(RuntimeError, match="^cached_step: needs gradients"):
        cached_step(LINEAR, [X, X], nt_xent)

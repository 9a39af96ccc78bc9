"""A whole training step on a GPU: SimCLR with two augmented views and a ViT-S/16 in bfloat16.

Images are uint8 on the card already. What is timed is views, both of them through the network,
loss, gradients and AdamW: called one operation after the other, and captured as one CUDA graph. The
parts are timed beside it. Times come after parity of views with the CPU and of the loss with
float64.
"""

import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

import fastssl
from benchmarks import gpu_augment, gpu_nt_xent
from benchmarks.gpu_measure import OURS, Clock, Step, Target
from fastssl import augment

FAMILY = "step"
#: What a time depends on, ours and a peer's, beside what measures it.
NETWORK = ("fastssl/train/vit.py", "fastssl/train/networks.py", "fastssl/train/errors.py",
           "fastssl/masking.py", "fastssl/ops/patch")  # fmt: skip
SOURCES = (*gpu_augment.SOURCES, *gpu_nt_xent.SOURCES, *NETWORK,
           "benchmarks/gpu_augment.py", "benchmarks/gpu_nt_xent.py")  # fmt: skip
PEER_SOURCES = (*gpu_augment.PEER_SOURCES, *NETWORK, "benchmarks/gpu_augment.py",
                "benchmarks/gpu_nt_xent.py")  # fmt: skip
#: (size of the network, side of the images, of the views, of a patch)
CASES = {"SimCLR, ViT-S/16, 2 x 224": ("vit-small", 256, 224, 16)}
#: Published for this step with kornia's views on an H200: 294 ms, 95 ms of them the network.
TARGETS = {("SimCLR, ViT-S/16, 2 x 224", 256): Target(110)}
ORDER = [("SimCLR, ViT-S/16, 2 x 224", 256), ("SimCLR, ViT-S/16, 2 x 224", 64)]
#: Where peers are measured, too.
MAIN = ORDER[:1]
PEERS = ("kornia", "eager")
HIDDEN, PROJECTION = 2048, 128


def trainers(name: str) -> types.ModuleType:
    """A file of fastssl.train that needs none of the packages that the trainers do."""
    if "fastssl.train" not in sys.modules:
        try:
            importlib.import_module("fastssl.train")
        except ModuleNotFoundError:  # then a package whose __init__ is not run stands in for it
            package = types.ModuleType("fastssl.train")
            package.__path__ = [str(Path(fastssl.__path__[0]) / "train")]
            sys.modules["fastssl.train"] = package
    return importlib.import_module(f"fastssl.train.{name}")


class Training:
    """The step and its parts, with the views and the loss of one implementation."""

    def __init__(self, name: str, case: str, batch: int, clock: Clock):
        size, side, view, patch = CASES[case]
        torch.manual_seed(0)
        self.device, self.name = clock.device, name
        self.encoder = trainers("vit").VisionTransformer(3, (view, view), patch, size)
        self.head = trainers("networks").mlp(self.encoder.features, HIDDEN, PROJECTION)
        modules = nn.ModuleList([self.encoder, self.head]).to(self.device)
        # Capturable: counts its steps on the device, inside a graph too.
        options = {"fused": True, "capturable": True} if clock.gpu else {}
        self.optimizer = torch.optim.AdamW(modules.parameters(), 1e-4, **options)
        images = gpu_augment.images(batch, side, self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.recipes = augment.SimCLR(view)
        self.views: Callable = gpu_augment.IMPLEMENTATIONS[name](self.recipes, self.images)
        ours = functools.partial(fastssl.nt_xent, impl=gpu_nt_xent.implementation(clock))
        self.contrast = ours if name == OURS else gpu_nt_xent.textbook

    def embed(self, views: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Both views' projections, in one pass."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.head(self.encoder(torch.cat(views))).chunk(2)

    def train(self, views: list[torch.Tensor]) -> torch.Tensor:
        """The step without the making of views; the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.contrast(*self.embed(views), gpu_nt_xent.TEMPERATURE)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def __call__(self) -> torch.Tensor:
        """All of it."""
        return self.train(self.views())


def parity(training: Training, clock: Clock) -> dict:
    """Of our views, and of our loss and its gradients for the network's own projections.

    Raises:
        AssertionError: they differ by more than rounding explains.
    """
    with torch.no_grad():
        z = training.embed(training.views())
    z = [x.detach().requires_grad_() for x in z]
    ours = functools.partial(fastssl.nt_xent, impl=gpu_nt_xent.implementation(clock))
    found = gpu_nt_xent.with_gradients(ours)(*z)
    return {
        "views": gpu_augment.parity(training.recipes, training.images),
        "loss": gpu_nt_xent.parity(found, *z, str(z[0].dtype).removeprefix("torch.")),
    }


def measure(name: str, case: str, batch: int, clock: Clock, result: dict) -> None:
    """One implementation: the step as it is called, captured, and its parts."""
    training = Training(name, case, batch, clock)
    if name == OURS:
        result["parity"] = parity(training, clock)
    result["peak_mib"] = clock.peak_mib(training)
    median, result["calls"] = clock.milliseconds(training, budget=2)
    result["ms"] = round(median, 4)
    result["images_per_second"] = round(1e3 * batch / median)
    views = [view.clone() for view in training.views()]
    result["views_ms"] = round(clock.milliseconds(training.views)[0], 4)
    result["network_ms"] = round(clock.milliseconds(lambda: training.train(views), 1)[0], 4)
    if name == OURS:
        result["network_graph_ms"] = round(clock.replayed(lambda: training.train(views)), 4)
        result["graph_ms"] = round(clock.replayed(training, 1), 4)
    loss = training().item()
    assert loss == loss, "the loss is not a number"


def steps(order=ORDER, main=MAIN) -> Iterator[Step]:
    """All that there is to measure, most important first."""
    for case, batch in order:
        for name in (OURS, *PEERS) if (case, batch) in main else (OURS,):
            yield Step(
                FAMILY,
                case,
                {"batch": batch, "dtype": "bfloat16"},
                name,
                functools.partial(measure, name, case, batch),
                25,
                TARGETS.get((case, batch)) if name == OURS else None,
            )

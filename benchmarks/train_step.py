"""Where the time of a SimCLR step goes, and what the same step takes with what people use today.

    python -m benchmarks.train_step [--width 64] [--batch-size 256] [--first MODULE]

The small encoder on random RGB images of 32 x 32. Beside our step the same network with the best
eager form of the loss and, where it is installed, torchvision's views of Pillow images, shared
among as many threads or processes as torch has threads. Medians of alternating steps of one run.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import augment_peers
from benchmarks.bench_nt_xent import eager
from benchmarks.measure import Missing, assert_parity
from fastssl import nt_xent
from fastssl.augment import Augment
from fastssl.train import networks
from fastssl.train.views import MEAN, PHOTOGRAPHS, STD

#: Steps of each kind whose median counts.
STEPS = 7


class Step:
    """A training step of one network, with parts that can be exchanged."""

    def __init__(self, width: int, count: int):
        torch.manual_seed(0)
        self.backbone = networks.Small(3, width).to(memory_format=torch.channels_last)
        self.head = networks.mlp(self.backbone.features, 512, 128)
        modules = nn.ModuleList([self.backbone, self.head])
        self.optimizer = torch.optim.AdamW(modules.parameters(), 1e-3)
        self.images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        self.ids = torch.arange(count)
        scale = {"mean": [MEAN] * 3, "std": [STD] * 3}
        self.augment = Augment([PHOTOGRAPHS] * 2, seed=0, **scale)

    def views(self) -> list[torch.Tensor]:
        """Ours."""
        return self.augment(self.images, sample_ids=self.ids, step=0)

    def __call__(self, views: Callable, loss: Callable) -> None:
        """One step."""
        z = [self.head(self.backbone(view)) for view in views()]
        self.optimizer.zero_grad()
        loss(*z).backward()
        self.optimizer.step()


def median(*calls: Callable[[], object]) -> list[float]:
    """Median seconds of each, called in turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(STEPS):
        for call, of in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            of.append(time.perf_counter() - start)
    return [statistics.median(of) for of in seconds]


def convolutions(call: Callable[[], object]) -> float:
    """Share of a call's time that convolutions take, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU]) as made:
        call()
    events = made.key_averages()
    whole = sum(event.self_cpu_time_total for event in events)
    of = sum(e.self_cpu_time_total for e in events if "convolution" in e.key)
    return of / whole


def main() -> None:
    """What the command runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--first", help="module to import before torchvision")
    args = parser.parse_args()
    if args.first:
        importlib.import_module(args.first)
    step = Step(args.width, args.batch_size)
    z = [torch.randn(args.batch_size, 128, requires_grad=True) for _ in range(2)]
    assert_parity([nt_xent(*z)], [eager(*z)], torch.float32)

    def loss_alone(loss):
        return lambda: torch.autograd.grad(loss(*z), z)

    def ours():
        step(step.views, nt_xent)

    calls = {
        "step": ours,
        "views": step.views,
        "loss": loss_alone(nt_xent),
        "optimizer": step.optimizer.step,
        "step with eager loss": lambda: step(step.views, eager),
        "eager loss": loss_alone(eager),
    }
    try:
        how, pillow = augment_peers.torchvision([PHOTOGRAPHS] * 2, step.images, pillow=True)
    except Missing as error:
        print(f"no Pillow views: {error}")
    else:
        calls["step with eager loss and Pillow views"] = lambda: step(pillow, eager)
        calls[f"Pillow views, {how}"] = pillow
    seconds = dict(zip(calls, median(*calls.values()), strict=True))
    print(f"width {args.width}, batch {args.batch_size}, {torch.get_num_threads()} threads")
    for name, value in seconds.items():
        print(f"{name:42} {1000 * value:9.2f} ms  {value / seconds['step']:7.1%} of our step")
    outside = sum(seconds[name] for name in ("views", "loss", "optimizer")) / seconds["step"]
    share = convolutions(ours)
    print(f"outside the network {outside:.2%}; convolutions {share:.1%}, the rest {1 - share:.1%}")


if __name__ == "__main__":
    main()

"""Augmentation on a GPU: views a second beside what people use there.

A speed is reported after parity with the CPU in the same run. Draws are part of what is timed, for
all alike.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks import augment_peers as peers
from benchmarks.gpu_measure import OURS, Clock, Step, Target, compiler
from fastssl import augment
from fastssl.ops.augment import IMAGENET_MEAN, IMAGENET_STD, reference

FAMILY = "augment"
#: What a time depends on, ours and a peer's, beside what measures it.
SOURCES = ("fastssl/augment.py", "fastssl/ops/augment", "csrc/augment", "csrc/common",
           "CMakeLists.txt")  # fmt: skip
PEER_SOURCES = ("benchmarks/augment_peers.py", "fastssl/ops/augment/reference.py")
#: (recipe, side of the source image)
RECIPES = {
    "SimCLR, 2 x 224": (augment.SimCLR, 256),
    "SimCLR, 2 x 96": (functools.partial(augment.SimCLR, 96), 128),
    "SimCLR, 2 x 32": (functools.partial(augment.SimCLR, 32, blur=False), 32),
    "DINO, 2 x 224 + 8 x 96": (augment.DINO, 256),
}
#: Most important first.
ORDER = [
    ("SimCLR, 2 x 224", 256), ("DINO, 2 x 224 + 8 x 96", 64), ("SimCLR, 2 x 32", 1024),
    ("SimCLR, 2 x 96", 256), ("SimCLR, 2 x 224", 64), ("SimCLR, 2 x 224", 1024),
    ("DINO, 2 x 224 + 8 x 96", 256), ("SimCLR, 2 x 32", 256), ("SimCLR, 2 x 96", 1024),
    ("SimCLR, 2 x 32", 64), ("SimCLR, 2 x 96", 64), ("DINO, 2 x 224 + 8 x 96", 1024),
]  # fmt: skip
#: Where peers are measured, too.
MAIN = ORDER[:3]
TARGETS = {("SimCLR, 2 x 224", 256): Target(0.85)}
#: Images of a batch that the CPU makes the views of, too.
COMPARED = 32
DTYPE = torch.bfloat16


def images(count: int, side: int, device) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(min(count, 64), 3, 9, 9, generator=g)
    x = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    x += 0.05 * torch.randn(x.shape, generator=g)
    x = x.clamp_(0, 1).mul_(255).round_().byte()
    return x.repeat(-(-count // len(x)), 1, 1, 1)[:count].to(device)


def parity(aug: augment.Augment, x: torch.Tensor) -> dict:
    """Ours on this device against the CPU: draws to the bit, views to a level.

    Raises:
        AssertionError: they differ by more.
    """
    ours, few = levels(aug), x[:COMPARED]
    theirs = levels(aug)
    views, drawn = ours(few, step=3, return_params=True)
    expected, wanted = theirs(few.cpu(), step=3, return_params=True)
    for field in dataclasses.fields(wanted):
        same = torch.equal(getattr(drawn, field.name).cpu(), getattr(wanted, field.name))
        assert same, f"other draws of {field.name}"
    worst = differing = count = 0
    for a, b in zip(views, expected, strict=True):
        distance = (a.cpu().int() - b.int()).abs()
        worst = max(worst, distance.max().item())
        differing += (distance > 0).sum().item()
        count += distance.numel()
    assert worst <= 1, f"differs by {worst} levels"
    return {"worst": worst, "differing": differing / count}


def levels(aug: augment.Augment) -> augment.Augment:
    return augment.Augment(aug.recipes, seed=aug.seed, dtype=torch.uint8)


def ours(aug: augment.Augment, x: torch.Tensor) -> Callable:
    made = augment.Augment(aug.recipes, dtype=DTYPE, memory_format=torch.channels_last)
    made.to(x.device)
    return lambda: made(x)


def eager(aug: augment.Augment, x: torch.Tensor) -> Callable:
    made = augment.Augment(aug.recipes, dtype=DTYPE, impl="reference").to(x.device)
    return lambda: made(x)


def compiled(aug: augment.Augment, x: torch.Tensor) -> Callable:
    mean, std = (
        torch.tensor(n, device=x.device).view(3, 1, 1) for n in (IMAGENET_MEAN, IMAGENET_STD)
    )
    sizes = [peers.pair(r.size) for r in aug.recipes]
    fixed = [
        (
            r.interpolation == "bicubic",
            r.antialias,
            r.gray_first,
            peers.taps(r),
            r.solarize_threshold,
        )
        for r in aug.recipes
    ]

    def view(x, size, settings, *drawn):
        y = reference.augment(x, *drawn, size, settings, floats=False, pil=False)
        return ((y / 255 - mean) / std).to(DTYPE)

    view = compiler()(view, dynamic=False)
    steps = iter(range(1 << 30))

    def call():
        geometry, gates, order, factors = augment._ops.draw(
            aug.recipes, x, step=next(steps)
        ).packed()
        drawn = zip(geometry.unbind(1), gates.unbind(1), order, factors.unbind(1), strict=True)
        return [view(x, s, f, *one) for s, f, one in zip(sizes, fixed, drawn, strict=True)]

    return call


def kornia(aug: augment.Augment, x: torch.Tensor) -> Callable:
    """Its parameters differ for each image, but one order of the jitter holds for the batch."""
    pipelines = nn.ModuleList(peers.kornia_pipeline(r, "resample") for r in aug.recipes)
    pipelines.to(x.device)

    @torch.inference_mode()
    def call():
        y = x.float().div_(255)
        return [pipeline(y).to(DTYPE) for pipeline in pipelines]

    return call


IMPLEMENTATIONS = {OURS: ours, "kornia": kornia, "compiled": compiled, "eager": eager}


def host_microseconds(call: Callable, clock: Clock, calls: int = 20) -> float:
    """Median time that a call keeps the host busy, while the device works behind it."""
    clock.wait()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    clock.wait()
    return 1e6 * statistics.median(times)


def measure(name: str, case: str, batch: int, clock: Clock, result: dict) -> None:
    """One implementation of a recipe at one batch size."""
    recipe, side = RECIPES[case]
    aug, x = recipe(), images(batch, side, clock.device)
    if name == OURS:
        result["parity"] = parity(aug, x)
    call = IMPLEMENTATIONS[name](aug, x)
    views = batch * len(aug.recipes)
    median, result["calls"] = clock.milliseconds(call)
    result["ms"] = round(median, 4)
    result["views_per_second"] = round(1e3 * views / median)
    if name == OURS:
        moved = x.nbytes + sum(view.nbytes for view in call())
        result["gb_per_second"] = round(moved / median / 1e6, 1)
        result["host_us"] = round(host_microseconds(call, clock), 1)
        result["graph_ms"] = round(clock.replayed(ours(aug, x)), 4)


def steps(order=ORDER, main=MAIN) -> Iterator[Step]:
    """All that there is to measure, most important first."""
    for case, batch in order:
        for name in IMPLEMENTATIONS if (case, batch) in main else (OURS,):
            yield Step(
                FAMILY,
                case,
                {"batch": batch},
                name,
                functools.partial(measure, name, case, batch),
                # A compilation takes about so long; so does a slow baseline's call.
                {OURS: 6, "kornia": 10}.get(name, 40),
                TARGETS.get((case, batch)) if name == OURS else None,
            )

"""MAE's bookkeeping on a GPU, ViT-B/16 at 224 x 224, beside PyTorch's way.

A time is reported after parity in the same run: plans with the CPU's bits, values and gradients
with the definition in float64. GB/s count the bytes that must move, and are set beside what a copy
on the same card reaches.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_measure import OURS, Clock, Step, Target, assert_close, compiler, contained
from fastssl import masking
from fastssl.masking import MaskPlan
from fastssl.ops.augment import IMAGENET_MEAN, IMAGENET_STD
from fastssl.ops.patch import reference

FAMILY = "patch"
#: What a time depends on, ours and a peer's, beside what measures it.
SOURCES = ("fastssl/masking.py", "fastssl/ops/patch", "csrc/patch", "csrc/common", "CMakeLists.txt")
PEER_SOURCES = tuple(f"fastssl/ops/patch/{name}.py" for name in ("reference*", "layout", "plan"))
SIDE, PATCH, LENGTH, RATIO, WIDTH, DECODER = 224, 16, 196, 0.75, 768, 512
NUMBERS = 3 * PATCH * PATCH
KEEP = int(LENGTH * (1 - RATIO))
GRID = (SIDE // PATCH, SIDE // PATCH)
MEAN, STD = list(IMAGENET_MEAN), list(IMAGENET_STD)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ALLOWED = {"float32": 2e-5, "bfloat16": 2e-2}
#: What to aim at: a share of the card's copy rate, and launches of all the bookkeeping.
SHARE = Target(0.6, "share_of_copy", "of the copy rate", at_least=True, card=None)
LAUNCHES = Target(5, "launches", "launches", card=None)
CASES = ("loss", "decoder", "gather_patches", "gather_tokens", "plan")
#: Most important first.
ORDER = [
    (case, batch, dtype)
    for batch in (256, 64)
    for dtype in ("bfloat16", "float32")
    for case in CASES
    if case != "plan" or dtype == "float32"
]
#: Where peers are measured, too.
MAIN = [o for o in ORDER if o[1] == 256 and (o[2] == "bfloat16" or o[0] == "plan")]
PEERS = ("compiled", "eager")


@dataclass
class Inputs:
    """What a case reads."""

    images: torch.Tensor
    plan: MaskPlan
    ids: torch.Tensor
    pred: torch.Tensor
    tokens: torch.Tensor
    visible: torch.Tensor
    token: torch.Tensor
    pos: torch.Tensor
    decoder_pos: torch.Tensor
    upstream: torch.Tensor


def inputs(batch: int, dtype: torch.dtype, device) -> Inputs:
    g = torch.Generator(device).manual_seed(0)

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=g, device=device, dtype=torch.float32).to(dtype)

    levels = torch.rand(batch, 3, SIDE, SIDE, generator=g, device=device)
    return Inputs(
        levels.mul_(255).round_().byte(),
        masking.random_masks(batch, GRID, RATIO, seed=1, device=device),
        torch.arange(batch, device=device),
        normal(batch, LENGTH, NUMBERS).requires_grad_(),
        normal(batch, 1 + LENGTH, WIDTH),
        normal(batch, 1 + KEEP, DECODER).requires_grad_(),
        normal(DECODER, dtype=torch.float32).to(dtype).requires_grad_(),
        normal(1 + LENGTH, WIDTH),
        normal(1 + LENGTH, DECODER),
        normal(batch, 1 + LENGTH, DECODER),
    )


def noise_plan(batch: int, device) -> MaskPlan:
    """MAE's random_masking, as its authors wrote it down."""
    noise = torch.rand(batch, LENGTH, device=device)
    ids_shuffle = noise.argsort(1)
    ids_restore = ids_shuffle.argsort(1)
    mask = torch.ones(batch, LENGTH, device=device)
    mask[:, :KEEP] = 0
    return MaskPlan(ids_shuffle, ids_restore, mask.gather(1, ids_restore).bool(), KEEP, GRID)


def functions(name: str) -> dict[str, Callable]:
    """The cases' functions of tensors, from us or from reference.py."""
    if name == OURS:
        loss = masking.masked_patch_loss
        return {
            "loss": lambda x, pred, plan: loss(x, pred, plan, PATCH, mean=MEAN, std=STD),
            "decoder": lambda *a: masking.restore_tokens(*a, prefix=1),
            "gather_patches": lambda x, plan, dtype: masking.gather_patches(
                x, plan, PATCH, MEAN, STD, dtype=dtype
            ),
            "gather_tokens": lambda x, plan, pos: masking.gather_tokens(x, plan, pos, prefix=1),
        }
    patch, kind = (PATCH, PATCH), ("mse", "patch")
    made = {
        "loss": lambda x, pred, plan: reference.masked_patch_loss(
            x, pred, plan, patch, True, *kind, MEAN, STD, "pqc"
        ),
        "decoder": lambda *a: reference.restore_tokens(*a, prefix=1),
        "gather_patches": lambda x, plan, dtype: reference.gather_patches(
            x, plan, patch, MEAN, STD, "cpq", dtype
        ),
        "gather_tokens": lambda x, plan, pos: reference.gather_tokens(x, plan, pos, prefix=1),
    }
    if name == "compiled":
        return {case: compiler()(f, dynamic=False) for case, f in made.items()}
    return made


def call_of(name: str, case: str, x: Inputs, dtype: torch.dtype) -> Callable:
    """The case's call, which returns all that it made, gradients included."""
    if case == "plan":
        if name == OURS:
            return lambda: (
                masking.random_masks(len(x.ids), GRID, RATIO, seed=1, sample_ids=x.ids).ids_restore
            )
        plan = functools.partial(noise_plan, len(x.ids), x.ids.device)
        made = compiler()(plan, dynamic=False) if name == "compiled" else plan
        return lambda: made().ids_restore
    function = functions(name)[case]

    def loss():
        value = function(x.images, x.pred, x.plan)
        return value.detach(), *torch.autograd.grad(value, x.pred)

    def decoder():
        tokens = function(x.visible, x.plan, x.token, x.decoder_pos)
        return tokens.detach(), *torch.autograd.grad(tokens, [x.visible, x.token], x.upstream)

    return {
        "loss": loss,
        "decoder": decoder,
        "gather_patches": lambda: (function(x.images, x.plan, dtype),),
        "gather_tokens": lambda: (function(x.tokens, x.plan, x.pos),),
    }[case]


def bytes_of(case: str, batch: int, size: int) -> int:
    """What must be read and written once."""
    removed, visible = LENGTH - KEEP, 1 + KEEP
    return (
        batch
        * {
            "loss": removed * NUMBERS * (1 + size) + LENGTH * NUMBERS * size,
            "decoder": 2 * (visible + 1 + LENGTH) * DECODER * size,
            "gather_patches": KEEP * NUMBERS * (1 + size),
            "gather_tokens": 2 * visible * WIDTH * size,
            "plan": LENGTH * (8 + 8 + 1),
        }[case]
    )


def parity(case: str, x: Inputs, found, dtype: str) -> float:
    """The largest difference, relative to the largest value.

    Raises:
        AssertionError: other bits than the CPU's, or more than rounding explains.
    """
    if case == "plan":
        cpu = masking.random_masks(len(x.ids), GRID, RATIO, seed=1, sample_ids=x.ids.cpu())
        assert torch.equal(found.cpu(), cpu.ids_restore), "not the CPU's plan"
        return 0.0
    wide = Inputs(
        *(
            v.detach().double().requires_grad_(v.requires_grad)
            if isinstance(v, torch.Tensor) and v.is_floating_point()
            else v
            for v in vars(x).values()
        )
    )
    truth = call_of("eager", case, wide, torch.float64)()
    return assert_close(found, truth, ALLOWED[dtype])


@functools.cache
def copy_rate(clock: Clock, count: int = 1 << 28) -> float:
    """GB/s of a copy on the device, reads and writes counted."""
    x = torch.empty(count if clock.gpu else count >> 8, device=clock.device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / clock.milliseconds(lambda: y.copy_(x))[0] / 1e6


def launched(events) -> int:
    """How many kernels of a device are among the profiler's events.

    The driver fills and copies memory with commands of its own, which are events, too.
    """
    return sum(
        e.device_type == torch.autograd.DeviceType.CUDA
        and e.device_time > 0
        and not e.name.startswith(("Memset", "Memcpy"))
        for e in events
    )


def count_launches(clock: Clock, result: dict) -> None:
    """Kernels of a step's bookkeeping, counted by the profiler."""
    x = inputs(64, torch.float32, clock.device)
    parts = {
        "plan": lambda: masking.random_masks(64, GRID, RATIO, seed=1, sample_ids=x.ids),
        "gather_patches": call_of(OURS, "gather_patches", x, torch.float32),
        "decoder": lambda: masking.restore_tokens(
            x.visible.detach(), x.plan, x.token.detach(), x.decoder_pos, prefix=1
        ),
        "loss": lambda: functions(OURS)["loss"](x.images, x.pred, x.plan),
        "decoder, backward too": call_of(OURS, "decoder", x, torch.float32),
        "loss, backward too": call_of(OURS, "loss", x, torch.float32),
    }
    activity = ProfilerActivity.CUDA if clock.gpu else ProfilerActivity.CPU
    counts = result["of_parts"] = {}
    for name, call in parts.items():
        call()
        clock.wait()
        with profile(activities=[activity]) as profiled:
            call()
            clock.wait()
        counts[name] = launched(profiled.events())
    result["launches"] = sum(counts[n] for n in ("plan", "gather_patches", "decoder", "loss"))


def measure(name: str, case: str, batch: int, dtype: str, clock: Clock, result: dict) -> None:
    """One implementation of a case: called one after the other, and captured with cold caches."""
    x = inputs(batch, DTYPES[dtype], clock.device)
    call = call_of(name, case, x, DTYPES[dtype])
    if name == OURS:
        result["difference"] = parity(case, x, call(), dtype)
    median, result["calls"] = clock.milliseconds(call)
    result["ms"] = round(median, 4)
    # Nothing in the card's cache: in training, other things have been there since.
    flush = torch.empty(1 << (28 if clock.gpu else 10), dtype=torch.uint8, device=clock.device)
    failure = {}  # a baseline that cannot be captured loses only this
    with contextlib.nullcontext() if name == OURS else contained(failure):
        captured = clock.replayed(call, budget=0.3, before=flush.zero_)
        result["graph_ms"] = round(captured, 4)
    if failure:
        result["not_captured"] = failure["error"]
    if name == OURS:
        moved = bytes_of(case, batch, torch.finfo(DTYPES[dtype]).bits // 8)
        result["gb_per_second"] = round(moved / captured / 1e6, 1)
        result["copy_gb_per_second"] = round(copy_rate(clock), 1)
        result["share_of_copy"] = round(moved / captured / 1e6 / copy_rate(clock), 3)


def steps(order=ORDER, main=MAIN) -> Iterator[Step]:
    """All that there is to measure, most important first."""
    for case, batch, dtype in order:
        size = {"batch": batch, "dtype": dtype}
        # A plan is less than a megabyte: a launch takes longer.
        aimed = (case, batch, dtype) in main and case != "plan"
        for name in (OURS, *PEERS) if (case, batch, dtype) in main else (OURS,):
            run = functools.partial(measure, name, case, batch, dtype)
            # A compilation takes about so long.
            seconds = 20 if name == "compiled" else 4
            target = SHARE if aimed and name == OURS else None
            yield Step(FAMILY, case, size, name, run, seconds, target)
    yield Step(FAMILY, "launches", {"batch": 64}, OURS, count_launches, 10, LAUNCHES)

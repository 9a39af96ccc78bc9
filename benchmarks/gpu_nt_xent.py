"""NT-Xent on a GPU: parity, time, rate and peak memory beside PyTorch's ways to do it.

A time is reported only after parity was asserted in the same run: with float64 where its matrix
fits, else with float32 in chunks.
"""

import functools
from collections.abc import Callable, Iterator

import torch

import fastssl
from benchmarks.gpu_measure import OURS, Clock, Step, Target, assert_close, compiler
from benchmarks.nt_xent_chunked import Chunked
from fastssl.ops.nt_xent import reference

FAMILY = "nt_xent"
#: What a time depends on, ours and a peer's, beside what measures it.
SOURCES = ("fastssl/ops/nt_xent",)
PEER_SOURCES = ("benchmarks/nt_xent_chunked.py",)
TEMPERATURE = 0.1
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
TARGETS = {(65536, 128, "bfloat16"): Target(6.6)}
#: The largest difference forgiven, relative to the largest value: loss and gradients.
ALLOWED = {"bfloat16": 1e-2, "float32": 2e-5}
#: Parity with float64 is asserted at up to this many rows (1 GB for its matrix, and some copies).
EXACT_ROWS = 8192
#: Most important first.
ORDER = [
    (65536, 128, "bfloat16"),
    (8192, 128, "bfloat16"),
    (65536, 128, "float32"),
    (2048, 128, "bfloat16"),
    (8192, 128, "float32"),
    (512, 128, "bfloat16"),
    (32768, 128, "bfloat16"),
    (8192, 768, "bfloat16"),
    (32768, 768, "bfloat16"),
    (65536, 768, "bfloat16"),
    (262144, 128, "bfloat16"),
    (2048, 128, "float32"),
    (32768, 128, "float32"),
    (8192, 768, "float32"),
    (512, 128, "float32"),
    (2048, 768, "bfloat16"),
    (512, 768, "bfloat16"),
    (2048, 768, "float32"),
    (512, 768, "float32"),
    (32768, 768, "float32"),
    (65536, 768, "float32"),
    (65536, 64, "bfloat16"),
    (65536, 256, "bfloat16"),
    (65536, 512, "bfloat16"),
    (262144, 768, "bfloat16"),
    (262144, 128, "float32"),
    (262144, 768, "float32"),
]
#: Where peers are measured, too.
MAIN = (*ORDER[:4], (512, 128, "bfloat16"), (8192, 768, "bfloat16"))
PEERS = ("chunked-compiled", "compiled", "chunked", "eager")


def views(rows: int, depth: int, dtype: str, device="cuda"):
    """Two correlated views, so that positives stand out as they do in training."""
    generator = torch.Generator(device).manual_seed(rows + depth)
    z = torch.randn(rows // 2, depth, generator=generator, device=device)
    noise = torch.randn(rows // 2, depth, generator=generator, device=device)
    return [x.to(DTYPES[dtype]).requires_grad_() for x in (z, z + 0.5 * noise)]


def textbook(z0, z1, temperature):
    """One matrix in the inputs' dtype, in place where autograd allows it."""
    z = torch.nn.functional.normalize(torch.cat([z0, z1]).float()).to(z0.dtype)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(z0))
    return torch.nn.functional.cross_entropy(logits.float(), partner)


def with_gradients(function):
    def run(z0, z1):
        loss = function(z0, z1, TEMPERATURE)
        return loss.detach(), *torch.autograd.grad(loss, [z0, z1])

    return run


def implementation(clock: Clock) -> str:
    """Of ours: on a GPU nothing but the GPU's shall be measured."""
    return "triton" if clock.gpu else "auto"


@functools.cache
def peer(name: str) -> Callable:
    return {
        "chunked": lambda: Chunked(compiled=False),
        "chunked-compiled": lambda: Chunked(compiled=True),
        "eager": lambda: with_gradients(textbook),
        "compiled": lambda: with_gradients(compiler()(textbook, dynamic=True)),
    }[name]()


def parity(ours, z0, z1, dtype: str) -> dict:
    """Compares with float64, or with the float32 sum over chunks where that does not fit.

    Raises:
        AssertionError: the results differ by more than rounding explains.
    """
    exact = 2 * len(z0) <= EXACT_ROWS
    if exact:
        wide = [z.detach().double().requires_grad_() for z in (z0, z1)]
        truth = with_gradients(reference.nt_xent)(*wide)
    else:
        truth = Chunked(compiled=False)(z0.detach().float(), z1.detach().float())
    worst = assert_close(ours, truth, ALLOWED[dtype])
    return {"difference": worst, "against": "float64" if exact else "float32, chunked"}


def measure(name: str, rows: int, depth: int, dtype: str, clock: Clock, result: dict) -> None:
    """One implementation at one size: parity of ours, then time and peak memory."""
    ours = functools.partial(fastssl.nt_xent, impl=implementation(clock))
    run = with_gradients(ours) if name == OURS else peer(name)
    z0, z1 = views(rows, depth, dtype, clock.device)
    outcome = run(z0, z1)
    if name == OURS:
        result["parity"] = parity(outcome, z0, z1, dtype)
    del outcome
    result["peak_mib"] = clock.peak_mib(lambda: run(z0, z1))
    median, count = clock.milliseconds(lambda: run(z0, z1))
    result["ms"], result["calls"] = round(median, 4), count
    result["tflops"] = round(3 * 2 * rows**2 * depth / median / 1e9, 1)
    if name == OURS:
        forward = functools.partial(ours, z0.detach(), z1.detach(), TEMPERATURE)
        result["forward_ms"] = round(clock.milliseconds(forward, budget=0.3)[0], 4)
        result["graph_ms"] = round(clock.replayed(lambda: run(z0, z1)), 4)


def steps(order=ORDER, main=MAIN) -> Iterator[Step]:
    """All that there is to measure, most important first."""
    for rows, depth, dtype in order:
        for name in (OURS, *PEERS) if (rows, depth, dtype) in main else (OURS,):
            yield Step(
                FAMILY,
                FAMILY,
                {"rows": rows, "depth": depth, "dtype": dtype},
                name,
                functools.partial(measure, name, rows, depth, dtype),
                # At 20 TFLOP/s, beside a compilation.
                36 * rows**2 * depth / 2e13 + (20 if "compiled" in name else 4),
                TARGETS.get((rows, depth, dtype)) if name == OURS else None,
            )

"""What every benchmark shares: when a figure counts, how long to repeat, what memory it took."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastssl._library import _C


class Missing(Exception):
    """A peer's library that is not installed, or does not work here."""


_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_memory(call: Callable[[], object]) -> float | None:
    """MiB of resident memory that one call adds at its peak; None where Linux does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or the allocator serves the call from what it kept
        _CLEAR.write_text("5")  # resets the peak to what is resident now
    except (OSError, AttributeError):
        return None
    before = _resident("VmHWM")
    call()
    return max(0.0, _resident("VmHWM") - before)


def _resident(field: str) -> float:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def assert_parity(ours, theirs, dtype: torch.dtype) -> float:
    """Largest difference relative to the largest value; raises where it is no rounding error.

    A benchmark calls this before it reports a time: a fast wrong answer is no result.
    """
    allowed = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.double(), b.double()
        worst = max(worst, ((a - b).abs().max() / b.abs().max()).item())
    if not worst <= allowed:
        raise AssertionError(f"results differ by {worst:.3g}, more than {allowed:.3g}")
    return worst


def run(benchmark, call: Callable[[], object], seconds: float = 3.0, **extra_info) -> None:
    """Time `call` with pytest-benchmark: enough rounds for a median within `seconds`, at least 3.

    `extra_info` (op, case, impl, ...) names the row in the tables.
    """
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    capability = _C.cpu_capability() if _C else "none"
    benchmark.extra_info.update(extra_info, threads=torch.get_num_threads(), capability=capability)
    rounds = 1 if once > 4 * seconds else max(3, min(200, int(seconds / once)))
    benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=0)

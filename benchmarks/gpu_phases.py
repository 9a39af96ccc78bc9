"""What comes before figures: the tests on the GPU, and a few of them under compute-sanitizer.

A phase that passed is not run again while its sources are the same. One that ran out of time goes
on, the next time, from where it was.
"""

import importlib.util
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gpu_process
from benchmarks.gpu_pytest import DEADLINE, OUT_OF_TIME, PASSED
from benchmarks.gpu_results import Results
from benchmarks.gpu_sources import ROOT

FOLDER = ROOT / "build" / "gpu"
#: Seconds that a phase may overrun before it is ended: pytest stops between two tests.
GRACE = 15
#: The part of what is left that a phase may always take.
SHARE = 0.15
#: Seconds in which compute-sanitizer shows whether it can watch this device.
PROBE = 45
#: What a sanitizer without a cache of freed memory sees: every tensor is an allocation of its own.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


@dataclass(frozen=True)
class Phase:
    """Tests of one selection, perhaps watched by a tool of compute-sanitizer.

    It may take `seconds`, or SHARE of what is left where that is more.
    """

    name: str
    seconds: float
    tests: tuple[str, ...]
    tool: str | None = None


PHASES = (
    Phase("test", 100, ("-m", "cuda", "tests/cuda", "tests/test_host_work.py")),
    Phase("memcheck", 40, ("-m", "cuda", "-k", "small", "tests/cuda"), "memcheck"),
    Phase("initcheck", 40, ("-m", "cuda", "-k", "small", "tests/cuda"), "initcheck"),
)


def sanitizer(tool: str, log: Path) -> list[str]:
    """The command that watches another.

    Kernels are not filtered by name: a kernel that is left out is not seen writing, either, and
    what it wrote would be reported where ours read it.
    """
    options = {
        "--tool": tool,
        "--target-processes": "application-only",
        "--show-backtrace": "device",
        "--print-limit": "10000",
        "--log-file": str(log),
    }
    if tool == "memcheck":
        options["--error-exitcode"] = "9"
        # Torch and Triton ask the driver for what an older one lacks.
        options["--report-api-errors"] = "no"
    return ["compute-sanitizer", *(word for option in options.items() for word in option)]


def triton_kernels(root: Path = ROOT) -> set[str]:
    """Names of all our Triton functions."""
    pattern = re.compile(r"^@triton\.jit\b[^\n]*\n(?:@[^\n]*\n)*def (\w+)", re.MULTILINE)
    sources = (root / "fastssl").rglob("triton*.py")
    return {name for path in sources for name in pattern.findall(path.read_text())}


def reports(log: str) -> Iterator[tuple[str, str]]:
    """(what happened, in which kernel) for each of a sanitizer's reports."""
    headline = None
    for line in log.splitlines():
        text = line.lstrip("=").strip()
        if match := re.match(r"(Uninitialized|Invalid|Misaligned|Program hit|Host API).*", text):
            if headline:
                yield headline, ""
            headline = match[0]
        elif headline and (match := re.match(r"at (?:0x[0-9a-f]+ in )?(?:void )?(.+)", text)):
            yield headline, match[1]
            headline = None
    if headline:
        yield headline, ""


def of_ours(kernel: str, names: set[str]) -> bool:
    """Whether a report's kernel is one of this project's."""
    first = re.match(r"\w+", kernel)
    return "fastssl::" in kernel or (first is not None and first[0] in names)


def judge(tool: str, log: Path) -> bool:
    """Prints a sanitizer's reports; whether none of them is against a kernel of ours.

    torch's kernels may read what nobody wrote, such as the padding of a buffer.
    """
    found = Counter(reports(log.read_text(errors="replace")) if log.exists() else ())
    names = triton_kernels()
    against = {one: count for one, count in found.items() if of_ours(one[1], names)}
    others = sum(found.values()) - sum(against.values())
    for (headline, kernel), count in list(against.items())[:20]:
        print(f"== {tool}: {headline} in {kernel[:200]}, {count} times")
    if others:
        print(f"== {tool}: {others} reports against kernels that are not ours, in {log}")
    return not against


def obstacle(phase: Phase) -> str | None:
    """Why a phase cannot run here."""
    if importlib.util.find_spec("pytest") is None:
        return "no pytest"
    if phase.tool is None:
        return None
    if shutil.which("compute-sanitizer") is None:
        return "no compute-sanitizer"
    probe = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda')"]
    watched = [*sanitizer(phase.tool, FOLDER / "probe.log"), *probe]
    if gpu_process.run(watched, PROBE, UNCACHED) != 0:
        return "compute-sanitizer cannot watch this device"
    return None


def forget() -> None:
    """Tests that passed shall be run again."""
    for passed in FOLDER.glob("*.passed*"):
        passed.unlink()


def run(phase: Phase, results: Results, code: str, seconds: float) -> dict:
    """Runs what is left of a phase for at most `seconds`; what became of it, which is written."""
    began = time.monotonic()
    seconds = min(max(phase.seconds, SHARE * seconds), seconds - GRACE)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if seconds <= 0:
        return {"status": "not run, out of time", "seconds": 0}
    if reason := obstacle(phase):
        return {"status": f"skipped, {reason}", "seconds": 0}
    results.begin(phase.name, seconds)
    passed = FOLDER / f"{phase.name}-{code}.passed"
    new = passed.with_name(passed.name + ".new")
    for old in FOLDER.glob(f"{phase.name}-*.passed*"):
        if old not in (passed, new):
            old.unlink()
    if phase.tool is None:
        _keep(new, passed)
    new.unlink(missing_ok=True)  # passed under a sanitizer that told no end
    log = FOLDER / f"{phase.name}.log"
    log.unlink(missing_ok=True)
    watch = [] if phase.tool is None else sanitizer(phase.tool, log)
    pytest = ["-m", "pytest", "-p", "benchmarks.gpu_pytest", "--continue-on-collection-errors"]
    status = gpu_process.run(
        [*watch, sys.executable, *pytest, *phase.tests],
        seconds + GRACE,
        {
            PASSED: str(passed),
            DEADLINE: str(time.time() + seconds),
            **(UNCACHED if phase.tool else {}),
        },
    )
    clean = phase.tool is None or judge(phase.tool, log)
    if clean and (phase.tool is None or status in (0, OUT_OF_TIME)):
        _keep(new, passed)
    if not clean or status not in (0, OUT_OF_TIME):
        outcome = "failed" if status is not None else f"failed, over {seconds + GRACE:.0f} s"
    else:
        outcome = "passed" if status == 0 else "cut off, goes on in the next call"
    found = {"status": outcome, "seconds": round(time.monotonic() - began, 1)}
    results.end_phase(phase.name, code, found)
    return found


def _keep(new: Path, passed: Path) -> None:
    if new.exists():
        with passed.open("a") as kept:
            kept.write(new.read_text())

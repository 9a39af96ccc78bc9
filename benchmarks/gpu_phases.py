"""What comes before figures: the tests on the GPU, and a few of them under compute-sanitizer.

A phase that passed is not run again while its sources are the same. One that ran out of time goes
on, the next time, from where it was. A test that takes the device or its process down costs itself
and no other: a new process runs the rest, and the next call tries it last.
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
from benchmarks.gpu_pytest import DEADLINE, OUT_OF_TIME, PASSED, beside, names
from benchmarks.gpu_results import Results
from benchmarks.gpu_sources import ROOT

FOLDER = ROOT / "build" / "gpu"
#: Seconds that a phase may overrun before it is ended: pytest stops between two tests.
GRACE = 15
#: The part of what is left that a phase may always take.
SHARE = 0.15
#: Seconds in which compute-sanitizer shows whether it can watch this device.
PROBE = 45
#: Processes of a phase in one call, at most: each is lost to one test, or comes to an end.
PROCESSES = 6
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
    for old in FOLDER.glob(f"{phase.name}-*.passed*"):
        if not old.name.startswith(passed.name):
            old.unlink()
    if phase.tool is None:
        _keep(passed)
    broken, late, running = (beside(passed, what) for what in ("broken", "late", "running"))
    for before in (running, broken):  # when the last call ended, or in it
        _move(before, late)
    deadline = time.monotonic() + seconds
    for _ in range(PROCESSES):
        known = len(names(broken))
        end = _tests(phase, passed, deadline)
        _move(running, late if end is None else broken)
        if len(names(broken)) == known or time.monotonic() > deadline - GRACE:
            break
    if lost := names(broken):
        outcome = f"failed, {', '.join(lost)} took the device or the process down"
    elif end is None:
        outcome = f"failed, over {seconds + GRACE:.0f} s"
    else:
        ends = {0: "passed", OUT_OF_TIME: "cut off, goes on in the next call"}
        outcome = ends.get(end, "failed")
    found = {"status": outcome, "seconds": round(time.monotonic() - began, 1)}
    results.end_phase(phase.name, code, found)
    return found


def _tests(phase: Phase, passed: Path, deadline: float) -> int | str | None:
    """How a process that runs what is left ends: its status, or "reports" of a sanitizer."""
    beside(passed, "new").unlink(missing_ok=True)  # passed under a sanitizer that told no end
    log = FOLDER / f"{phase.name}.log"
    log.unlink(missing_ok=True)
    watch = [] if phase.tool is None else sanitizer(phase.tool, log)
    pytest = ["-m", "pytest", "-p", "benchmarks.gpu_pytest", "--continue-on-collection-errors"]
    left = deadline - time.monotonic()
    status = gpu_process.run(
        [*watch, sys.executable, *pytest, *phase.tests],
        left + GRACE,
        {
            PASSED: str(passed),
            DEADLINE: str(time.time() + left),
            **(UNCACHED if phase.tool else {}),
        },
    )
    clean = phase.tool is None or judge(phase.tool, log)
    if clean and (phase.tool is None or status in (0, OUT_OF_TIME, gpu_process.LOST)):
        _keep(passed)
    return status if clean or status is None else "reports"


def _keep(passed: Path) -> None:
    """What passed since then counts."""
    _move(beside(passed, "new"), passed)


def _move(source: Path, target: Path) -> None:
    """Names of tests from one file to the end of another, each once."""
    if moved := names(source):
        target.write_text("".join(f"{x}\n" for x in dict.fromkeys(names(target) + moved)))
    source.unlink(missing_ok=True)

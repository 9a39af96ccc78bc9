"""Drives `make gpu-check`: what comes next, what is known already, and what became of it.

Figures are measured by a process of its own: a kernel that takes the device down costs its own
figure, and the next process goes on behind it.
"""

import argparse
import contextlib
import functools
import json
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import triton

from benchmarks import gpu_phases, gpu_process, gpu_sources
from benchmarks.gpu_measure import Clock, contained
from benchmarks.gpu_order import MODEL, Predictions, ordered
from benchmarks.gpu_results import Codes, Results, path_for, replace
from benchmarks.gpu_table import report

#: Seconds kept for the table at the end.
LAST = 5
#: A step hangs that takes so many seconds more than three times what it should.
HANG = 30


class Check:
    """One call: which steps there are, and what is known of them."""

    def __init__(
        self, families, phases, clock: Clock, output: Path | None, model: Path, root: Path
    ):
        self.clock, self.phases = clock, phases
        stamp = {
            "gpu": clock.name,
            "torch": str(torch.__version__),
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        }
        self.codes = Codes(families, root)
        self.tests = gpu_sources.digest(gpu_sources.EVERYTHING, root, *stamp.values())
        self.predictions = Predictions(clock.name, model)
        every = [step for family in families for step in family.steps()]
        self.steps = ordered(every, self.predictions)
        self.results = Results(output or path_for(clock.name), stamp)
        self.outcomes: dict[str, dict] = {}
        self.failed: list[str] = []

    def test(self, deadline: float) -> None:
        """The phases that have not passed yet."""
        for phase in self.phases:
            found = self.results.phase(phase.name, self.tests)
            if found is None or found["status"] != "passed":
                print(f"== {phase.name}", flush=True)
                found = gpu_phases.run(phase, self.results, self.tests, deadline - time.monotonic())
            self.outcomes[phase.name] = found
            print(f"== {phase.name}: {found['status']}", flush=True)

    def figures(self, deadline: float) -> None:
        """What one process measures, until the time is up or the device is lost."""
        steps = self.results.left(self.steps, self.codes)
        for step in steps:
            if deadline - time.monotonic() < step.seconds:
                continue
            self.results.begin(step.name, HANG + 3 * step.seconds)
            result: dict = {}
            with contained(result):
                step.run(self.clock, result)
            print(json.dumps(self.results.end(step, self.codes(step), result)), flush=True)
            if not self.clock.alive():
                sys.exit(gpu_process.LOST)

    def measure(self, again: Sequence[str], deadline: float) -> None:
        """Starts processes that measure, one after the other, until nothing is left to do."""
        while (seconds := deadline - time.monotonic()) > 0:
            if not self.results.left(self.steps, self.codes):
                return
            began = time.monotonic()
            hangs = functools.partial(self.hangs, began)
            command = [*again, "--figures", str(deadline - 1)]
            status = gpu_process.run(command, seconds, enough=hangs)
            self.results.reload()
            running = self.results.running
            if status == 0 or (status is None and not hangs()):
                return
            if running is None and status != gpu_process.LOST:
                self.failed.append(f"figures: a process ended with status {status}")
                return
            if running is not None:
                step = next(step for step in self.steps if step.name == running["name"])
                why = "it hung" if status is None else f"its process ended with status {status}"
                self.results.end(step, self.codes(step), {"error": why})

    def hangs(self, began: float) -> bool:
        """Whether the running step of a process that began then is far over its time."""
        with contextlib.suppress(FileNotFoundError):
            began = max(began, self.results.path.stat().st_mtime - time.time() + time.monotonic())
        if time.monotonic() - began < HANG:  # spares reading the file
            return False
        self.results.reload()
        running = self.results.running
        return running is not None and time.monotonic() - began > running["limit"]

    def finish(self) -> int:
        """Prints and keeps the table; the exit status."""
        outcomes = {
            phase.name: self.outcomes.get(phase.name)
            or self.results.phase(phase.name, self.tests)
            or {"status": "not run yet"}
            for phase in self.phases
        }
        broken = [name for name, found in outcomes.items() if found["status"].startswith("failed")]
        entries = [self.results.entry(step, self.codes(step)) or {} for step in self.steps]
        # A baseline too large for this card is no mistake of anyone's.
        wrong = [
            entry["step"]
            for step, entry in zip(self.steps, entries, strict=True)
            if "error" in entry and (step.ours or entry["error"] != "out of memory")
        ]
        for name in (*broken, *self.failed, *wrong):
            print(f"FAILED: {name}")
        known = (self.results, self.codes, self.predictions)
        text = report(self.steps, *known, outcomes, self.failed)
        replace(self.results.path.with_suffix(".md"), text)
        print(text, flush=True)
        return 1 if broken or self.failed or wrong else 0


def main(
    families,
    began: float,
    phases=gpu_phases.PHASES,
    clock: Clock | None = None,
    root: Path = gpu_sources.ROOT,
) -> int:
    """The command.

    Args:
        families: modules or their like: FAMILY, SOURCES, PEER_SOURCES and `steps()`.
        began: when this process did, on the clock `time.monotonic`, which all processes share.
        phases: what comes before figures.
        clock: of the device; None for the GPU.
        root: where the sources are.
    """
    parser = argparse.ArgumentParser(description="Tests and figures of this machine's GPU.")
    parser.add_argument("--seconds", type=float, default=360, help="for everything")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<gpu>.json")
    parser.add_argument("--model", type=Path, default=MODEL, help="predictions")
    parser.add_argument("--again", action="store_true", help="forget what is known")
    parser.add_argument("--table", action="store_true", help="only print what is known")
    parser.add_argument("--failed", action="append", default=[], help="what failed before this")
    parser.add_argument("--figures", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    deadline = began + options.seconds - LAST
    if clock is None and not torch.cuda.is_available():
        print("no NVIDIA GPU: nothing to measure", file=sys.stderr)
        return 1
    check = Check(families, phases, clock or Clock(), options.output, options.model, root)
    check.failed += options.failed
    if options.figures is not None:
        gpu_process.end_with_parent()
        check.figures(options.figures)
        return 0
    if options.table:
        return check.finish()

    def cut(number, frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, cut)
    status = None
    try:
        if options.again:
            gpu_phases.forget()
        check.results.begin_call(options.again)
        check.test(deadline)
        check.measure(sys.orig_argv, deadline)
    except (SystemExit, KeyboardInterrupt) as stop:
        status = stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT
        check.results.reload()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finished = check.finish()
    return finished if status is None else status

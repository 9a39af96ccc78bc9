"""What `make gpu-check` knows so far: one file for each GPU, replaced as a whole at every step.

An entry counts as long as what it depends on is the same: torch, Triton, and a hash of sources.
Ours depends on the operator's sources and on what measures it; a peer on what measures it alone, so
that a change of our kernels leaves peers as they are.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks import gpu_sources
from benchmarks.gpu_measure import Step

FOLDER = Path(__file__).parent / "results"
#: Steps and phases during which so many calls were cut off come last.
CUTS = 2


def path_for(gpu: str) -> Path:
    return FOLDER / (re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json")


def replace(path: Path, text: str) -> None:
    """A reader, or a kill, never meets half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    os.replace(partial, path)


class Codes:
    """Hashes of what steps depend on, by the modules of their families."""

    def __init__(self, families: Iterable, root: Path = gpu_sources.ROOT):
        self.of = {}
        for family in families:
            measure = (*gpu_sources.MEASURE, f"benchmarks/{family.__name__.rpartition('.')[2]}.py")
            ours = (*gpu_sources.COMMON, *family.SOURCES, *measure)
            peers = (*family.PEER_SOURCES, *measure)
            peers = (*peers, *gpu_sources.measures(peers, root))
            self.of[family.FAMILY, True] = gpu_sources.digest(ours, root)
            self.of[family.FAMILY, False] = gpu_sources.digest(peers, root)

    def __call__(self, step: Step) -> str:
        """The step's."""
        return self.of[step.family, step.ours]


class Results:
    """The file of one GPU.

    Args:
        path: need not exist; a file of another GPU is not carried on.
        stamp: "gpu", "torch", "triton" and what else describes where the figures come from.
    """

    def __init__(self, path: Path, stamp: dict):
        self.path, self.stamp = path, stamp
        self.reload()

    def reload(self) -> None:
        """What is on disk; another process may have written it."""
        try:
            found = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            found = {}
        if not isinstance(found, dict) or found.get("gpu") != self.stamp["gpu"]:
            found = {}
        self.call = found.get("call", 0)
        self.phases = found.get("phases", {})
        self.entries = {e["step"]: e for e in found.get("results", []) if "step" in e}
        self.cuts = found.get("cuts", {})
        self.running = found.get("running")

    def write(self) -> None:
        """Replaces the file."""
        data = {
            **self.stamp,
            "call": self.call,
            "running": self.running,
            "cuts": self.cuts,
            "phases": self.phases,
            "results": list(self.entries.values()),
        }
        replace(self.path, json.dumps(data, indent=1) + "\n")

    def begin_call(self, again: bool = False) -> None:
        """A call of the whole begins. What ran when the last one was cut off is remembered."""
        self.call += 1
        if self.running:
            name = self.running["name"]
            self.cuts[name] = self.cuts.get(name, 0) + 1
            self.running = None
        if again:
            self.phases, self.entries, self.cuts = {}, {}, {}
        self.write()

    def begin(self, name: str, limit: float) -> None:
        """A step or a phase begins, which takes at most `limit` seconds."""
        self.running = {"name": name, "limit": limit}
        self.write()

    def _same(self, entry: dict | None, code: str) -> bool:
        now = {"code": code, "torch": self.stamp["torch"], "triton": self.stamp["triton"]}
        return entry is not None and all(entry.get(key) == value for key, value in now.items())

    def _marked(self, code: str, result: dict) -> dict:
        stamp = {key: self.stamp[key] for key in ("torch", "triton")}
        return {**result, **stamp, "code": code, "call": self.call}

    def end(self, step: Step, code: str, result: dict) -> dict:
        """A step's result is known; the entry."""
        named = {
            "step": step.name,
            "family": step.family,
            "case": step.case,
            **step.size,
            "impl": step.impl,
        }
        self.entries[step.name] = {**named, **self._marked(code, result)}
        self.running = None
        self.cuts.pop(step.name, None)
        self.write()
        return self.entries[step.name]

    def end_phase(self, name: str, code: str, result: dict) -> None:
        """A phase is over."""
        self.phases[name] = self._marked(code, result)
        self.running = None
        self.cuts.pop(name, None)
        self.write()

    def phase(self, name: str, code: str) -> dict | None:
        """A phase's result, where it still counts."""
        found = self.phases.get(name)
        return found if self._same(found, code) else None

    def entry(self, step: Step, code: str) -> dict | None:
        """A step's result, where it still counts."""
        found = self.entries.get(step.name)
        return found if self._same(found, code) else None

    def left(self, steps: list[Step], codes: Codes) -> list[Step]:
        """What is to be measured, in order; what failed or was cut off before comes last.

        What failed in this call is not tried again by it, nor is a peer's failure by any.
        """
        fresh, late = [], []
        for step in steps:
            entry = self.entry(step, codes(step))
            failed = entry is not None and step.ours and "error" in entry
            if entry is None and self.cuts.get(step.name, 0) < CUTS:
                fresh.append(step)
            elif entry is None or (failed and entry["call"] != self.call):
                late.append(step)
        return fresh + late

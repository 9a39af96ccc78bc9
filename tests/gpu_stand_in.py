"""`python -m benchmarks.gpu_check` without a GPU: its driver, with steps that cost nothing.

Started by test_gpu_check.py in a folder with stand-ins for the sources, which hold what steps shall
do: `behaviour.json` says "raise", "parity", "die", "hang", "slow", "slower", "missing" or "memory"
of some, and `measured.txt` is told who ran.
"""

import json
import os
import sys
import time
import types
from pathlib import Path


def module(name: str, **contents) -> types.ModuleType:
    made = sys.modules[name] = types.ModuleType(name)
    made.__dict__.update(contents)
    return made


#: When this process began; what it imports takes so many seconds.
BEGAN = time.monotonic()
time.sleep(float(os.environ.get("IMPORTS", 0)))


class Missing(Exception):
    pass


class TooLarge(Exception):
    pass


# Importing torch takes seconds, in two processes of every call; the driver needs little of it.
absent = module("torch.cuda", is_available=lambda: False)
torch = module("torch", __version__="2", version=module("torch.version", cuda="13"), cuda=absent)
torch.OutOfMemoryError, torch.device = TooLarge, lambda kind: types.SimpleNamespace(type=kind)
module("triton", __version__="3")
module("benchmarks.measure", Missing=Missing)

from benchmarks import gpu_driver, gpu_phases, gpu_results  # noqa: E402
from benchmarks.gpu_measure import OURS, Clock, Step, Target  # noqa: E402

HERE = Path.cwd()
WAITS = {"hang": 1000, "slow": 0.3, "slower": 1}
TIMES = {OURS: 2.0, "good": 6.0, "bad": 8.0}


def act(what: str, name: str, result: dict) -> None:
    if what == "raise":
        raise ValueError("broken")
    if what == "parity":
        raise AssertionError("differs by 1")
    if what == "missing":
        raise Missing("not installed")
    if what == "memory":
        raise TooLarge("too large")
    if what == "die":
        os._exit(11)
    if what in WAITS:
        time.sleep(WAITS[what])
    result["ms"] = TIMES[name.rpartition("; ")[2]]
    if name.endswith(OURS):
        result["graph_ms"] = 1.5


def step(family: str, rows: int, impl: str, target: Target | None = None) -> Step:
    def run(clock: Clock, result: dict) -> None:
        with (HERE / "measured.txt").open("a") as file:
            file.write(made.name + "\n")
        behaviour = json.loads((HERE / "behaviour.json").read_text())
        act(behaviour.get(made.name, behaviour.get("*", "")), made.name, result)

    made = Step(family, "case", {"rows": rows}, impl, run, 0.1, target if impl == OURS else None)
    return made


def family(name: str, target: Target | None = None) -> types.SimpleNamespace:
    """Three sizes; the second has peers, the third the target."""
    steps = [
        step(name, 1, OURS),
        *(step(name, 2, impl) for impl in (OURS, "good", "bad")),
        step(name, 3, OURS, target),
    ]
    return types.SimpleNamespace(
        __name__=f"benchmarks.{name}",
        FAMILY=name,
        SOURCES=(f"kernels/{name}.py",),
        PEER_SOURCES=("peers.py",),
        steps=lambda: iter(steps),
    )


if __name__ == "__main__":
    gpu_phases.FOLDER = HERE / "build"
    gpu_phases.GRACE, gpu_driver.LAST, gpu_driver.HANG = 4, 1, 4
    gpu_results.FOLDER = HERE / "results"
    phases = [
        gpu_phases.Phase("test", 20, ("tests",)),
        gpu_phases.Phase("initcheck", 20, ("-k", "small", "tests"), "initcheck"),
    ]
    sys.exit(
        gpu_driver.main(
            families=[family("one"), family("two", Target(1.0, card=None))],
            began=BEGAN,
            phases=phases if os.environ.get("PHASES") else [],
            clock=Clock("cpu", "Stand-in H200"),
            root=HERE,
        )
    )

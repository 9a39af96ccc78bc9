"""A project whose kernels cost nothing, for `make gpu-check` without a GPU: gpu_stand_in.py."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_sources

ROOT = Path(__file__).parents[1]
STAND_IN = Path(__file__).with_name("gpu_stand_in.py")
OURS = "fastssl"
QUICK = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def named(family, rows, impl=OURS):
    return f"{family}: case; rows {rows}; {impl}"


#: Without predictions: the target first, then families in turns, peers beside ours.
ALL = [
    named("two", 3),
    named("one", 1),
    named("two", 1),
    *(named("one", 2, impl) for impl in (OURS, "good", "bad")),
    *(named("two", 2, impl) for impl in (OURS, "good", "bad")),
    named("one", 3),
]
SANITIZER = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
assert words[words.index("--tool") + 1] == "initcheck" and "--error-exitcode" not in words
log = words[words.index("--log-file") + 1]
with open(log, "w") as file:
    file.write(os.environ.get("REPORT", "========= ERROR SUMMARY: 0 errors\\n"))
at = words.index({python!r})
if words[at + 1] == "-c":
    sys.exit(int(os.environ.get("UNABLE", 0)))
sys.exit(subprocess.run(words[at:]).returncode)
"""


class Project:
    """A folder with sources, and the driver that runs in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in (
            "fastssl/_all.py",
            "fastssl/ops/__init__.py",
            "kernels/one.py",
            "kernels/two.py",
            "peers.py",
            "csrc/a.h",
            "benchmarks/gpu_measure.py",
            "benchmarks/one.py",
            "benchmarks/two.py",
            *gpu_sources.EVERYTHING,
        ):
            if "." in name:  # is no folder
                self.write(name, "#1\n")
        self.write("tests/test_it.py", "def test_small_a(): pass\ndef test_b(): pass\n")
        self.behave({})

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def behave(self, behaviour: dict) -> None:
        self.write("behaviour.json", json.dumps(behaviour))

    def start(self, *arguments: str, seconds: float = 60, **environment: str) -> subprocess.Popen:
        paths = os.pathsep.join([str(ROOT), str(STAND_IN.parent)])
        return subprocess.Popen(
            [sys.executable, STAND_IN, "--seconds", str(seconds), *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": paths, **QUICK, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **options) -> tuple[int, str]:
        process = self.start(*arguments, **options)
        printed = process.communicate(timeout=120)[0]
        return process.returncode, printed

    def measured(self) -> list[str]:
        """What ran since the last look."""
        path = self.folder / "measured.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def results(self) -> dict:
        found = json.loads((self.folder / "results" / "stand-in-h200.json").read_text())
        return {**found, "results": {entry["step"]: entry for entry in found["results"]}}

    def table(self) -> str:
        return (self.folder / "results" / "stand-in-h200.md").read_text()

    def until_measured(self, count: int) -> None:
        path = self.folder / "measured.txt"
        deadline = time.monotonic() + 60
        while not path.exists() or len(path.read_text().splitlines()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture(name="project")
def a_project(tmp_path):
    return Project(tmp_path)


@pytest.fixture(name="sanitizer")
def a_sanitizer(project):
    """What makes the environment one with phases, and with a stand-in for compute-sanitizer."""
    project.write("bin/compute-sanitizer", SANITIZER.format(python=sys.executable))
    (project.folder / "bin/compute-sanitizer").chmod(0o755)
    path = os.pathsep.join([str(project.folder / "bin"), os.environ["PATH"]])
    return {"PHASES": "1", "PATH": path}

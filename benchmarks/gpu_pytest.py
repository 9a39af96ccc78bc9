"""A plugin of pytest that goes on where a run of the same tests was cut off, and ends in time.

    FASTSSL_PASSED=file FASTSSL_DEADLINE=1767225600 python -m pytest -p benchmarks.gpu_pytest tests

The first case of each test comes first, then the second of each: what was cut off has met most
kernels. Tests named in `file` are left out; those that pass now are added to `file.new`, one after
the other. Past the deadline, in seconds since 1970, it stops between two tests, with the status
OUT_OF_TIME.

After an illegal access or an assertion of a kernel the device answers nothing that this process
asks, so that each test after it would fail. Hence the device is waited for after every stage of a
test. Where that fails, the test has failed, its name is added to `file.broken`, and pytest stops
with the status LOST: the next process goes on without it. `file.running` names the test that runs,
for those that end the process itself. Tests named in `file.late` come last.
"""

import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gpu_process import LOST, end_with_parent

OUT_OF_TIME = 75
PASSED, DEADLINE = "FASTSSL_PASSED", "FASTSSL_DEADLINE"


def beside(passed: Path, what: str) -> Path:
    """The file of this kind: "new", "broken", "running" or "late"."""
    return passed.with_name(f"{passed.name}.{what}")


def names(path: Path) -> list[str]:
    """The tests that a file names; none where it is missing."""
    return path.read_text().splitlines() if path.exists() else []


def loss() -> str | None:
    """Why the device is lost to this process; None where it answers, or was not used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"the device is lost: {error}"
    return None


class Resume:
    """The hooks."""

    def __init__(self, passed: Path, deadline: float):
        self.passed, self.deadline = passed, deadline
        self.before, self.broken, self.last = (
            set(names(path)) for path in (passed, beside(passed, "broken"), beside(passed, "late"))
        )
        self.new = beside(passed, "new").open("a")
        self.good: set[str] = set()
        self.failed = self.late = False
        self.lost: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        """Leaves out what passed, and spreads the rest."""
        cases, ranked = Counter(), []
        for item in items:
            function = item.nodeid.partition("[")[0]
            ranked.append((item.nodeid in self.last, cases[function], item))
            cases[function] += 1
        known = self.before | self.broken
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
        ranked.sort(key=lambda one: one[:2])
        items[:] = [item for *_, item in ranked if item.nodeid not in known]

    def pytest_sessionstart(self, session):
        """Keeps what can be stopped."""
        self.session = session

    def pytest_collectreport(self, report):
        """A file that cannot be read is a failure."""
        self.failed |= report.failed

    def pytest_runtest_logstart(self, nodeid):
        """Writes down what runs now."""
        beside(self.passed, "running").write_text(nodeid + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self):
        """The stage failed where the device is lost behind it."""
        try:
            return (yield)
        finally:
            if self.lost is None and (why := loss()):
                self.lost = why
                pytest.fail(why, pytrace=False)

    pytest_runtest_call = pytest_runtest_teardown = pytest_runtest_setup

    def pytest_runtest_logreport(self, report):
        """Writes a test down once all of its stages passed."""
        self.failed |= report.failed
        if report.when == "call" and report.passed:
            self.good.add(report.nodeid)
        if report.when != "teardown":
            return
        if report.passed and report.nodeid in self.good:
            self.new.write(report.nodeid + "\n")
            self.new.flush()
        if self.lost:
            with beside(self.passed, "broken").open("a") as broken:
                broken.write(report.nodeid + "\n")
            self.session.shouldstop = "the device is lost: another process goes on from here"
        elif time.time() > self.deadline:
            self.late = True
            self.session.shouldstop = "out of time: the next run goes on from here"
        beside(self.passed, "running").unlink(missing_ok=True)

    def pytest_sessionfinish(self, session, exitstatus):
        """Everything left out is no failure; LOST and OUT_OF_TIME are told apart from one."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and (self.before or self.broken):
            session.exitstatus = 0
        if self.lost:
            session.exitstatus = LOST
        elif self.late and not self.failed:
            session.exitstatus = OUT_OF_TIME


def pytest_configure(config):
    """Registers the hooks, and ends pytest with who started it."""
    end_with_parent()
    passed = Path(os.environ[PASSED])
    config.pluginmanager.register(Resume(passed, float(os.environ.get(DEADLINE, "inf"))))

"""A plugin of pytest that goes on where a run of the same tests was cut off, and ends in time.

    FASTSSL_PASSED=file FASTSSL_DEADLINE=1767225600 python -m pytest -p benchmarks.gpu_pytest tests

The first case of each test comes first, then the second of each: what was cut off has met most
kernels. Tests named in `file` are left out; those that pass now are added to `file.new`, one after
the other. Past the deadline, in seconds since 1970, it stops between two tests, with the status
OUT_OF_TIME.
"""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gpu_process import end_with_parent

OUT_OF_TIME = 75
PASSED, DEADLINE = "FASTSSL_PASSED", "FASTSSL_DEADLINE"


class Resume:
    """The hooks."""

    def __init__(self, passed: Path, deadline: float):
        self.passed, self.deadline = passed, deadline
        self.before = set(passed.read_text().splitlines()) if passed.exists() else set()
        self.new = passed.with_name(passed.name + ".new").open("a")
        self.good: set[str] = set()
        self.failed = self.late = False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        """Leaves out what passed, and spreads the rest."""
        cases, ranked = Counter(), []
        for item in items:
            function = item.nodeid.partition("[")[0]
            ranked.append((cases[function], item))
            cases[function] += 1
        known = [item for item in items if item.nodeid in self.before]
        config.hook.pytest_deselected(items=known)
        ranked.sort(key=lambda one: one[0])
        items[:] = [item for _, item in ranked if item.nodeid not in self.before]

    def pytest_sessionstart(self, session):
        """Keeps what can be stopped."""
        self.session = session

    def pytest_collectreport(self, report):
        """A file that cannot be read is a failure."""
        self.failed |= report.failed

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
        if time.time() > self.deadline:
            self.late = True
            self.session.shouldstop = "out of time: the next run goes on from here"

    def pytest_sessionfinish(self, session, exitstatus):
        """Everything left out is no failure; out of time is told apart from one."""
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.before:
            session.exitstatus = 0
        if self.late and not self.failed:
            session.exitstatus = OUT_OF_TIME


def pytest_configure(config):
    """Registers the hooks, and ends pytest with who started it."""
    end_with_parent()
    passed = Path(os.environ[PASSED])
    config.pluginmanager.register(Resume(passed, float(os.environ.get(DEADLINE, "inf"))))

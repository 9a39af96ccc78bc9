"""`make gpu-check` where tests take the device down, hang, or imports take long: without a GPU."""

import time

import pytest
from gpu_project import ALL, a_project, a_sanitizer  # noqa: F401 (fixtures)

pytestmark = pytest.mark.slow

LOSES = """import os, sys, time, types
lost = []
def synchronize():
    if lost: raise RuntimeError("illegal address")
cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
bad = not os.path.exists("mended")
def use(): assert not lost
"""
AS_IT_IS, LOST = "use()", "use(); bad and lost.append(1)"


def losing(project, **tests):
    """Tests that do so, on a device that is lost to a process once and for all."""
    lines = [f"def test_{name}(): {what}\n" for name, what in tests.items()]
    project.write("tests/test_it.py", LOSES + "".join(lines))


def named_test(name):
    return f"tests/test_it.py::test_{name}"


def passed_in(phase, project):
    (file,) = (project.folder / "build").glob(f"{phase}-*.passed")
    return [name.rpartition("::test_")[2] for name in file.read_text().splitlines()]


def test_a_test_that_takes_the_device_or_the_process_down_costs_itself(project, sanitizer):
    losing(project, a=AS_IT_IS, small_b=LOST, c=AS_IT_IS, d="use(); bad and os._exit(11)",
           small_e=AS_IT_IS, f="use(); bad and lost.append(1); assert not lost",
           g=AS_IT_IS)  # fmt: skip
    status, printed = project.run(**sanitizer)
    assert status == 1
    lost = ", ".join(map(named_test, ("small_b", "d", "f")))
    assert f"== test: failed, {lost} took the device or the process down" in printed
    assert f"== initcheck: failed, {named_test('small_b')} took the device" in printed
    assert "the device is lost: illegal address" in printed
    assert passed_in("test", project) == ["a", "c", "small_e", "g"]
    assert passed_in("initcheck", project) == ["small_e"]
    assert project.measured() == ALL
    project.write("mended", "")
    status, printed = project.run(**sanitizer)
    assert status == 0
    assert "3 passed, 4 deselected" in printed and "- test: passed" in project.table()


def test_processes_for_tests_are_few_and_the_next_call_tries_others_first(project, sanitizer):
    losing(project, **{f"x{i}": LOST for i in range(8)}, last=AS_IT_IS)
    for tests in ("012345", "670123"):
        status, printed = project.run(**sanitizer)
        lost = ", ".join(named_test(f"x{i}") for i in tests)
        assert status == 1 and f"== test: failed, {lost} took" in printed


def test_a_test_that_hangs_comes_last_in_the_next_call(project, sanitizer):
    losing(project, a=AS_IT_IS, hangs="bad and time.sleep(1000)", c=AS_IT_IS, small_d=AS_IT_IS)
    status, printed = project.run(**sanitizer, seconds=10)
    assert status == 1 and "== test: failed, over " in printed
    project.write("mended", "")
    assert project.run(**sanitizer)[0] == 0
    assert passed_in("test", project) == ["a", "c", "small_d", "hangs"]


def test_time_counts_from_the_start_of_a_process_not_after_its_imports(project):
    project.behave({"*": "slower"})
    took = []
    for imports in ("0", "2"):
        began = time.monotonic()
        assert project.run("--again", seconds=10, IMPORTS=imports)[0] == 0
        took.append(time.monotonic() - began)
    assert took[1] < took[0] + 1.5, "the deadline came two seconds later"
    assert project.results()["running"] is None, "who measures ends by itself"
    assert 2 <= len(project.results()["results"]) < len(ALL)

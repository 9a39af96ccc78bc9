"""`make gpu-check` without a GPU: order, resumption, failures that cost no more than themselves.

No figure of a GPU is made up: results go to temporary folders, under a stand-in's name.
"""

import json
import signal
import time

import pytest
from gpu_project import ALL, OURS, a_project, a_sanitizer, named  # noqa: F401 (fixtures)

COLUMNS = ("floor", "predicted", "measured", "peer", "speed-up", "target")

pytestmark = pytest.mark.slow


def predictions(project, *gaps, card="H200"):
    calls = [
        {"family": family, "case": "case", "card": card,
         "size": {"rows": rows}, "floor_us": 500, "predicted_us": 500 * gap, "graph_us": 375 * gap,
         "limiter": "exp"}
        for family, rows, gap in gaps
    ]  # fmt: skip
    project.write("model.json", json.dumps({"calls": calls}))
    return "--model", str(project.folder / "model.json")


def test_figures_come_in_the_order_of_targets_and_gaps(project):
    model = predictions(project, ("one", 3, 4), ("one", 2, 2), ("two", 1, 3))
    status, printed = project.run(*model)
    assert status == 0
    known = [named("two", 3), named("one", 3), named("two", 1), named("one", 2)]
    order = project.measured()
    assert [name for name in order if name.endswith(OURS)][:4] == known
    at = order.index(named("one", 2))
    assert order[at + 1 : at + 3] == [named("one", 2, "good"), named("one", 2, "bad")]
    assert sorted(order) == sorted(ALL)
    table = project.table()
    assert printed.endswith(table + "\n")
    assert all(column in table for column in COLUMNS)
    line = next(
        line for line in table.splitlines() if line.startswith("| one") and "rows 2" in line
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == ["one", "case", "rows 2", "0.5", "1"]
    assert cells[5:] == ["2", "1.5", "2.00", "6 (good)", "3.0x", ""]
    assert "<= 1 ms: NOT met" in table
    assert "- one: case; rows 2: 2.00 times, limited by exp" in table
    assert "- one: case; rows 3" not in table, "1.5 ms, as predicted"


def test_predictions_of_another_card_are_none(project):
    model = predictions(project, ("one", 3, 4), card="A100")
    assert project.run(*model)[0] == 0
    assert project.measured() == ALL


def test_what_is_known_is_not_measured_again(project):
    assert project.run()[0] == 0
    assert project.measured() == ALL
    status, printed = project.run()
    assert status == 0
    assert project.measured() == []
    assert all(column in printed for column in COLUMNS)
    project.write("kernels/one.py", "2\n")
    table = project.run("--table")[1]
    assert "3 of 10 steps are not measured yet" in table
    assert project.run()[0] == 0
    assert project.measured() == [name for name in ALL if name[:3] == "one" and OURS in name]
    project.write("peers.py", "2\n")
    assert project.run()[0] == 0
    assert project.measured() == [name for name in ALL if OURS not in name]
    assert project.run("--again")[0] == 0
    assert project.measured() == ALL


def test_a_killed_call_is_carried_on(project):
    project.behave({"*": "slow"})
    process = project.start()
    project.until_measured(4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(1)
    first = project.measured()
    time.sleep(1)
    assert project.measured() == [], "who measured outlived who started it"
    done = project.results()["results"]
    assert 3 <= len(done) < len(ALL)
    assert first[: len(done)] == ALL[: len(done)]
    project.behave({})
    status, _ = project.run()
    assert status == 0
    assert project.measured() == ALL[len(done) :]
    assert list(project.results()["results"]) == ALL


def test_a_terminated_call_ends_with_its_table(project):
    project.behave({ALL[4]: "slower"})
    process = project.start()
    project.until_measured(5)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=20)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert printed.endswith(project.table() + "\n")
    assert "6 of 10 steps are not measured yet" in printed
    assert project.results()["running"]["name"] == ALL[4]
    assert project.measured() == ALL[:5]
    project.behave({})
    assert project.run()[0] == 0
    assert project.measured() == ALL[4:]


def test_what_was_cut_off_twice_comes_last(project):
    project.behave({ALL[1]: "slower"})
    for count in (2, 1):
        process = project.start()
        project.until_measured(count)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert project.measured()[-1] == ALL[1]
    project.behave({})
    assert project.run()[0] == 0
    assert project.measured() == [*ALL[2:], ALL[1]]


def test_time_that_is_over_leaves_the_rest(project):
    project.behave({"*": "slower"})
    status, printed = project.run(seconds=6)
    assert status == 0
    assert 0 < len(project.results()["results"]) < len(ALL)
    assert "steps are not measured yet: run it again" in printed


@pytest.mark.parametrize("how", ["raise", "parity", "die", "hang"])
@pytest.mark.parametrize("name", [named("one", 1), named("one", 2, "good")])
def test_what_is_broken_costs_no_more_than_itself(project, name, how):
    project.behave({name: how})
    status, printed = project.run()
    assert status == 1
    assert project.measured() == ALL
    results = project.results()["results"]
    assert [step for step, entry in results.items() if "error" in entry] == [name]
    assert f"FAILED: {name}" in printed
    assert f"- {name}: {results[name]['error']}" in project.table()
    project.behave({})
    status, _ = project.run()
    if name.endswith(OURS):  # it may have been mended outside of the sources
        assert status == 0
        assert project.measured() == [name]
    else:
        assert status == 1
        assert project.measured() == []


def test_a_baseline_that_is_not_there_or_too_large_is_no_failure(project):
    project.behave({named("one", 2, "good"): "missing", named("two", 2, "good"): "memory"})
    status, printed = project.run()
    assert status == 0
    assert "one: case; rows 2; good: not here, not installed" in printed
    assert "8 (bad)" in printed
    assert project.measured() == ALL
    project.run()
    assert project.measured() == []


REPORT = """========= Uninitialized __global__ memory read of size 4 bytes
=========     at {kernel}+0x150
=========     by thread (0,0,0) in block (0,0,0)
=========
"""


def test_phases_come_first_and_are_skipped_once_they_passed(project, sanitizer):
    project.write("tests/test_it.py", "def test_small_a(): pass\ndef test_b(): assert 0\n")
    status, printed = project.run(**sanitizer)
    assert status == 1
    assert printed.index("== test: failed") < printed.index("== initcheck: passed")
    assert printed.index("== initcheck: passed") < printed.index('{"step"')
    assert "FAILED: test" in printed and "- test: failed" in project.table()
    assert project.measured() == ALL
    status, printed = project.run(**sanitizer)
    assert status == 1
    assert "1 failed, 1 deselected" in printed, "test_small_a is known to pass"
    assert printed.count("deselected in") == 1, "initcheck passed already"
    project.write("tests/test_it.py", "def test_small_a(): pass\ndef test_b(): pass\n")
    status, printed = project.run(**sanitizer)
    assert status == 0
    assert "2 passed" in printed
    status, printed = project.run(**sanitizer)
    assert status == 0
    assert " passed in " not in printed
    assert "- test: passed\n- initcheck: passed" in project.table()


def test_a_read_of_what_nobody_wrote_fails_where_it_is_ours(project, sanitizer):
    for kernel, wanted in (
        ("void at::native::reduce_kernel<512, 1>(T3)", 0),
        ("sum_exponentials", 1),
    ):
        report = REPORT.format(kernel=kernel)
        status, printed = project.run("--again", **sanitizer, REPORT=report)
        assert status == wanted, kernel
        assert ("== initcheck: failed" in printed) == bool(wanted)
    status, printed = project.run(**sanitizer)
    assert status == 0
    assert "1 passed, 1 deselected" in printed, "nothing is kept of a run that was no good"


def test_tests_that_take_too_long_go_on_in_the_next_call(project, sanitizer):
    slow = "".join(f"def test_{i}(): time.sleep(0.3)\n" for i in range(25))
    project.write("tests/test_it.py", f"import time\n{slow}def test_small(): pass\n")
    status, printed = project.run(**sanitizer, seconds=10)
    assert status == 0
    assert "- test: cut off, goes on in the next call" in printed
    status, printed = project.run(**sanitizer, seconds=60)
    assert status == 0
    assert "- test: passed" in printed
    assert "deselected" in printed


def test_a_device_that_cannot_be_watched_is_said(project, sanitizer):
    status, printed = project.run(**sanitizer, UNABLE="1")
    assert status == 0
    assert "- initcheck: skipped, compute-sanitizer cannot watch this device" in printed

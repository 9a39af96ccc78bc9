"""Passes through shared memory of the GPU's augmentation loops, counted from their addresses."""

import pytest

from benchmarks.machine_code.augment_banks import accesses, passes

#: (size, threads of a team, side of the crop, radius and strip of the blur): the usual view of
#: SimCLR at 224, the largest crop with the widest blur, and smaller views.
CASES = [
    (224, 512, 182, 5, 72), (224, 512, 256, 11, 72), (96, 256, 94, 5, 96), (32, 64, 24, 1, 32),
]  # fmt: skip
#: Those that take more passes than they have to, and why that is not worth a change: positions lie
#: 16 bytes apart, of which 8 are read, once for an item; two rows of a strip begin in one bank; the
#: compiler splits a blurred quad's store into four.
MORE = {
    "rows: taps": 2.0,
    "columns: taps": 2.0,
    "blur, rows: load": 2.0,
    "blur, rows: store": 4.0,
    "blur, columns: load": 1.34,
    "blur, columns: store": 4.0,
}


def test_a_pass_for_each_word_of_a_bank():
    assert passes([4 * i for i in range(32)], 4) == 1
    assert passes(list(range(32)), 1) == 1
    assert passes([0] * 32, 4) == 1
    assert passes([8 * i for i in range(32)], 4) == 2
    assert passes([128 * i for i in range(32)], 4) == 32
    assert passes([16 * i for i in range(32)], 16) == 4
    assert passes([8 * i for i in range(32)], 8) == 2


@pytest.mark.parametrize("case", CASES)
def test_loops_have_no_bank_conflicts_that_cost(case):
    for name, (found, least) in accesses(*case).items():
        assert found <= MORE.get(name, 1.05) * least, name


def test_what_runs_over_taps_has_none():
    # These are executed once for each tap: the others once for an item.
    for case in CASES:
        found = accesses(*case)
        for name in ("rows: weight", "columns: weight", "columns: four sums"):
            assert found[name][0] <= 1.05 * found[name][1]

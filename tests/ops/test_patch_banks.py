"""Passes through shared memory: how they are counted, and what the patch kernels take."""

import pytest

from benchmarks.machine_code import patch_banks
from benchmarks.machine_code.patch_banks import Access, passes, total


def access(width, place):
    return Access("", width, tuple(place(rank) for rank in range(32)))


@pytest.mark.parametrize(
    ("width", "place", "expected"),
    [
        (4, lambda r: 4 * r, 1),
        (4, lambda r: 8 * r, 2),
        (4, lambda r: 128 * r, 32),
        (4, lambda r: 0, 1),
        (4, lambda r: 4 * r if r < 5 else None, 1),
        (8, lambda r: 8 * r, 2),
        (8, lambda r: 16 * r, 4),
        (16, lambda r: 16 * r, 4),
        (16, lambda r: 32 * r, 8),
        (16, lambda r: 96 * r, 8),
        (16, lambda r: 0, 1),
    ],
)
def test_passes_of_known_patterns(width, place, expected):
    assert passes(access(width, place).addresses, width) == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_loss_has_no_conflicts(dtype):
    found, least = total(patch_banks.levels(dtype))
    assert found == least == 58
    plain, _ = total(patch_banks.levels(dtype, lambda e: e))
    assert plain == {"bfloat16": 106, "float32": 82}[dtype]


def test_the_target_is_a_permutation():
    assert sorted(map(patch_banks.placed_at, range(768))) == list(range(768))
    # What is read or written at once stays together: 16 bytes.
    assert all(
        patch_banks.placed_at(4 * g + k) == patch_banks.placed_at(4 * g) + k
        for g in range(192)
        for k in range(4)
    )


def test_a_sort_has_no_conflicts():
    found, least = total(patch_banks.sort())
    assert found == least == 1152
    plain, _ = total(patch_banks.sort(place=lambda i: i))
    assert plain == 1984
    assert sorted(map(patch_banks.key_place, range(256))) == list(range(256))


def test_chunks_are_added_up_without_conflicts():
    found, least = total(patch_banks.last_sums())
    assert found == least

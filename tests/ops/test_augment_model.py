"""The model of the augmentation kernel's machine code against what the kernel must do."""

from collections import Counter

import pytest

pytest.importorskip("triton")

from benchmarks.machine_code import augment_code, augment_views  # noqa: E402

H100 = 227 << 10


@pytest.fixture(scope="module")
def code():
    if not augment_code.is_fresh():
        pytest.skip("no CUDA library is built from these sources")
    return augment_code.code(90, "tv-uint8")


def names(instructions):
    return Counter(x.name for x in instructions)


def test_stages_load_and_store_what_they_must(code):
    # Four rows of three planes; three words of four pixels; four floats; three times 16 bytes.
    assert names(code.item("rows", 1))["STS"] == 12
    assert names(code.item("rows", 1))["LDG"] == 24
    columns = code.item("columns", 1)
    assert names(columns)["STS"] == 3
    assert sum(x.opcode == "LDS.128" for x in columns) == 3
    assert names(code.item("blur, rows", 1))["STS"] == 4
    assert names(code.item("blur, columns", 1))["STS"] >= 4
    wide = [x for x in code.item("store", 0) if x.opcode.startswith("ST") and "128" in x.opcode]
    assert len(wide) == 3


def test_products_are_as_many_as_taps(code):
    for name, trips, products in (("columns", 1, 12), ("blur, columns", 1, 64), ("rows", 1, 24)):
        longer = names(code.item(name, trips + 1)) - names(code.item(name, trips))
        assert longer["FFMA"] == products, name


def test_steps_are_on_four_pixels(code):
    # Two reciprocals for each hue, none elsewhere; no conversion unit, no division's slow path.
    for step in augment_code.STEPS:
        found = names(code.item("columns", 0, step=step))
        assert found["MUFU"] == (8 if step == "hue" else 0)
        assert not found.keys() & {"FRND", "F2I", "I2F", "FCHK", "CALL"}


def test_layout_of_a_launch():
    views = augment_views.views("SimCLR, 2 x 224", 4, H100, 132)
    assert len(views) == 8 and all(v.threads == 512 for v in views)
    assert all(sum(s.column_rounds for s in v.strips) > 0 for v in views if v.blur)
    small = augment_views.views("SimCLR, 2 x 32", 1024, H100, 132)
    assert {v.threads for v in small} == {64}
    assert len(augment_views.blocks(small)) == 256

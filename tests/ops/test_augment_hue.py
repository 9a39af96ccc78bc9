"""The quotients of csrc/augment/hue_team.h, a correction instead of a division, for all levels."""

import numpy as np
import pytest

UNIT = np.float32(1.0 / 255.0)


def fused(a, b, c):
    """a * b + c in float32, rounded once as far as 64 bits of mantissa can tell."""
    wide = np.longdouble
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(np.float32)


def stepped(x, steps):
    """The float32 number `steps` further from zero than x > 0."""
    return (x.view(np.int32) + np.int32(steps)).view(np.float32)


def quotient(a, b, off):
    """As hue_team.h has it, of a reciprocal that is `off` units in the last place wrong."""
    one = np.ones_like(b)
    y = stepped(one / b, off)
    y = fused(y, fused(-b, y, one), y)
    q = a * y
    return fused(fused(-b, q, a), y, q)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs a long double of 64 bits")
@pytest.mark.parametrize("off", [-2, -1, 0, 1, 2])
def test_all_quotients_of_levels_are_rounded_correctly(off):
    # The card's approximate reciprocal is at most one unit in the last place wrong.
    level = np.arange(256, dtype=np.float32) * UNIT
    for most in range(256):
        least, other = np.tril_indices(most + 1)
        least, other = other, least  # other >= least
        spread = np.maximum(level[most] - level[least], np.float32(1e-3))
        part = level[most] - level[other]
        gray = least == most
        assert (part[gray] == 0).all()
        np.testing.assert_array_equal(quotient(part, spread, off), part / spread)
        value = np.maximum(level[most], UNIT) * np.ones_like(spread)
        whole = level[most] - level[least]
        np.testing.assert_array_equal(quotient(whole, value, off), whole / value)

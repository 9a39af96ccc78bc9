"""The contrastive family's raw operators on the CPU: statistics and gradients against float64."""

import pytest
import torch
from contrast_cases import CASES, Case, pairs_of

from fastssl._library import _C
from fastssl.ops.contrast import reference, schema
from fastssl.ops.contrast.pairs import (
    BEST,
    COUNT,
    LABELLED,
    NEGATIVES,
    NUMBER,
    PAIRED,
    POSITIVES,
    RANK,
    SIGMOID,
    SOFTMAX,
    Pairs,
)

FORWARD, BACKWARD = torch.ops.fastssl.contrast_forward, torch.ops.fastssl.contrast_backward
SIZES = [(1, 1, 1), (5, 9, 3), (70, 33, 17), (150, 300, 40), (33, 20, 129)]


@pytest.fixture(params=_C.cpu_capabilities() if _C else [], autouse=True)
def capability(request):
    before = _C.cpu_capability()
    _C.use_cpu_capability(request.param)
    yield request.param
    _C.use_cpu_capability(before)


def unit(dtype):
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def assert_close(name, ours, true, eager, floor):
    """As exact as eager PyTorch within a factor of 2, and a few units in the last place."""
    infinite = true.isinf()
    assert torch.equal(ours[infinite].double(), true[infinite]), name
    if infinite.all():
        return
    ours, true, eager = (z.double()[~infinite] for z in (ours, true, eager))
    allowed = 2 * (eager - true).abs().max().item() + floor
    error = (ours - true).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def relevant(case):
    """Rows of the statistics that mean something."""
    rows = {NEGATIVES, 1, COUNT, *([POSITIVES] if case.kind in (LABELLED, PAIRED) else [])}
    # Ranks are compared apart: a pair at the threshold may be rounded either way.
    return sorted(rows | (set(range(RANK + 1, BEST + 1)) if case.metrics else set()))


def check(case, rows, columns, depth, dtype, scale, normalize):
    p, exact = pairs_of(case, rows, columns, depth, dtype, scale, normalize)
    ours, true, eager = FORWARD(*p), reference.statistics(exact), reference.statistics(p)
    eps = unit(dtype)
    for side, (mine, right, theirs) in enumerate(zip(ours, true, eager, strict=True)):
        assert mine.shape == right.shape
        for k in relevant(case) if right.numel() else ():
            finite = right[k][right[k].isfinite()].abs()
            size = 1 + (finite.max().item() if len(finite) else 0)
            floor = 16 * eps * size * (1 + abs(scale) / 8)
            assert_close(f"statistic {k} of side {side}", mine[k], right[k], theirs[k], floor)
    g = torch.Generator().manual_seed(1)
    grads = [torch.randn(s.shape, generator=g, dtype=torch.float64) for s in true]
    for grad in grads:
        grad[COUNT:] = 0
        if case.kind != LABELLED:
            grad[POSITIVES] = 0
    want_y = not case.symmetric
    arguments = *p, ours[0], grads[0], ours[1], grads[1], True, want_y
    variants = [BACKWARD(*arguments)]
    if case.kind != PAIRED and not case.metrics and not case.window:
        *again, kept = torch.ops.fastssl.contrast_forward_kept(*p)
        assert all(map(torch.equal, again, ours))
        assert kept.numel() == schema.kept_size(p)
        variants.append(torch.ops.fastssl.contrast_backward_kept(kept, *arguments))
    true = schema._backward(*exact, true[0], grads[0], true[1], grads[1], True, want_y)
    eager = schema._backward(*p, eager[0], grads[0], eager[1], grads[1], True, want_y)
    norms = [z.double().norm(dim=1) for z in (exact.x, exact.y) if z is not None]
    shortest = min(n.min().item() for n in norms) if normalize else 1.0
    half = 4 * torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 0
    names = ["x", "y", "scale", *(["bias"] if case.kind == SIGMOID else [])]
    for name, *mine, right, theirs in zip(names, *variants, true, eager, strict=False):
        if right.numel() == 0:
            continue
        term = abs(scale) / shortest if name in "xy" else (rows + columns) ** 0.5
        floor = 16 * eps * (right.abs().max().item() + 3 * term) * (1 + abs(scale) / 8)
        for one in mine:
            assert_close(name, one, right, theirs, floor + half * right.abs().max().item())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_statistics_and_gradients(case, size):
    check(case, *size, torch.float32, -7.0, True)
    check(case, *size, torch.float32, 60.0, True)  # beyond what one exponential serves
    check(case, *size, torch.float64, 2.0, False)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case, dtype):
    check(case, 61, 35, 24, dtype, 5.0, True)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 500.0, -500.0])
@pytest.mark.parametrize("case", [c for c in CASES if not c.metrics and not c.window], ids=str)
def test_scales(case, scale):
    check(case, 21, 30, 16, torch.float32, scale, True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_strides_do_not_matter(case):
    p, _ = pairs_of(case, 37, 29, 20, torch.float32, 4.0, True)
    strided = [
        torch.stack([z, z], -1).flatten(1)[:, ::2].T.contiguous().T
        if isinstance(z, torch.Tensor) and z.dim() == 2 and z.dtype == torch.float32
        else torch.stack([z, z]).T[:, 0]
        if isinstance(z, torch.Tensor) and z.dim() == 1
        else z
        for z in p
    ]
    for mine, other in zip(FORWARD(*p), FORWARD(*strided), strict=True):
        assert torch.equal(mine, other)
    grads = [torch.ones_like(s) for s in FORWARD(*p)]
    for grad in grads:
        grad[POSITIVES:] = 0
    found = FORWARD(*p)
    arguments = found[0], grads[0], found[1], grads[1], True, not case.symmetric
    for mine, other in zip(BACKWARD(*p, *arguments), BACKWARD(*strided, *arguments), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_bits_every_time(case):
    p, _ = pairs_of(case, 300, 200, 40, torch.float32, 4.0, True)
    first = FORWARD(*p)
    grads = [torch.ones_like(s) for s in first]
    arguments = first[0], grads[0], first[1], grads[1], True, not case.symmetric
    gradient = BACKWARD(*p, *arguments)
    for _ in range(2):
        assert all(map(torch.equal, first, FORWARD(*p)))
        assert all(map(torch.equal, gradient[:2], BACKWARD(*p, *arguments)[:2]))


def test_more_columns_than_a_block_and_threads():
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            check(Case(columns=True, partner=True), 7, 1500, 33, torch.float32, 5.0, True)
            check(Case(columns=True, partner=True), 1500, 7, 33, torch.float32, 5.0, True)
            check(Case(LABELLED, symmetric=True, labels=9), 700, 0, 33, torch.float32, 5.0, True)
        finally:
            torch.set_num_threads(before)


def test_ties_are_no_rank():
    """Rows equal to the positive are not above it, however the products are rounded."""
    x = torch.randn(30, 65)
    y = x.repeat(3, 1)
    p = Pairs(
        x, y, None, 14.3, None, SOFTMAX, True, True, True, True, None, torch.arange(30) + 30, None,
        None, None, None, None,
    )  # fmt: skip
    rows, columns = FORWARD(*p)
    assert (rows[RANK] == 0).all() and (rows[NUMBER] == 89).all()
    assert (columns[RANK][30:60] == 0).all()


def test_what_is_not_a_number_shows():
    for case in CASES:
        p, _ = pairs_of(case, 20, 20, 8, torch.float32, 3.0, True)
        p.x[3, 2] = float("nan")
        rows, _ = FORWARD(*p)
        assert rows[:2, 3].isnan().any(), case


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partner": torch.zeros(4, dtype=torch.int64)}, "partner names a row of y twice"),
        ({"partner": torch.full((4,), 9)}, "partner must be -1 or a row of y"),
        ({"partner": torch.zeros(3, dtype=torch.int64)}, "partner must be a CPU vector"),
        ({"excluded": torch.zeros(4)}, "excluded must be a CPU vector"),
        ({"row_labels": torch.zeros(4, dtype=torch.int64)}, "columns need labels"),
        ({"excluded": torch.full((4,), 5 * 10**9)}, "excluded must be -1 or a row of y"),
        ({"excluded": torch.zeros(4, dtype=torch.int64)}, "excluded names a row of y twice"),
        ({"kind": SIGMOID, "row_window": torch.zeros(2, 4).double()}, "windows are for kind 0"),
        ({"kind": LABELLED}, "need labels"),
        ({"kind": 7}, "kind must be 0 to 3"),
        ({"y": torch.zeros(4, 5)}, "one width"),
        ({"row_window": torch.zeros(2, 4)}, "row_window must be a float64"),
        ({"kind": SIGMOID, "columns": True}, "one way"),
    ],
)
def test_raw_operators_protect_memory(change, message):
    """Called directly, with what the public functions never pass."""
    p, _ = pairs_of(Case(), 4, 6, 3, torch.float32, 1.0, True)
    with pytest.raises(RuntimeError, match=message):
        FORWARD(*p._replace(**change))

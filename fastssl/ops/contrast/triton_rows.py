"""The family's Triton kernels over rows: packing, partners, and sums to statistics.

A row is kept as nt_xent/triton_rows.py says: its own digits times a power of two in `packed`, and a
factor in `scale`. Arrays over rows have `padded` entries, the rows past the last being zero.
Statistics are float64 [4 or 10, R], in natural units.
"""

import triton
import triton.language as tl

from fastssl.ops.contrast.triton_pairs import (
    HARDLY,
    LABELLED,
    PAIRED,
    SIGMOID,
    SOFTMAX,
    log_scale_of,
    shift_of,
)
from fastssl.ops.nt_xent.triton_rows import (
    LN_2,
    NEVER,
    PACKED_EXPONENT,
    exponent_of,
    load_packed,
    load_rows,
    power_of_two,
    store_packed,
    store_scale,
)

#: Where a statistic stands; see pairs.py.
(
    S_NEGATIVES,
    S_POSITIVE,
    S_POSITIVES,
    S_COUNT,
    S_RANK,
    S_MEAN,
    S_TOTAL,
    S_NUMBER,
    S_CLOSE,
    S_BEST,
) = (tl.constexpr(row) for row in range(10))


@triton.jit(do_not_specialize=["rows"])
def pack_rows(
    x, packed, scale, inverse, rows, padded, depth, row_stride, column_stride,
    NORMALIZE: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One matrix [rows, depth]: packed digits [PARTS, padded, DEPTH], scale and inverse norms."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < rows
    most = tl.zeros([BLOCK_M], tl.float32)
    for d in range(0, DEPTH, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        values = load_rows(x, row, live, column, depth, row_stride, column_stride)
        most = tl.maximum(most, tl.max(tl.abs(values), 1))
    exponent = exponent_of(most)
    up = power_of_two(-exponent + PACKED_EXPONENT)[:, None]
    square = tl.zeros([BLOCK_M], tl.float32)
    for d in range(0, DEPTH, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        values = load_rows(x, row, live, column, depth, row_stride, column_stride) * up
        square += tl.sum(values * values, 1)
        store_packed(packed, row, row < padded, column, values, padded, DEPTH, PARTS)
    store_scale(scale, inverse, row, live, exponent, square, NORMALIZE)
    nothing = tl.zeros([BLOCK_M], tl.float32)
    padding = (row >= rows) & (row < padded)
    tl.store(scale + row, nothing, mask=padding)
    tl.store(inverse + row, nothing, mask=padding)


@triton.jit(do_not_specialize=["rows"])
def invert(index, inverse, rows, BLOCK: tl.constexpr):
    """inverse[index[i]] = i, for indices of which none occurs twice; -1 is skipped."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    to = tl.load(index + row, mask=row < rows, other=-1)
    tl.store(inverse + to, row.to(tl.int64), mask=to >= 0)


@triton.jit(do_not_specialize=["rows"])
def partner_products(
    left, left_scale, right, right_scale, partner, positive, rows, left_padded, right_padded,
    PARTS: tl.constexpr, DEPTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """positive[i] = <x_i, y_partner(i)>, 0 where there is none."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < rows
    other = tl.load(partner + row, mask=live, other=-1)
    some = other >= 0
    dot = tl.zeros([BLOCK_M], tl.float32)
    for d in range(0, DEPTH, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        x = load_packed(left, row, live, column, left_padded, DEPTH, PARTS)
        y = load_packed(right, other, some, column, right_padded, DEPTH, PARTS)
        dot += tl.sum(x * y, 1)
    factor = tl.load(left_scale + row, mask=live, other=0.0)
    factor *= tl.load(right_scale + other, mask=some, other=0.0)
    tl.store(positive + row, tl.where(some, dot * factor, 0.0), mask=live)


@triton.jit
def _place(slot, split, splits, row, padded):
    return (slot * splits + split) * padded.to(tl.int64) + row


@triton.jit
def _added(sums, slot, splits, row, live, padded):
    total = tl.zeros(row.shape, tl.float64)
    for split in range(0, splits):
        where = _place(slot, split, splits, row, padded)
        total += tl.load(sums + where, mask=live, other=0.0).to(tl.float64)
    return total


@triton.jit
def _greatest(sums, slot, splits, row, live, padded):
    top = tl.full(row.shape, NEVER, tl.float32)
    for split in range(0, splits):
        where = _place(slot, split, splits, row, padded)
        top = tl.maximum(top, tl.load(sums + where, mask=live, other=NEVER))
    return top


@triton.jit
def _added_above(sums, slot, peak_slot, splits, row, live, padded, top):
    total = tl.zeros(row.shape, tl.float32)
    for split in range(0, splits):
        part = tl.load(sums + _place(slot, split, splits, row, padded), mask=live, other=0.0)
        where = _place(peak_slot, split, splits, row, padded)
        total += part * tl.exp2(tl.load(sums + where, mask=live, other=NEVER) - top)
    return total


@triton.jit
def _log_sum(sums, slot, bound, splits, row, live, padded, BOUNDED: tl.constexpr):
    # log of the sum in `slot` relative to its peak in the next; -inf where nothing was summed.
    if BOUNDED:
        top = tl.zeros(row.shape, tl.float32) + bound
        total = _added(sums, slot, splits, row, live, padded).to(tl.float32)
    else:
        top = _greatest(sums, slot + 1, splits, row, live, padded)
        total = _added_above(sums, slot, slot + 1, splits, row, live, padded, top)
    # The logarithm of a small sum has few digits behind the point: the exponent apart.
    exponent = exponent_of(total)
    mantissa = tl.log2(total * power_of_two(-exponent))
    result = (top.to(tl.float64) + exponent + mantissa.to(tl.float64)) * LN_2
    nothing = (total == 0.0) | (top < HARDLY)
    return tl.where(nothing, float("-inf"), result)


@triton.jit(do_not_specialize=["rows", "splits"])
def finish_statistics(
    sums, positive, partner, statistics, scale, factor, bias, rows, padded, splits,
    KIND: tl.constexpr, BOUNDED: tl.constexpr, LEARNED: tl.constexpr, BIASED: tl.constexpr,
    PARTNER: tl.constexpr, INVERSE: tl.constexpr, BEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`sums` of sum_pairs to the statistics of their kind.

    `positive` holds partners' cosines by row, or, for INVERSE, by partner.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    log_scale = log_scale_of(scale, factor, LEARNED)
    shift = shift_of(bias, BIASED)
    bound = tl.abs(log_scale)
    to = statistics + row
    rows = tl.full((), 0, tl.int64) + rows
    if KIND <= SIGMOID:
        if KIND == SOFTMAX:
            negatives = _log_sum(sums, 0, bound, splits, row, live, padded, BOUNDED)
        else:
            negatives = _added(sums, 0, splits, row, live, padded)
        one = tl.zeros(row.shape, tl.float64)
        count = one
        best = one - float("inf")
        if PARTNER:
            other = tl.load(partner + row, mask=live, other=-1)
            some = other >= 0
            t = tl.load(positive + (other if INVERSE else row), mask=live & some, other=0.0)
            one = (t.to(tl.float64) * log_scale + shift) * LN_2
            one = tl.where(some, one, 0.0)
            count = tl.where(some, 1.0, 0.0).to(tl.float64)
            best = tl.where(some, one, float("-inf"))
        tl.store(to + S_NEGATIVES * rows, negatives, mask=live)
        tl.store(to + S_POSITIVE * rows, one, mask=live)
        tl.store(to + S_POSITIVES * rows, one * 0.0, mask=live)
    if KIND == LABELLED:
        negatives = _log_sum(sums, 0, bound, splits, row, live, padded, BOUNDED)
        positives = _log_sum(sums, 2, bound, splits, row, live, padded, BOUNDED)
        one = _added(sums, 4, splits, row, live, padded) * LN_2
        count = _added(sums, 5, splits, row, live, padded)
        positives = tl.where(count > 0, positives, float("-inf"))
        tl.store(to + S_NEGATIVES * rows, negatives, mask=live)
        tl.store(to + S_POSITIVE * rows, one, mask=live)
        tl.store(to + S_POSITIVES * rows, positives, mask=live)
        if BEST:
            best = _greatest(sums, 3, splits, row, live, padded).to(tl.float64) * LN_2
            best = tl.where(count > 0, best, float("-inf"))
    if KIND == PAIRED:
        tl.store(to + S_POSITIVE * rows, _added(sums, 0, splits, row, live, padded), mask=live)
        tl.store(to + S_POSITIVES * rows, _added(sums, 1, splits, row, live, padded), mask=live)
        count = _added(sums, 2, splits, row, live, padded)
        best = _greatest(sums, 3, splits, row, live, padded).to(tl.float64) * LN_2
        best = tl.where(count > 0, best, float("-inf"))
    tl.store(to + S_COUNT * rows, count, mask=live)
    if BEST:
        tl.store(to + S_BEST * rows, best, mask=live)


@triton.jit(do_not_specialize=["rows", "splits"])
def finish_metrics(sums, statistics, rows, padded, splits, BLOCK: tl.constexpr):
    """`sums` of sum_pairs for METRICS to the statistics that it is for."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    to = statistics + row
    rows = tl.full((), 0, tl.int64) + rows
    top = _greatest(sums, 1, splits, row, live, padded)
    total = _added_above(sums, 0, 1, splits, row, live, padded, top)
    weighted = _added_above(sums, 2, 1, splits, row, live, padded, top)
    some = top > HARDLY
    mean = tl.where(some, weighted / tl.where(some, total, 1.0), 0.0).to(tl.float64) * LN_2
    tl.store(to + S_MEAN * rows, mean, mask=live)
    tl.store(to + S_RANK * rows, _added(sums, 3, splits, row, live, padded), mask=live)
    tl.store(to + S_TOTAL * rows, _added(sums, 4, splits, row, live, padded) * LN_2, mask=live)
    tl.store(to + S_NUMBER * rows, _added(sums, 5, splits, row, live, padded), mask=live)
    tl.store(to + S_CLOSE * rows, _added(sums, 6, splits, row, live, padded), mask=live)

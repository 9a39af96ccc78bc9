"""The family's forward matrix kernel: sums over each row's negatives and positives."""

import triton
import triton.language as tl

from fastssl.ops.contrast.triton_pairs import (
    DROPPED,
    HARDLY,
    LABELLED,
    METRICS,
    PAIRED,
    POSITIVE,
    SIGMOID,
    SOFTMAX,
    ends_of,
    index_of,
    log_scale_of,
    same_labels,
    shift_of,
    sigmoid,
    softplus,
    split_pairs,
    window_of,
)
from fastssl.ops.nt_xent.triton_forward import dot_transposed, load_block, long_product
from fastssl.ops.nt_xent.triton_rows import LOG2_E, NEVER


@triton.jit
def _follow(total, top, t):
    """A running sum of 2^(t - top) and its running maximum; what earlier sums are scaled by."""
    higher = tl.maximum(top, tl.max(t, 1))
    fading = tl.exp2(top - higher)
    e = tl.exp2(t - higher[:, None])
    return total * fading + tl.sum(e, 1), higher, fading, e


@triton.jit(do_not_specialize=["rows", "columns"])
def sum_pairs(
    left, left_scale, right, right_scale, excluded, partner, row_labels, column_labels, window,
    known, scale, factor, bias, sums, rows, columns, left_padded, right_padded, span,
    KIND: tl.constexpr, LABELS: tl.constexpr, DIAGONAL: tl.constexpr, EXCLUDED: tl.constexpr,
    PARTNER: tl.constexpr, WINDOW: tl.constexpr, LEARNED: tl.constexpr, BIASED: tl.constexpr,
    BOUNDED: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Program (b, s): rows of block b against columns [s * span, (s + 1) * span).

    `sums` [sums of the kind, splits, left_padded], each relative to 2^peak:

    - SOFTMAX: over negatives of 2^(t - peak); peak. Bounded, peak is |log2(e) scale|, not stored.
    - SIGMOID: over negatives of softplus.
    - LABELLED: as SOFTMAX; the same over positives; of positives' t; their number.
    - PAIRED, with n = `known`, in natural units: over positives of softplus(n - s), of
      sigmoid(n - s); their number; their greatest t.
    - METRICS, with `known` a threshold: over negatives and positives of 2^(t - peak); peak; of
      2^(t - peak) t; of negatives above the threshold; of negatives' t; their number; CLOSE.
    """
    first_i = tl.program_id(0) * BLOCK_M
    i = first_i + tl.arange(0, BLOCK_M)
    live = i < rows
    log_scale = log_scale_of(scale, factor, LEARNED)
    shift = shift_of(bias, BIASED)
    row_scale = tl.load(left_scale + i) * log_scale
    left_part = left_padded.to(tl.int64) * DEPTH
    right_part = right_padded.to(tl.int64) * DEPTH
    if BLOCK_K == DEPTH:
        a, a_low = load_block(left, first_i, left_part, DEPTH, PARTS, BLOCK_M)
    excluded_i = index_of(excluded, i, live, DIAGONAL, EXCLUDED)
    partner_i = index_of(partner, i, live, False, PARTNER)
    excluded_first, excluded_last = ends_of(excluded_i, DIAGONAL or EXCLUDED)
    partner_first, partner_last = ends_of(partner_i, PARTNER)
    low, high = window_of(window, i, live, rows, WINDOW)
    known_i = tl.zeros([BLOCK_M], tl.float32)
    if KIND >= PAIRED:
        known_i = (tl.load(known + i, mask=live, other=0.0) * LOG2_E).to(tl.float32)

    top = tl.full([BLOCK_M], NEVER, tl.float32)
    if BOUNDED:
        top = tl.zeros([BLOCK_M], tl.float32) + tl.abs(log_scale)
    top1 = tl.full([BLOCK_M], NEVER, tl.float32)
    sum0 = tl.zeros([BLOCK_M], tl.float32)
    sum1 = sum0
    sum2 = sum0
    sum3 = sum0
    sum4 = sum0
    sum5 = sum0
    start = tl.program_id(1) * span
    for first_j in range(start, tl.minimum(start + span, columns), BLOCK_N):
        j = first_j + tl.arange(0, BLOCK_N)
        column_scale = tl.load(right_scale + j)
        if BLOCK_K == DEPTH:
            b, b_low = load_block(right, first_j, right_part, DEPTH, PARTS, BLOCK_N)
            t = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            t = dot_transposed(a, b, a_low, b_low, t, PARTS)
        else:
            t = long_product(left, left_part, first_i, right, right_part, first_j, DEPTH, PARTS,
                             BLOCK_M, BLOCK_N, BLOCK_K)  # fmt: skip
        t = t * column_scale[None, :] * row_scale[:, None] + shift
        same = same_labels(row_labels, column_labels, i, j, rows, columns, LABELS)
        if KIND == METRICS:
            negative, positive = split_pairs(
                t, j[None, :], excluded_i[:, None], partner_i[:, None], same, low[:, None],
                high[:, None], columns, LABELS, PARTNER, WINDOW,
            )  # fmt: skip
            candidate = tl.where(negative | positive, t, NEVER)
            sum0, top, fading, e = _follow(sum0, top, candidate)
            sum1 = sum1 * fading + tl.sum(e * t, 1)
            sum2 += tl.sum(tl.where(negative & (t > known_i[:, None]), 1.0, 0.0), 1)
            sum3 += tl.sum(tl.where(negative, t, 0.0), 1)
            sum4 += tl.sum(tl.where(negative, 1.0, 0.0), 1)
            close = tl.exp2((t * (1.0 / log_scale) - 1.0) * (4 * LOG2_E))
            sum5 += tl.sum(tl.where(negative, close, 0.0), 1)
        else:
            if LABELS == POSITIVE and PARTNER:
                same = same | (j[None, :] == partner_i[:, None])
            if WINDOW and KIND != PAIRED:
                outside = (t < low[:, None]) | (t > high[:, None])
                if LABELS == POSITIVE:
                    outside = outside & ~same
                t = tl.where(outside, NEVER, t)
            last_j = first_j + BLOCK_N
            met = ((first_j <= excluded_last) & (last_j > excluded_first)) | (last_j > columns)
            if met | ((first_j <= partner_last) & (last_j > partner_first)):
                skip = j[None, :] == excluded_i[:, None]
                if PARTNER and LABELS == POSITIVE:
                    skip = skip & (j[None, :] != partner_i[:, None])
                elif PARTNER:
                    skip = skip | (j[None, :] == partner_i[:, None])
                t = tl.where(skip | (j >= columns)[None, :], NEVER, t)
            if LABELS == DROPPED:
                t = tl.where(same, NEVER, t)
            if KIND == SOFTMAX:
                if BOUNDED:
                    sum0 += tl.sum(tl.exp2(t - top[:, None]), 1)
                else:
                    sum0, top, _, _ = _follow(sum0, top, t)
            if KIND == SIGMOID:
                sum0 += tl.sum(softplus(t), 1)
            if KIND == LABELLED:
                if BOUNDED:
                    e = tl.exp2(t - top[:, None])
                    sum0 += tl.sum(tl.where(same, 0.0, e), 1)
                    sum1 += tl.sum(tl.where(same, e, 0.0), 1)
                else:
                    higher = tl.maximum(top, tl.max(tl.where(same, NEVER, t), 1))
                    higher1 = tl.maximum(top1, tl.max(tl.where(same, t, NEVER), 1))
                    e = tl.exp2(t - tl.where(same, higher1[:, None], higher[:, None]))
                    sum0 = sum0 * tl.exp2(top - higher) + tl.sum(tl.where(same, 0.0, e), 1)
                    sum1 = sum1 * tl.exp2(top1 - higher1) + tl.sum(tl.where(same, e, 0.0), 1)
                    top = higher
                    top1 = higher1
                positive = same & (t > HARDLY)
                sum2 += tl.sum(tl.where(positive, t, 0.0), 1)
                sum3 += tl.sum(tl.where(positive, 1.0, 0.0), 1)
            if KIND == PAIRED:
                positive = same & (t > HARDLY)
                x = known_i[:, None] - t
                sum0 += tl.sum(tl.where(positive, softplus(x), 0.0), 1)
                sum1 += tl.sum(tl.where(positive, sigmoid(x), 0.0), 1)
                sum2 += tl.sum(tl.where(positive, 1.0, 0.0), 1)
                top1 = tl.maximum(top1, tl.max(tl.where(positive, t, NEVER), 1))

    slot = tl.num_programs(1) * left_padded.to(tl.int64)
    to = sums + tl.program_id(1) * left_padded.to(tl.int64) + i
    tl.store(to, sum0)
    if KIND == SOFTMAX and not BOUNDED:
        tl.store(to + slot, top)
    if KIND == LABELLED:
        if not BOUNDED:
            tl.store(to + slot, top)
            tl.store(to + 3 * slot, top1)
        tl.store(to + 2 * slot, sum1)
        tl.store(to + 4 * slot, sum2)
        tl.store(to + 5 * slot, sum3)
    if KIND == PAIRED:
        tl.store(to + slot, sum1)
        tl.store(to + 2 * slot, sum2)
        tl.store(to + 3 * slot, top1)
    if KIND == METRICS:
        tl.store(to + slot, top)
        tl.store(to + 2 * slot, sum1)
        tl.store(to + 3 * slot, sum2)
        tl.store(to + 4 * slot, sum3)
        tl.store(to + 5 * slot, sum4)
        tl.store(to + 6 * slot, sum5)

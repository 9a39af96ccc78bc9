"""The family's backward matrix kernels: sum_j A_ij right_j, with A recomputed from the statistics.

A_ij = unit (own_ij + other_ij) scale_j, where `own` is the gradient of logit ij through row i's
statistics and `other` that through column j's; triton_weights.py makes the vectors they consist of.
The gradient of the right side is the same with the roles swapped. Up to a padded depth that
registers can hold no A is kept; beyond, it is written for some rows at a time, and where both
gradients are wanted in the right side's form, too: three products.
"""

import triton
import triton.language as tl

from fastssl.ops.contrast.triton_pairs import (
    DROPPED,
    LABELLED,
    PAIRED,
    SIGMOID,
    ends_of,
    index_of,
    log_scale_of,
    same_labels,
    shift_of,
    sigmoid,
    split_pairs,
    window_of,
)
from fastssl.ops.nt_xent.triton_backward import add_product, low_part, tile_of
from fastssl.ops.nt_xent.triton_forward import dot_transposed, load_block, long_product, rows_of
from fastssl.ops.nt_xent.triton_rows import NEVER


@triton.jit
def _vectors(pointer, i, padded, PRESENT: tl.constexpr, KIND: tl.constexpr, BOUNDED: tl.constexpr):
    """(weight, base, constant, positive_weight, positive_base) of rows or columns, by the kind."""
    weight = i * 0.0
    base = weight
    constant = weight
    positive_weight = weight
    positive_base = weight
    if PRESENT:
        padded = padded.to(tl.int64)
        weight = tl.load(pointer + i)
        if KIND != SIGMOID and not BOUNDED:
            base = tl.load(pointer + padded + i)
        if KIND >= LABELLED:
            constant = tl.load(pointer + 2 * padded + i)
        if KIND == LABELLED:
            positive_weight = tl.load(pointer + 3 * padded + i)
            if not BOUNDED:
                positive_base = tl.load(pointer + 4 * padded + i)
    return weight, base, constant, positive_weight, positive_base


@triton.jit
def _masks_of_rows(
    excluded, partner, inverse, window, i, rows, DIAGONAL: tl.constexpr, EXCLUDED: tl.constexpr,
    PARTNER: tl.constexpr, TWO: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Indices and windows of rows, and the ranges of columns that the indices name."""
    live = i < rows
    excluded_i = index_of(excluded, i, live, DIAGONAL, EXCLUDED)
    partner_i = index_of(partner, i, live, False, PARTNER)
    inverse_i = partner_i
    if TWO:
        inverse_i = index_of(inverse, i, live, False, PARTNER)
    first0, last0 = ends_of(excluded_i, DIAGONAL or EXCLUDED)
    first1, last1 = ends_of(partner_i, PARTNER)
    first2, last2 = ends_of(inverse_i, PARTNER and TWO)
    low, high = window_of(window, i, live, rows, WINDOW)
    return excluded_i, partner_i, inverse_i, low, high, first0, last0, first1, last1, first2, last2


@triton.jit
def _part(
    t, e, negative, positive, weight, base, constant, positive_weight, positive_base,
    MASKED: tl.constexpr, KIND: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """One side's part of dL/dt; its vectors are broadcast against t."""
    kept = negative
    if KIND >= LABELLED:
        kept = negative | positive
    if KIND == PAIRED:
        e = tl.exp2(t - base)
        part = tl.where(positive, constant / (1.0 + e), weight * e)
        if MASKED:
            part = tl.where(kept, part, 0.0)
        return part
    if KIND == LABELLED:
        weight = tl.where(positive, positive_weight, weight)
        base = tl.where(positive, positive_base, base)
    if MASKED:
        weight = tl.where(kept, weight, 0.0)
        if not BOUNDED:
            t = tl.where(kept, t, NEVER)
    if not BOUNDED:
        e = tl.exp2(t - base)
    part = e * weight
    if KIND == LABELLED:
        part += tl.where(positive, constant, 0.0)
    return part


@triton.jit
def _weights(
    t, j, columns, log_scale, scale_j, other, other_padded, same, masks, own_vectors, window,
    KIND: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, LABELS: tl.constexpr,
    PARTNER: tl.constexpr, TWO: tl.constexpr, WINDOW: tl.constexpr, OTHER_WINDOW: tl.constexpr,
    BOUNDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of A from a tile of t. Not MASKED: all pairs count, but for what labels say."""
    negative = same
    positive = same
    other_negative = same
    other_positive = same
    if MASKED:
        negative, positive = split_pairs(
            t, j[None, :], masks[0][:, None], masks[1][:, None], same, masks[3][:, None],
            masks[4][:, None], columns, LABELS, PARTNER, WINDOW,
        )  # fmt: skip
        other_negative = negative
        other_positive = positive
        if TWO or WINDOW or OTHER_WINDOW:
            low, high = window_of(window, j, j < columns, columns, OTHER_WINDOW)
            other_negative, other_positive = split_pairs(
                t, j[None, :], masks[0][:, None], masks[2][:, None], same, low[None, :],
                high[None, :], columns, LABELS, PARTNER, OTHER_WINDOW,
            )  # fmt: skip
    if LABELS == DROPPED:
        t = tl.where(same, NEVER, t)
    e = t
    EASY: tl.constexpr = BOUNDED or KIND == SIGMOID
    if KIND == SIGMOID:
        e = sigmoid(t)
    elif BOUNDED:
        e = tl.exp2(t - tl.abs(log_scale))
    result = t * 0.0
    if OWN:
        v = own_vectors
        result = scale_j[None, :] * _part(
            t, e, negative, positive, v[0][:, None], v[1][:, None], v[2][:, None], v[3][:, None],
            v[4][:, None], MASKED, KIND, EASY,
        )  # fmt: skip
    if OTHER:
        v = _vectors(other, j, other_padded, OTHER, KIND, BOUNDED)
        part = _part(
            t, e, other_negative, other_positive, v[0][None, :], v[1][None, :], v[2][None, :],
            v[3][None, :], v[4][None, :], MASKED, KIND, EASY,
        )  # fmt: skip
        result = result + part if OWN else part
    return result


@triton.jit
def _weights_of_tile(
    products, i, j, rows, columns, log_scale, shift, row_scale, right_scale, other, other_padded,
    row_labels, column_labels, window, masks, own_vectors,
    KIND: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, LABELS: tl.constexpr,
    PARTNER: tl.constexpr, TWO: tl.constexpr, WINDOW: tl.constexpr, OTHER_WINDOW: tl.constexpr,
    BOUNDED: tl.constexpr, SCALED: tl.constexpr, first_j, last_j,
):  # fmt: skip
    """A tile of A from a tile of products; not SCALED: of unit (own_ij + other_ij)."""
    # Loaded ahead of the product the vectors of columns would hold registers throughout.
    scale_j = tl.load(right_scale + j)
    t = products * scale_j[None, :] * row_scale[:, None] + shift
    if not SCALED:
        scale_j = tl.full(scale_j.shape, 1.0, tl.float32)
    same = same_labels(row_labels, column_labels, i, j, rows, columns, LABELS)
    if WINDOW or OTHER_WINDOW:
        return _weights(
            t, j, columns, log_scale, scale_j, other, other_padded, same, masks, own_vectors,
            window, KIND, OWN, OTHER, LABELS, PARTNER, TWO, WINDOW, OTHER_WINDOW, BOUNDED, True,
        )  # fmt: skip
    met = ((first_j <= masks[6]) & (last_j > masks[5])) | (last_j > columns)
    met = met | ((first_j <= masks[8]) & (last_j > masks[7]))
    met = met | ((first_j <= masks[10]) & (last_j > masks[9]))
    if met:
        weight = _weights(
            t, j, columns, log_scale, scale_j, other, other_padded, same, masks, own_vectors,
            window, KIND, OWN, OTHER, LABELS, PARTNER, TWO, False, False, BOUNDED, True,
        )  # fmt: skip
    else:
        weight = _weights(
            t, j, columns, log_scale, scale_j, other, other_padded, same, masks, own_vectors,
            window, KIND, OWN, OTHER, LABELS, PARTNER, TWO, False, False, BOUNDED, False,
        )  # fmt: skip
    return weight


@triton.jit(do_not_specialize=["rows", "columns"])
def accumulate_pairs(
    left, left_scale, right, right_scale, excluded, partner, inverse, row_labels, column_labels,
    window, other_window, own, other, scale, factor, bias, out, block_sums, rows, columns,
    left_padded, right_padded, span,
    KIND: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, LABELS: tl.constexpr,
    DIAGONAL: tl.constexpr, EXCLUDED: tl.constexpr, PARTNER: tl.constexpr, TWO: tl.constexpr,
    WINDOW: tl.constexpr, OTHER_WINDOW: tl.constexpr, LEARNED: tl.constexpr, BIASED: tl.constexpr,
    BOUNDED: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (b, s): rows of block b, columns [s * span, (s + 1) * span); out [splits, padded, D].

    The block's rows and its gradient stay on the chip; each tile of columns is read once and used
    in both products. TWO: `other` is the transpose of `own`, with i's partner `inverse` (y None).
    """
    first_i = tl.program_id(0) * BLOCK_M
    i = first_i + tl.arange(0, BLOCK_M)
    log_scale = log_scale_of(scale, factor, LEARNED)
    shift = shift_of(bias, BIASED)
    left_part = left_padded.to(tl.int64) * DEPTH
    right_part = right_padded.to(tl.int64) * DEPTH
    a, a_low = load_block(left, first_i, left_part, DEPTH, PARTS, BLOCK_M)
    row_scale = tl.load(left_scale + i) * log_scale
    masks = _masks_of_rows(
        excluded, partner, inverse, window, i, rows, DIAGONAL, EXCLUDED, PARTNER, TWO, WINDOW
    )
    own_vectors = _vectors(own, i, left_padded, OWN, KIND, BOUNDED)
    gradient = tl.zeros([BLOCK_M, DEPTH], tl.float32)
    row_sums = tl.zeros([BLOCK_M], tl.float32)
    start = tl.program_id(1) * span
    for first_j in range(start, tl.minimum(start + span, columns), BLOCK_N):
        b, b_low = load_block(right, first_j, right_part, DEPTH, PARTS, BLOCK_N)
        t = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        t = dot_transposed(a, b, a_low, b_low, t, PARTS)
        j = first_j + tl.arange(0, BLOCK_N)
        weight = _weights_of_tile(
            t, i, j, rows, columns, log_scale, shift, row_scale, right_scale, other, right_padded,
            row_labels, column_labels, other_window, masks, own_vectors, KIND, OWN, OTHER, LABELS,
            PARTNER, TWO, WINDOW, OTHER_WINDOW, BOUNDED, True, first_j, first_j + BLOCK_N,
        )  # fmt: skip
        if BIASED:
            row_sums += tl.sum(weight * tl.load(other + right_padded + j)[None, :], 1)
        high = weight.to(b.dtype)
        low = high
        if PARTS == 2:
            low = low_part(weight, high)
        gradient = add_product(high, b, low, b_low, gradient, PARTS)
    to = rows_of(out, first_i, tl.arange(0, DEPTH), DEPTH, BLOCK_M)
    tl.store(to + tl.program_id(1) * left_part, gradient)
    if BIASED:
        where = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(block_sums + where, tl.sum(tl.where(i < rows, row_sums, 0.0), 0))


@triton.jit(do_not_specialize=["rows", "columns"])
def write_pair_weights(
    left, left_scale, right, right_scale, excluded, partner, inverse, row_labels, column_labels,
    window, other_window, own, other, scale, factor, bias, unit, out, turned, block_sums, rows,
    columns, left_padded, right_padded, chunk, chunk_rows,
    KIND: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, LABELS: tl.constexpr,
    DIAGONAL: tl.constexpr, EXCLUDED: tl.constexpr, PARTNER: tl.constexpr, TWO: tl.constexpr,
    WINDOW: tl.constexpr, OTHER_WINDOW: tl.constexpr, LEARNED: tl.constexpr, BIASED: tl.constexpr,
    BOUNDED: tl.constexpr, BOTH: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of A's rows from `chunk`; out [PARTS, chunk_rows, right_padded].

    BOTH: `turned`, of the same shape, gets those of the right side's gradient, which has the second
    number of `unit` and rows' scales.
    """
    block_i, block_j = tile_of(chunk, chunk_rows, left_padded, BLOCK_M)
    offset_i = block_i * BLOCK_M
    first_i = chunk + offset_i
    first_j = block_j * BLOCK_N
    i = first_i + tl.arange(0, BLOCK_M)
    j = first_j + tl.arange(0, BLOCK_N)
    log_scale = log_scale_of(scale, factor, LEARNED)
    left_part = left_padded.to(tl.int64) * DEPTH
    right_part = right_padded.to(tl.int64) * DEPTH
    t = long_product(left, left_part, first_i, right, right_part, first_j, DEPTH, PARTS, BLOCK_M,
                     BLOCK_N, BLOCK_K)  # fmt: skip
    scale_i = tl.load(left_scale + i)
    masks = _masks_of_rows(
        excluded, partner, inverse, window, i, rows, DIAGONAL, EXCLUDED, PARTNER, TWO, WINDOW
    )
    own_vectors = _vectors(own, i, left_padded, OWN, KIND, BOUNDED)
    weight = _weights_of_tile(
        t, i, j, rows, columns, log_scale, shift_of(bias, BIASED), scale_i * log_scale, right_scale,
        other, right_padded, row_labels, column_labels, other_window, masks, own_vectors, KIND, OWN,
        OTHER, LABELS, PARTNER, TWO, WINDOW, OTHER_WINDOW, BOUNDED, not BOTH, first_j,
        first_j + BLOCK_N,
    )  # fmt: skip
    if BIASED:
        sums = weight
        if not BOTH:
            sums = weight * tl.load(other + right_padded + j)[None, :]
        where = (first_i // BLOCK_M).to(tl.int64) * (right_padded // BLOCK_N) + block_j
        tl.store(block_sums + where, tl.sum(tl.where(i < rows, tl.sum(sums, 1), 0.0), 0))
    row = (offset_i + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    to = row * right_padded + j[None, :]
    low = chunk_rows.to(tl.int64) * right_padded
    if BOTH:
        scale_i *= tl.load(unit + 1) / tl.load(unit)  # of two powers of two
        # What columns bring to rows past the last need not be finite.
        of_rows = tl.where((i < rows)[:, None], weight * scale_i[:, None], 0.0)
        _store_weights(turned + to, of_rows, low, PARTS)
        weight *= tl.load(right_scale + j)[None, :]
    _store_weights(out + to, weight, low, PARTS)


@triton.jit
def _store_weights(to, weight, low, PARTS: tl.constexpr):
    high = weight.to(to.dtype.element_ty)
    tl.store(to, high)
    if PARTS == 2:
        tl.store(to + low, low_part(weight, high))


@triton.jit
def multiply_turned(
    turned, packed, out, right_padded, left_padded, chunk, chunk_rows, count, PARTS: tl.constexpr,
    DEPTH: tl.constexpr, ACROSS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Adds to the right rows' sums what the `count` left rows from `chunk` bring to them.

    turned [PARTS, chunk_rows, right_padded], packed [PARTS, left_padded, DEPTH], out [right_padded,
    DEPTH]; neighbours have the same right rows, and another block of the ACROSS of columns.
    """
    first = tl.program_id(0) // ACROSS * BLOCK_M
    column = tl.program_id(0) % ACROSS * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K).to(tl.int64)[:, None]
    left = turned + step * right_padded + (first + tl.arange(0, BLOCK_M))[None, :]
    right = rows_of(packed, chunk, column, DEPTH, BLOCK_K)
    low = chunk_rows.to(tl.int64) * right_padded
    part = left_padded.to(tl.int64) * DEPTH
    gradient = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in range(0, count, BLOCK_K):
        a = tl.load(left)
        b = tl.load(right)
        a_low = a
        b_low = b
        if PARTS == 2:
            a_low = tl.load(left + low)
            b_low = tl.load(right + part)
        gradient = add_product(a.trans(), b, a_low.trans(), b_low, gradient, PARTS)
        left += right_padded.to(tl.int64) * BLOCK_K
        right += BLOCK_K * DEPTH
    to = rows_of(out, first, column, DEPTH, BLOCK_M)
    if chunk > 0:
        gradient += tl.load(to)
    tl.store(to, gradient)

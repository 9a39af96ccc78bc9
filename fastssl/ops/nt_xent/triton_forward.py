"""NT-Xent's forward matrix kernel where no bound is known: each row follows its own maximum.

triton_triangle.py has the other. What all matrix kernels share stands here.
"""

import triton
import triton.language as tl

from fastssl.ops.nt_xent.triton_rows import NEVER, log_scale_of


@triton.jit
def rows_of(packed, first, column, DEPTH: tl.constexpr, COUNT: tl.constexpr):
    """Pointers to COUNT packed rows from `first`, for the given columns."""
    row = tl.arange(0, COUNT)[:, None]
    if COUNT * DEPTH >= 2**31:
        row = row.to(tl.int64)
    offset = row * DEPTH + column[None, :]
    return packed + first * tl.full((), DEPTH, tl.int64) + offset


@triton.jit
def load_block(packed, first, part, DEPTH: tl.constexpr, PARTS: tl.constexpr, COUNT: tl.constexpr):
    """COUNT whole packed rows from `first`, and their low parts `part` elements further on."""
    where = rows_of(packed, first, tl.arange(0, DEPTH), DEPTH, COUNT)
    high = tl.load(where)
    low = high
    if PARTS == 2:
        low = tl.load(where + part)
    return high, low


@triton.jit
def dot_transposed(a, b, a_low, b_low, total, PARTS: tl.constexpr):
    """Adds a bT to total; with two parts, the products with the low parts first: they are small."""
    if PARTS == 2:
        total = tl.dot(a_low, tl.trans(b), total)
        total = tl.dot(a, tl.trans(b_low), total)
    return tl.dot(a, tl.trans(b), total)


@triton.jit
def is_exceptional(first_i, first_j, half, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile holds a row's similarity with itself or with its partner."""
    low = first_j - first_i - (BLOCK_M - 1)
    high = first_j - first_i + (BLOCK_N - 1)
    itself = (low <= 0) & (high >= 0)
    return itself | ((low <= half) & (high >= half)) | ((low <= -half) & (high >= -half))


@triton.jit
def exceptions(first_i, first_j, half, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Which elements of a tile are a row with itself or with its partner."""
    i = first_i + tl.arange(0, BLOCK_M)
    j = first_j + tl.arange(0, BLOCK_N)
    apart = j[None, :] - i[:, None]
    return (apart == 0) | (apart == half) | (apart == -half)


@triton.jit
def long_product(
    left, left_part, first_i, right, right_part, first_j, DEPTH: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The products of two blocks of packed rows, both read in chunks of BLOCK_K columns."""
    column = tl.arange(0, BLOCK_K)
    left = rows_of(left, first_i, column, DEPTH, BLOCK_M)
    right = rows_of(right, first_j, column, DEPTH, BLOCK_N)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, DEPTH, BLOCK_K):
        a = tl.load(left + k)
        b = tl.load(right + k)
        a_low = a
        b_low = b
        if PARTS == 2:
            a_low = tl.load(left + left_part + k)
            b_low = tl.load(right + right_part + k)
        total = dot_transposed(a, b, a_low, b_low, total, PARTS)
    return total


@triton.jit(do_not_specialize=["half", "rows"])
def sum_exponentials(
    packed, scale, peak, total, temperature, tau, half, rows, padded, span,
    LEARNED: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Program (b, s): rows of block b against columns [s * span, (s + 1) * span).

    total[s, i] = sum over negatives j of 2^(t_ij - peak[s, i]), t_ij = log2(e) S_ij, peak[s, i]
    being their maximum.
    """
    first_i = tl.program_id(0) * BLOCK_M
    offset = tl.arange(0, BLOCK_M)
    log_scale = log_scale_of(temperature, tau, LEARNED)
    row_scale = tl.load(scale + first_i + offset) * log_scale
    part = padded.to(tl.int64) * DEPTH
    if BLOCK_K == DEPTH:
        a, a_low = load_block(packed, first_i, part, DEPTH, PARTS, BLOCK_M)
    top = tl.full([BLOCK_M], NEVER, tl.float32)
    result = tl.zeros([BLOCK_M], tl.float32)
    start = tl.program_id(1) * span
    for first_j in range(start, tl.minimum(start + span, rows), BLOCK_N):
        column_scale = tl.load(scale + first_j + tl.arange(0, BLOCK_N))
        if BLOCK_K == DEPTH:
            b, b_low = load_block(packed, first_j, part, DEPTH, PARTS, BLOCK_N)
            t = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            t = dot_transposed(a, b, a_low, b_low, t, PARTS)
        else:
            t = long_product(packed, part, first_i, packed, part, first_j, DEPTH, PARTS, BLOCK_M,
                             BLOCK_N, BLOCK_K)  # fmt: skip
        t = t * column_scale[None, :] * row_scale[:, None]
        if is_exceptional(first_i, first_j, half, BLOCK_M, BLOCK_N) | (first_j + BLOCK_N > rows):
            past = (first_j + tl.arange(0, BLOCK_N) >= rows)[None, :]
            t = tl.where(exceptions(first_i, first_j, half, BLOCK_M, BLOCK_N) | past, NEVER, t)
        before = top
        top = tl.maximum(top, tl.max(t, 1))
        result *= tl.exp2(before - top)
        result += tl.sum(tl.exp2(t - top[:, None]), 1)
    where = tl.program_id(1) * padded.to(tl.int64) + first_i + offset
    tl.store(total + where, result)
    tl.store(peak + where, top)

"""NT-Xent's backward matrix kernels: sum_j A_ij packed_j, with A recomputed from lse.

Up to a padded depth that registers can hold, `accumulate_gradient` does it in one pass. Beyond, A
is written for some rows at a time (`write_gradient_weights`) and multiplied (`multiply_weights`):
two products in all, where holding a slice of the gradient would recompute A for every slice.
"""

import triton
import triton.language as tl

from fastssl.ops.nt_xent.triton_forward import (
    dot_transposed,
    exceptions,
    is_exceptional,
    load_block,
    long_product,
    rows_of,
)
from fastssl.ops.nt_xent.triton_rows import NEVER, log_scale_of


@triton.jit
def _load_vectors(scale, weight, base, first, BOUNDED: tl.constexpr, COUNT: tl.constexpr):
    where = first + tl.arange(0, COUNT)
    factor = tl.load(scale + where)
    exponent = factor  # not used where bounded
    if not BOUNDED:
        exponent = tl.load(base + where)
    return factor, tl.load(weight + where), exponent


@triton.jit
def _weights(
    t, scale_i, weight_i, base_i, scale_j, weight_j, base_j, first_i, first_j, log_scale, half,
    BOUNDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # A tile of A from a tile of products; weigh_rows in triton_rows.py defines it.
    t = t * scale_j[None, :] * (scale_i * log_scale)[:, None]
    if BOUNDED:
        t -= tl.abs(log_scale)  # one operation with the product before it
    # Past the last column t is 0 and its weights are, but 2^(0 - base_i) may be infinite.
    past = (first_j + BLOCK_N > 2 * half) & (not BOUNDED)
    if is_exceptional(first_i, first_j, half, BLOCK_M, BLOCK_N) | past:
        skip = exceptions(first_i, first_j, half, BLOCK_M, BLOCK_N)
        if not BOUNDED:
            skip = skip | (first_j + tl.arange(0, BLOCK_N) >= 2 * half)[None, :]
        t = tl.where(skip, NEVER, t)
    own = weight_i[:, None] * scale_j[None, :]
    if BOUNDED:
        result = tl.exp2(t) * (own + weight_j[None, :])
    else:
        result = tl.exp2(t - base_i[:, None]) * own
        result += tl.exp2(t - base_j[None, :]) * weight_j[None, :]
    return result


@triton.jit
def low_part(x, high):
    """What rounding to `high` lost."""
    return (x - high.to(tl.float32)).to(high.dtype)


@triton.jit
def add_product(a, b, a_low, b_low, total, PARTS: tl.constexpr):
    """Adds a b to total."""
    # Tensor cores truncate where they add. Two-part operands stand for float32: their sums over a
    # tile start from zero and join the total in the registers' rounded arithmetic.
    if PARTS == 2:
        part = tl.dot(a_low, b)
        part = tl.dot(a, b_low, part)
        return total + tl.dot(a, b, part)
    return tl.dot(a, b, total)


@triton.jit(do_not_specialize=["half", "rows"])
def accumulate_gradient(
    packed, scale, row_weight, column_weight, base, out, temperature, tau, half, rows, padded, span,
    LEARNED: tl.constexpr, BOUNDED: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Program (b, s): rows of block b, columns [s * span, (s + 1) * span); out [splits, padded, D].

    The block's rows and its gradient stay on the chip; each tile of columns is read once and used
    in both products.
    """
    first_i = tl.program_id(0) * BLOCK_M
    log_scale = log_scale_of(temperature, tau, LEARNED)
    part = padded.to(tl.int64) * DEPTH
    a, a_low = load_block(packed, first_i, part, DEPTH, PARTS, BLOCK_M)
    scale_i, weight_i, base_i = _load_vectors(scale, row_weight, base, first_i, BOUNDED, BLOCK_M)
    gradient = tl.zeros([BLOCK_M, DEPTH], tl.float32)
    start = tl.program_id(1) * span
    for first_j in range(start, tl.minimum(start + span, rows), BLOCK_N):
        b, b_low = load_block(packed, first_j, part, DEPTH, PARTS, BLOCK_N)
        t = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        t = dot_transposed(a, b, a_low, b_low, t, PARTS)
        # Loaded ahead of the product these would hold 50 registers throughout.
        scale_j, weight_j, base_j = _load_vectors(
            scale, column_weight, base, first_j, BOUNDED, BLOCK_N
        )
        weight = _weights(t, scale_i, weight_i, base_i, scale_j, weight_j, base_j, first_i, first_j,
                          log_scale, half, BOUNDED, BLOCK_M, BLOCK_N)  # fmt: skip
        high = weight.to(b.dtype)
        low = high
        if PARTS == 2:
            low = low_part(weight, high)
        gradient = add_product(high, b, low, b_low, gradient, PARTS)
    to = rows_of(out, first_i, tl.arange(0, DEPTH), DEPTH, BLOCK_M)
    tl.store(to + tl.program_id(1) * part, gradient)


@triton.jit
def tile_of(chunk, chunk_rows, padded, BLOCK_M: tl.constexpr):
    """A program's blocks of rows and of columns; of neighbours' the columns are the same."""
    # One axis of the grid: the others have 65,535 places, too few for a queue's columns.
    blocks = tl.minimum(chunk_rows, padded - chunk) // BLOCK_M
    return tl.program_id(0) % blocks, tl.program_id(0) // blocks


@triton.jit(do_not_specialize=["half"])
def write_gradient_weights(
    packed, scale, row_weight, column_weight, base, weights, temperature, tau, half, padded, chunk,
    chunk_rows,
    LEARNED: tl.constexpr, BOUNDED: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of A's rows from `chunk`; weights [PARTS, chunk_rows, padded]."""
    block_i, block_j = tile_of(chunk, chunk_rows, padded, BLOCK_M)
    offset_i = block_i * BLOCK_M
    first_i = chunk + offset_i
    first_j = block_j * BLOCK_N
    log_scale = log_scale_of(temperature, tau, LEARNED)
    part = padded.to(tl.int64) * DEPTH
    t = long_product(packed, part, first_i, packed, part, first_j, DEPTH, PARTS, BLOCK_M, BLOCK_N,
                     BLOCK_K)  # fmt: skip
    scale_i, weight_i, base_i = _load_vectors(scale, row_weight, base, first_i, BOUNDED, BLOCK_M)
    scale_j, weight_j, base_j = _load_vectors(scale, column_weight, base, first_j, BOUNDED, BLOCK_N)
    weight = _weights(t, scale_i, weight_i, base_i, scale_j, weight_j, base_j, first_i, first_j,
                      log_scale, half, BOUNDED, BLOCK_M, BLOCK_N)  # fmt: skip
    row = (offset_i + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    to = weights + row * padded + first_j + tl.arange(0, BLOCK_N)[None, :]
    high = weight.to(packed.dtype.element_ty)
    tl.store(to, high)
    if PARTS == 2:
        tl.store(to + chunk_rows.to(tl.int64) * padded, low_part(weight, high))


@triton.jit
def multiply_weights(
    weights, packed, out, padded, chunk, chunk_rows, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Program (b, c): rows of block b in the chunk times columns of block c of the packed rows."""
    offset_i = tl.program_id(0) * BLOCK_M
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
    row = (offset_i + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
    left = weights + row * padded + step[None, :]
    right = rows_of(packed, 0, column, DEPTH, BLOCK_K)
    part = padded.to(tl.int64) * DEPTH
    weights_part = chunk_rows.to(tl.int64) * padded
    gradient = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in range(0, padded, BLOCK_K):
        a = tl.load(left)
        b = tl.load(right)
        a_low = a
        b_low = b
        if PARTS == 2:
            a_low = tl.load(left + weights_part)
            b_low = tl.load(right + part)
        gradient = add_product(a, b, a_low, b_low, gradient, PARTS)
        left += BLOCK_K
        right += BLOCK_K * DEPTH
    row = (chunk + offset_i).to(tl.int64) + tl.arange(0, BLOCK_M)[:, None]
    tl.store(out + row * DEPTH + column[None, :], gradient)

"""NT-Xent's forward matrix kernel where one bound serves all rows: each pair of rows once.

S is symmetric, and so are the exponentials relative to a bound of all |t|: a tile above the
diagonal gives its rows and its columns their sums. A program follows its own tiles in a fixed order
and adds to memory that no other program writes, so nothing is atomic.
"""

import triton
import triton.language as tl

from fastssl.ops.nt_xent.triton_forward import load_block, long_product
from fastssl.ops.nt_xent.triton_rows import NEVER, log_scale_of

#: Rows that a warp's registers hold of a product, in pairs of rows eight apart.
FRAGMENT = tl.constexpr(16)


@triton.jit
def _product(
    packed, part, first_i, first_j, b, b_low, DEPTH: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # b: the columns' rows, transposed, where whole rows fit on the chip.
    if BLOCK_K == DEPTH:
        a, a_low = load_block(packed, first_i, part, DEPTH, PARTS, BLOCK_M)
        t = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        if PARTS == 2:
            t = tl.dot(a_low, b, t)
            t = tl.dot(a, b_low, t)
        t = tl.dot(a, b, t)
    else:
        t = long_product(packed, part, first_i, packed, part, first_j, DEPTH, PARTS, BLOCK_M,
                         BLOCK_N, BLOCK_K)  # fmt: skip
    return t


@triton.jit
def _no_sums(WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    if WHOLE:
        sums = tl.zeros([BLOCK_M // FRAGMENT, FRAGMENT // 2, BLOCK_N], tl.float32)
    else:
        sums = tl.zeros([BLOCK_N], tl.float32)
    return sums


@triton.jit
def _add_columns(sums, e, WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    # Between threads nothing is added before the last tile, but where a tile takes so long that it
    # does not matter and its products need the registers.
    if WHOLE:
        pairs = tl.reshape(e, [BLOCK_M // FRAGMENT, 2, FRAGMENT // 2, BLOCK_N])
        sums += tl.sum(pairs, 1)
    else:
        sums += tl.sum(e, 0)
    return sums


@triton.jit
def _load_rows(scale, sums, first_i, written, log_scale, BLOCK_M: tl.constexpr):
    # Ahead of the product, which takes longer. Rows from `written` on hold no sums yet.
    row = first_i + tl.arange(0, BLOCK_M)
    return tl.load(scale + row) * log_scale, tl.load(sums + row, mask=row < written, other=0.0)


@triton.jit
def _tiles_before(row, band, bands, BLOCK_M: tl.constexpr):
    # How many of a band's blocks of rows start before `row`.
    return tl.cdiv(tl.maximum(row - band * BLOCK_M, 0), bands * BLOCK_M)


@triton.jit
def column_block(turn, group, groups, across):
    """The block of columns that a group of programs takes in a turn; negative where none is left.

    Turns start from the last columns, which have most rows before them, and go back and forth.
    """
    place = tl.where(turn % 2 == 0, group, groups - 1 - group)
    return across - 1 - turn * groups - place


@triton.jit(do_not_specialize=["half", "rows"])
def sum_triangle(
    packed, scale, total, temperature, tau, half, rows, padded,
    LEARNED: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Program (g, b): blocks of columns of group g, against blocks b, b + bands, ... of rows.

    total [groups + bands, padded]: parts of sum over negatives j of 2^(t_ij - log2(e) / |tau|),
    t_ij = log2(e) S_ij. Program (g, b) writes its rows of total[g] and its columns of
    total[groups + b].
    """
    group = tl.program_id(0)
    groups = tl.num_programs(0)
    band = tl.program_id(1)
    bands = tl.num_programs(1)
    WHOLE: tl.constexpr = BLOCK_K == DEPTH
    log_scale = log_scale_of(temperature, tau, LEARNED)
    bound = tl.abs(log_scale)
    part = padded.to(tl.int64) * DEPTH
    of_rows = total + group * padded.to(tl.int64)
    of_columns = total + (groups + band) * padded.to(tl.int64)
    offset_i = tl.arange(0, BLOCK_M)
    offset_j = tl.arange(0, BLOCK_N)
    across = tl.cdiv(rows, BLOCK_N)
    turns = tl.cdiv(across, groups)
    written = 0
    for turn in range(0, turns):  # the longest column first: it initialises its rows' sums
        block = column_block(turn, group, groups, across)
        if block >= 0:
            first_j = block * BLOCK_N
            last = tl.minimum(first_j + BLOCK_N, rows)
            column_scale = tl.load(scale + first_j + offset_j)
            b = column_scale  # not used where rows are read in chunks
            b_low = column_scale
            if WHOLE:
                b, b_low = load_block(packed, first_j, part, DEPTH, PARTS, BLOCK_N)
                b = tl.trans(b)
                b_low = tl.trans(b_low)
            sums = _no_sums(WHOLE, BLOCK_M, BLOCK_N)

            # Rows with their partners in the tile are [met, passed), rows that meet themselves
            # [own, count); past the last row, all columns are taken with care.
            count = _tiles_before(last, band, bands, BLOCK_M)
            met = _tiles_before(first_j - half - (BLOCK_M - 1), band, bands, BLOCK_M)
            passed = _tiles_before(first_j - half + BLOCK_N, band, bands, BLOCK_M)
            own = _tiles_before(first_j - (BLOCK_M - 1), band, bands, BLOCK_M)
            whole = first_j + BLOCK_N <= rows
            passed = tl.where(whole, tl.minimum(passed, count), count)
            met = tl.where(whole, tl.minimum(met, passed), 0)
            own = tl.where(whole, tl.minimum(tl.maximum(own, passed), count), count)
            special = passed - met

            for index in range(0, own - special):
                index += tl.where(index < met, 0, special)
                first_i = (band + index * bands) * BLOCK_M
                row_scale, before = _load_rows(scale, of_rows, first_i, written, log_scale, BLOCK_M)
                t = _product(packed, part, first_i, first_j, b, b_low, DEPTH, PARTS, BLOCK_M,
                             BLOCK_N, BLOCK_K)  # fmt: skip
                e = tl.exp2(t * column_scale[None, :] * row_scale[:, None] - bound)
                tl.store(of_rows + first_i + offset_i, before + tl.sum(e, 1))
                sums = _add_columns(sums, e, WHOLE, BLOCK_M, BLOCK_N)
            # A loop of its own: what it needs would cost the other registers.
            for index in tl.range(0, special + count - own, num_stages=1):
                index += tl.where(index < special, met, own - special)
                first_i = (band + index * bands) * BLOCK_M
                row_scale, before = _load_rows(scale, of_rows, first_i, written, log_scale, BLOCK_M)
                t = _product(packed, part, first_i, first_j, b, b_low, DEPTH, PARTS, BLOCK_M,
                             BLOCK_N, BLOCK_K)  # fmt: skip
                t = t * column_scale[None, :] * row_scale[:, None] - bound
                ahead = first_j - first_i + offset_j
                ahead = tl.where(ahead < rows - first_i, ahead, 0)[None, :] - offset_i[:, None]
                e = tl.exp2(tl.where((ahead <= 0) | (ahead == half), NEVER, t))
                tl.store(of_rows + first_i + offset_i, before + tl.sum(e, 1))
                sums = _add_columns(sums, e, WHOLE, BLOCK_M, BLOCK_N)
            if WHOLE:
                sums = tl.sum(tl.sum(sums, 1), 0)
            tl.store(of_columns + first_j + offset_j, sums)
            written = tl.maximum(written, last)
            tl.debug_barrier()  # before other threads read the rows' sums
    for first_i in range(band * BLOCK_M, padded, bands * BLOCK_M):
        if first_i >= written:
            tl.store(of_rows + first_i + offset_i, tl.zeros([BLOCK_M], tl.float32))

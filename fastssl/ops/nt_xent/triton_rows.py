"""NT-Xent's Triton kernels over rows and vectors: everything but the matrix products.

A row of z = [z0; z1] is kept as z_i = scale_i * packed_i. `packed` holds the input's own digits
times a power of two, so that no normalised row is rounded to half precision; `scale` applies to
float32 products. Arrays over rows have `padded` entries, the rows past M = 2N being zero.
"""

import triton
import triton.language as tl

#: The largest component of a packed row lies in [2^13, 2^14): sums of thousands of squares stay far
#: from the ends of float32, and float16 has its full precision for components down to 2^-27 of the
#: largest.
PACKED_EXPONENT = tl.constexpr(13)
#: Twice the largest |w_k| miss_k bounds every |G_ij|; scaled by this it stays inside float16.
GRADIENT_LIMIT = tl.constexpr(2.0**13)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
#: What divides rows shorter than it, as torch.nn.functional.normalize does, and its inverse.
SMALLEST_NORM = tl.constexpr(1e-12)
LARGEST_INVERSE = tl.constexpr(1e12)
#: Stands for a similarity that does not count: its exponential is 0, differences of two are finite.
NEVER = tl.constexpr(-3e38)
#: Parts of a row's sum that are loaded together: one by one each would wait for memory.
AT_ONCE = tl.constexpr(32)


@triton.jit
def power_of_two(exponent):
    """2^exponent for integers in [-126, 127]."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def temperature_of(temperature, tau, LEARNED: tl.constexpr):
    """The temperature, from device memory where it is a tensor: the host never waits for it."""
    value = tau
    if LEARNED:
        value = tl.load(temperature)
    return value


@triton.jit
def log_scale_of(temperature, tau, LEARNED: tl.constexpr):
    """log2(e) / temperature: similarities times this are in units of log2."""
    return tl.div_rn(tl.full((), LOG2_E, tl.float32), temperature_of(temperature, tau, LEARNED))


@triton.jit
def load_rows(z, pair, live, column, depth, row_stride, column_stride):
    """A block of an input as float32, zero where there is none."""
    where = pair.to(tl.int64)[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
    mask = live[:, None] & (column < depth)[None, :]
    return tl.load(z + where, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def exponent_of(largest):
    """The exponent of a positive float32."""
    # Clamped so that the power and its inverse are normal numbers.
    return tl.minimum(tl.maximum((largest.to(tl.int32, bitcast=True) >> 23) - 127, -100), 126)


@triton.jit
def store_packed(packed, rows, live, column, x, padded, DEPTH: tl.constexpr, PARTS: tl.constexpr):
    """A block as packed digits, in one part or two."""
    where = packed + rows.to(tl.int64)[:, None] * DEPTH + column[None, :]
    high = x.to(packed.dtype.element_ty)
    mask = live[:, None] & (column < DEPTH)[None, :]
    tl.store(where, high, mask=mask)
    if PARTS == 2:
        low = (x - high.to(tl.float32)).to(packed.dtype.element_ty)
        tl.store(where + padded.to(tl.int64) * DEPTH, low, mask=mask)


@triton.jit
def store_scale(scale, inverse, rows, live, exponent, square, NORMALIZE: tl.constexpr):
    """What leads from packed rows back, with and without their norm; returns the former."""
    unit = power_of_two(exponent - PACKED_EXPONENT)  # x = packed * unit
    if NORMALIZE:
        norm = tl.sqrt_rn(square)  # of the packed row
        dead = norm * unit < SMALLEST_NORM
        factor = tl.where(dead, unit * LARGEST_INVERSE, tl.div_rn(1.0, tl.where(dead, 1.0, norm)))
        back = tl.where(dead, LARGEST_INVERSE, factor * power_of_two(-exponent + PACKED_EXPONENT))
    else:
        factor = unit
        back = unit * 0 + 1
    tl.store(scale + rows, factor, mask=live)
    tl.store(inverse + rows, back, mask=live)
    return factor


@triton.jit(do_not_specialize=["half", "rows"])
def pack(
    z0, z1, packed, scale, inverse, positive, half, rows, padded, depth,
    row_stride0, column_stride0, row_stride1, column_stride1,
    NORMALIZE: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Both rows of each pair: packed digits, scale, inverse norm; and the pair's similarity.

    `scale` is 1 / |packed_i|, `inverse` 1 / |x_i| (LARGEST_INVERSE for rows shorter than
    SMALLEST_NORM); without normalisation, powers of two and 1. `positive` [N] is <z0_n, z1_n>.
    """
    pair = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = pair < half
    most0 = tl.zeros([BLOCK_M], tl.float32)
    most1 = tl.zeros([BLOCK_M], tl.float32)
    for d in range(0, DEPTH, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        x0 = load_rows(z0, pair, live, column, depth, row_stride0, column_stride0)
        x1 = load_rows(z1, pair, live, column, depth, row_stride1, column_stride1)
        most0 = tl.maximum(most0, tl.max(tl.abs(x0), 1))
        most1 = tl.maximum(most1, tl.max(tl.abs(x1), 1))
    exponent0 = exponent_of(most0)
    exponent1 = exponent_of(most1)
    up0 = power_of_two(-exponent0 + PACKED_EXPONENT)[:, None]
    up1 = power_of_two(-exponent1 + PACKED_EXPONENT)[:, None]
    square0 = tl.zeros([BLOCK_M], tl.float32)
    square1 = tl.zeros([BLOCK_M], tl.float32)
    dot = tl.zeros([BLOCK_M], tl.float32)
    for d in range(0, DEPTH, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        x0 = load_rows(z0, pair, live, column, depth, row_stride0, column_stride0) * up0
        x1 = load_rows(z1, pair, live, column, depth, row_stride1, column_stride1) * up1
        square0 += tl.sum(x0 * x0, 1)
        square1 += tl.sum(x1 * x1, 1)
        dot += tl.sum(x0 * x1, 1)
        store_packed(packed, pair, live, column, x0, padded, DEPTH, PARTS)
        store_packed(packed, pair + half, live, column, x1, padded, DEPTH, PARTS)
    factor0 = store_scale(scale, inverse, pair, live, exponent0, square0, NORMALIZE)
    factor1 = store_scale(scale, inverse, pair + half, live, exponent1, square1, NORMALIZE)
    tl.store(positive + pair, dot * factor0 * factor1, mask=live)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        for first in range(rows, padded, BLOCK_M):
            row = first + tl.arange(0, BLOCK_M)
            padding = row < padded
            tl.store(scale + row, tl.zeros([BLOCK_M], tl.float32), mask=padding)
            tl.store(inverse + row, tl.zeros([BLOCK_M], tl.float32), mask=padding)
            for d in range(0, DEPTH, BLOCK_D):
                column = d + tl.arange(0, BLOCK_D)
                nothing = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                store_packed(packed, row, padding, column, nothing, padded, DEPTH, PARTS)


@triton.jit
def _log1p(e):
    # For e in [0, 1]: the quotient takes back the rounding of 1 + e.
    one_more = 1.0 + e
    rounded = one_more - 1.0
    correction = e / tl.where(rounded == 0.0, 1.0, rounded)
    return tl.where(rounded == 0.0, e, tl.log(one_more) * correction)


@triton.jit
def _parts_of(first, splits, row, live, padded):
    # Where AT_ONCE parts of rows' sums lie, and which there are.
    part = first + tl.arange(0, AT_ONCE)
    where = part.to(tl.int64)[:, None] * padded + row[None, :]
    return where, (part < splits)[:, None] & live[None, :]


@triton.jit(do_not_specialize=["half", "rows", "splits"])
def finish_rows(
    peak, total, positive, loss, lse, miss, block_loss, temperature, tau, half, rows, padded,
    splits, factor,
    LEARNED: tl.constexpr, BOUNDED: tl.constexpr, NONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over negatives, [splits, padded], to each row's loss, lse (log2, float64) and miss.

    loss_i = softplus(x), miss_i = sigmoid(x), with x = log(sum over negatives) - S_ip: no digit is
    lost where the positive dominates. `block_loss` gets the programs' sums of losses * `factor`.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    scale = log_scale_of(temperature, tau, LEARNED)
    top = tl.zeros([BLOCK], tl.float32) + tl.abs(scale)
    if not BOUNDED:
        top = tl.full([BLOCK], NEVER, tl.float32)
        for first in range(0, splits, AT_ONCE):
            where, there = _parts_of(first, splits, row, live, padded)
            top = tl.maximum(top, tl.max(tl.load(peak + where, mask=there, other=NEVER), 0))
    negatives = tl.zeros([BLOCK], tl.float32)
    for first in range(0, splits, AT_ONCE):
        where, there = _parts_of(first, splits, row, live, padded)
        part = tl.load(total + where, mask=there, other=0.0)
        if not BOUNDED:
            part *= tl.exp2(tl.load(peak + where, mask=there, other=NEVER) - top[None, :])
        negatives += tl.sum(part, 0)
    t = tl.load(positive + tl.where(row < half, row, row - half), mask=live, other=0.0)
    t = t.to(tl.float64) * scale.to(tl.float64)
    x = ((top.to(tl.float64) - t).to(tl.float32) + tl.log2(negatives)) * LN_2
    x += (t - t).to(tl.float32)  # what is not a number stays so
    e = tl.exp(-tl.abs(x))
    row_loss = tl.maximum(x, 0.0) + _log1p(e)
    # Not by way of the loss, whose units round it.
    log_sum = top.to(tl.float64) + tl.log2(negatives).to(tl.float64)
    log_sum = tl.where(x > 0, log_sum, t) + (_log1p(e) * LOG2_E).to(tl.float64)
    tl.store(lse + row, log_sum, mask=live)
    tl.store(miss + row, tl.where(x > 0, 1.0, e) / (1.0 + e), mask=live)
    if NONE:
        tl.store(loss + row, row_loss, mask=live)
    else:
        tl.store(block_loss + tl.program_id(0), tl.sum(tl.where(live, row_loss, 0.0), 0) * factor)


@triton.jit(do_not_specialize=["count"])
def add_up(
    values, out, temperature, tau, count, LEARNED: tl.constexpr, GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of `count` values, by one program; for GRADIENT divided by -2 temperature."""
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        where = first + tl.arange(0, BLOCK)
        total += tl.load(values + where, mask=where < count, other=0.0)
    result = tl.sum(total, 0)
    if GRADIENT:
        # S is homogeneous of degree two in z and of degree -1 in the temperature.
        result = result / (-2.0 * temperature_of(temperature, tau, LEARNED))
    tl.store(out, result)


@triton.jit
def _upstream(grad, grad_stride, row, live, VECTOR: tl.constexpr):
    weight = tl.where(live, 1.0, 0.0)
    if VECTOR:
        weight = tl.load(grad + row.to(tl.int64) * grad_stride, mask=live, other=0.0)
    return weight


@triton.jit(do_not_specialize=["rows"])
def weigh_rows(
    grad, lse, miss, scale, row_weight, column_weight, base, pull, unit, temperature, tau,
    grad_stride, rows, padded, LEARNED: tl.constexpr, BOUNDED: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What each row brings to A_ij = unit G_ij scale_j, the left operand of the gradient's product.

    G_ij = w_i P_ij + w_j P_ji with P_ij = 2^(t_ij - lse_i). Bounded, with c = log2(e) / |tau|,
        A_ij = 2^(t_ij - c) (row_weight_i scale_j + column_weight_j),
    else A_ij = 2^(t_ij - base_i) row_weight_i scale_j + 2^(t_ij - base_j) column_weight_j, where
    base is lse as float32 and the weights make up for its rounding. P_ij <= miss_i for negatives,
    so |A_ij| <= 2 max_k(|w_k| miss_k) max_k(scale_k) unit: `unit` brings that inside float16.
    """
    most = tl.zeros([BLOCK], tl.float32)
    most_scale = tl.zeros([BLOCK], tl.float32)
    for first in range(0, padded, BLOCK):
        row = first + tl.arange(0, BLOCK)
        live = row < rows
        weight = _upstream(grad, grad_stride, row, live, VECTOR)
        pulled = weight * tl.load(miss + row, mask=live, other=0.0)
        tl.store(pull + row, pulled, mask=row < padded)
        most = tl.maximum(most, tl.abs(pulled))
        most_scale = tl.maximum(most_scale, tl.load(scale + row, mask=live, other=0.0))
    largest = tl.max(most, 0) * tl.max(most_scale, 0)
    up = tl.div_rn(tl.full((), GRADIENT_LIMIT, tl.float32), tl.maximum(largest, 2.0**-100))
    tl.store(unit, up)
    bound = tl.abs(log_scale_of(temperature, tau, LEARNED))
    for first in range(0, padded, BLOCK):
        row = first + tl.arange(0, BLOCK)
        live = row < rows
        log_sum = tl.load(lse + row, mask=live, other=0.0)
        rounded = log_sum.to(tl.float32)
        exponent = -(log_sum - rounded.to(tl.float64))
        if BOUNDED:
            exponent = bound.to(tl.float64) - log_sum
        else:
            tl.store(base + row, rounded, mask=row < padded)
        whole = tl.floor(exponent)
        power = tl.exp2((exponent - whole).to(tl.float32)) * tl.exp2(whole.to(tl.float32))
        weight = _upstream(grad, grad_stride, row, live, VECTOR) * up * power
        tl.store(row_weight + row, weight, mask=row < padded)
        weight *= tl.load(scale + row, mask=live, other=0.0)
        tl.store(column_weight + row, weight, mask=row < padded)


@triton.jit
def load_packed(packed, rows, live, column, padded, DEPTH: tl.constexpr, PARTS: tl.constexpr):
    """A block of packed rows as float32."""
    where = packed + rows.to(tl.int64)[:, None] * DEPTH + column[None, :]
    mask = live[:, None] & (column < DEPTH)[None, :]
    x = tl.load(where, mask=mask, other=0.0).to(tl.float32)
    if PARTS == 2:
        x += tl.load(where + padded.to(tl.int64) * DEPTH, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit
def load_sum(sums, rows, live, column, padded, splits, DEPTH: tl.constexpr):
    """A block of a sum that several programs share."""
    where = sums + rows.to(tl.int64)[:, None] * DEPTH + column[None, :]
    mask = live[:, None] & (column < DEPTH)[None, :]
    x = tl.load(where, mask=mask, other=0.0)
    for split in range(1, splits):
        x += tl.load(where + padded.to(tl.int64) * split * DEPTH, mask=mask, other=0.0)
    return x


@triton.jit
def store_gradient(
    out, gradient, z, along, back, pair, live, column, depth, NORMALIZE: tl.constexpr
):
    """Stores a block of a gradient, with the Jacobian of the normalisation."""
    if NORMALIZE:
        # A row shorter than SMALLEST_NORM was divided by a constant: no projection. Its gradient
        # may be larger than float16 can hold; the largest float16 is kept then.
        dead = back == LARGEST_INVERSE
        gradient = (gradient - tl.where(dead, 0.0, along)[:, None] * z) * back[:, None]
        if out.dtype.element_ty == tl.float16:
            clipped = tl.where(gradient > 65504.0, 65504.0, gradient)
            clipped = tl.where(clipped < -65504.0, -65504.0, clipped)
            gradient = tl.where(dead[:, None], clipped, gradient)
    where = out + pair.to(tl.int64)[:, None] * depth + column[None, :]
    mask = live[:, None] & (column < depth)[None, :]
    tl.store(where, gradient.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["half", "splits"])
def finish_gradient(
    sums, packed, scale, inverse, pull, unit, grad, grad_z0, grad_z1, block_along, temperature, tau,
    factor, half, padded, depth, splits,
    LEARNED: tl.constexpr, VECTOR: tl.constexpr, NORMALIZE: tl.constexpr, PARTS: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums over negatives, [splits, padded, DEPTH], to the gradients of both rows of each pair.

    dL/dz_i = (sum_j G_ij z_j - (pull_i + pull_p) z_p) * upstream * factor / temperature, then the
    Jacobian of the normalisation, (I - z zT) / |x|. `block_along` gets sums of <z_i, dL/dz_i>.
    """
    pair = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = pair < half
    weight = factor / temperature_of(temperature, tau, LEARNED)
    if not VECTOR:
        weight *= tl.load(grad)
    down = tl.div_rn(weight, tl.load(unit))
    pulled = tl.load(pull + pair, mask=live, other=0.0)
    pulled = (pulled + tl.load(pull + pair + half, mask=live, other=0.0)) * weight
    scale0 = tl.load(scale + pair, mask=live, other=0.0)
    scale1 = tl.load(scale + pair + half, mask=live, other=0.0)
    along0 = tl.zeros([BLOCK_M], tl.float32)
    along1 = tl.zeros([BLOCK_M], tl.float32)
    for d in range(0, DEPTH, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        x0 = load_packed(packed, pair, live, column, padded, DEPTH, PARTS) * scale0[:, None]
        x1 = load_packed(packed, pair + half, live, column, padded, DEPTH, PARTS) * scale1[:, None]
        g0 = load_sum(sums, pair, live, column, padded, splits, DEPTH) * down
        g1 = load_sum(sums, pair + half, live, column, padded, splits, DEPTH) * down
        along0 += tl.sum((g0 - pulled[:, None] * x1) * x0, 1)
        along1 += tl.sum((g1 - pulled[:, None] * x0) * x1, 1)
    tl.store(block_along + tl.program_id(0), tl.sum(along0 + along1, 0))
    back0 = tl.load(inverse + pair, mask=live, other=0.0)
    back1 = tl.load(inverse + pair + half, mask=live, other=0.0)
    for d in range(0, DEPTH, BLOCK_D):
        column = d + tl.arange(0, BLOCK_D)
        x0 = load_packed(packed, pair, live, column, padded, DEPTH, PARTS) * scale0[:, None]
        x1 = load_packed(packed, pair + half, live, column, padded, DEPTH, PARTS) * scale1[:, None]
        g0 = load_sum(sums, pair, live, column, padded, splits, DEPTH) * down
        g1 = load_sum(sums, pair + half, live, column, padded, splits, DEPTH) * down
        g0 -= pulled[:, None] * x1
        g1 -= pulled[:, None] * x0
        store_gradient(grad_z0, g0, x0, along0, back0, pair, live, column, depth, NORMALIZE)
        store_gradient(grad_z1, g1, x1, along1, back1, pair, live, column, depth, NORMALIZE)

"""The family's Triton kernels over rows of the backward pass: what rows bring to A, and gradients.

The gradient of logit s_ij through row i's statistics is, with (n, p) = (NEGATIVES, POSITIVES):

    negatives   weight e^(s - n)          SIGMOID: weight sigmoid(s)
    positives   constant + positive_weight e^(s - p)          LABELLED
                constant sigmoid(n - s)                       PAIRED
    partners    the gradient of POSITIVE, outside the product: SOFTMAX, SIGMOID

No share exceeds 1, so weights bound |G|, and a power of two brings A inside float16.
"""

import triton
import triton.language as tl

from fastssl.ops.contrast.triton_pairs import LABELLED, PAIRED, SIGMOID, log_scale_of
from fastssl.ops.contrast.triton_rows import S_COUNT, S_NEGATIVES, S_POSITIVE, S_POSITIVES
from fastssl.ops.nt_xent.triton_rows import (
    GRADIENT_LIMIT,
    LOG2_E,
    exponent_of,
    load_packed,
    load_sum,
    power_of_two,
    store_gradient,
    temperature_of,
)


@triton.jit
def _side(statistics, gradient, row, live, rows, KIND: tl.constexpr):
    """(weight, n, constant, positive_weight, p, bound), float64, n and p in units of log2."""
    rows = tl.full((), 0, tl.int64) + rows
    n = tl.load(statistics + S_NEGATIVES * rows + row, mask=live, other=0.0)
    weight = tl.load(gradient + S_NEGATIVES * rows + row, mask=live, other=0.0)
    constant = weight * 0.0
    positive_weight = constant
    p = constant
    bound = constant
    if KIND == SIGMOID:
        # sigmoid(s) <= softplus(s) <= their sum: small where all logits are.
        bound = tl.abs(weight) * tl.minimum(n, 1.0)
        n = constant
    else:
        none = n == float("-inf")
        if KIND >= LABELLED:
            constant = tl.load(gradient + S_POSITIVE * rows + row, mask=live, other=0.0)
            p = tl.load(statistics + S_POSITIVES * rows + row, mask=live, other=0.0)
        if KIND == PAIRED:
            weight += constant * p
            constant = tl.where(none, 0.0, -constant)
            bound = tl.abs(constant) * tl.minimum(p, 1.0)
            p = positive_weight
        if KIND == LABELLED:
            positive_weight = tl.load(gradient + S_POSITIVES * rows + row, mask=live, other=0.0)
            some = tl.load(statistics + S_COUNT * rows + row, mask=live, other=0.0) > 0
            positive_weight = tl.where(some, positive_weight, 0.0)
            constant = tl.where(some, constant, 0.0)
            p = tl.where(some, p * LOG2_E, 0.0)
            bound = tl.abs(constant) + tl.abs(positive_weight)
        weight = tl.where(none, 0.0, weight)
        n = tl.where(none, 0.0, n * LOG2_E)
        bound = tl.maximum(bound, tl.abs(weight))
    return weight, n, constant, positive_weight, p, bound


@triton.jit
def _largest_bound(statistics, gradient, rows, KIND: tl.constexpr, BLOCK: tl.constexpr):
    most = tl.zeros([BLOCK], tl.float32)
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        _, _, _, _, _, bound = _side(statistics, gradient, row, row < rows, rows, KIND)
        most = tl.maximum(most, bound.to(tl.float32))
    return tl.max(most, 0)


@triton.jit
def _largest(values, count, BLOCK: tl.constexpr):
    most = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        where = first + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(values + where, mask=where < count, other=0.0))
    return tl.max(most, 0)


@triton.jit(do_not_specialize=["rows", "columns"])
def bound_gradients(
    statistics, gradient, other_statistics, other_gradient, left_scale, right_scale, unit, rows,
    columns, KIND: tl.constexpr, OTHER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Two units, powers of two that bring A inside float16, for x's gradient and for y's.

    Where y is None `other` is the same side again, and |A| at most twice the limit.
    """
    most = _largest_bound(statistics, gradient, rows, KIND, BLOCK)
    if OTHER:
        most += _largest_bound(other_statistics, other_gradient, columns, KIND, BLOCK)
    limit = tl.full((), GRADIENT_LIMIT, tl.float32)
    for side in tl.static_range(2):
        if side == 0:
            largest = most * _largest(right_scale, columns, BLOCK)
        else:
            largest = most * _largest(left_scale, rows, BLOCK)
        # A power of two: what divides by it later loses nothing.
        exponent = exponent_of(tl.div_rn(limit, tl.maximum(largest, 2.0**-100)))
        tl.store(unit + side, power_of_two(exponent))


@triton.jit
def _store_folded(out, weight, exponent, up, factor, row, mask):
    # weight 2^-exponent up factor, in steps that stay inside float32.
    whole = tl.floor(-exponent)
    power = tl.exp2((-exponent - whole).to(tl.float32)) * tl.exp2(whole.to(tl.float32))
    tl.store(out + row, (weight.to(tl.float32) * up) * power * factor, mask=mask)


@triton.jit
def _store_side(
    statistics, gradient, out, bound, up, factor, row, live, rows, padded, KIND: tl.constexpr,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    mask = row < padded
    padded = padded.to(tl.int64)
    weight, n, constant, positive_weight, p, _ = _side(statistics, gradient, row, live, rows, KIND)
    to = out + row
    if KIND == SIGMOID:
        tl.store(to, weight.to(tl.float32) * up * factor, mask=mask)
    elif BOUNDED:
        _store_folded(out, weight, n - bound, up, factor, row, mask)
    else:
        base = n.to(tl.float32)
        tl.store(to + padded, base, mask=mask)
        _store_folded(out, weight, n - base.to(tl.float64), up, factor, row, mask)
    if KIND >= LABELLED:
        tl.store(to + 2 * padded, constant.to(tl.float32) * up * factor, mask=mask)
    if KIND == LABELLED:
        if BOUNDED:
            _store_folded(out + 3 * padded, positive_weight, p - bound, up, factor, row, mask)
        else:
            base = p.to(tl.float32)
            tl.store(to + 4 * padded, base, mask=mask)
            exponent = p - base.to(tl.float64)
            _store_folded(out + 3 * padded, positive_weight, exponent, up, factor, row, mask)


@triton.jit(do_not_specialize=["rows", "columns"])
def weigh_pairs(
    own_statistics, own_gradient, other_statistics, other_gradient, right_scale, own, other, unit,
    scale, factor, rows, columns, left_padded, right_padded,
    KIND: tl.constexpr, BOUNDED: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    LEARNED: tl.constexpr, BIASED: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The vectors [5, padded] of both sides: weight, base, constant, positive weight, its base.

    With `unit` in them, and SCALED those of columns times their scale. Bounded, weights also hold
    what leads from e^(s - n) to 2^(t - |log2(e) scale|); else base is n as float32, and weights
    make up for its rounding. SIGMOID has no base: if SCALED and BIASED, columns have 1 / scale
    in its place.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    up = tl.load(unit)
    bound = tl.abs(log_scale_of(scale, factor, LEARNED)).to(tl.float64)
    if OWN:
        _store_side(
            own_statistics, own_gradient, own, bound, up, 1.0, row, row < rows, rows, left_padded,
            KIND, BOUNDED,
        )  # fmt: skip
    live = row < columns
    size = tl.full(row.shape, 1.0, tl.float32)
    if SCALED:
        size = tl.load(right_scale + row, mask=live, other=0.0)
    if OTHER:
        _store_side(
            other_statistics, other_gradient, other, bound, up, size, row, live, columns,
            right_padded, KIND, BOUNDED,
        )  # fmt: skip
    if BIASED and SCALED:
        back = tl.where(size > 0, tl.div_rn(1.0, tl.where(size > 0, size, 1.0)), 0.0)
        tl.store(other + right_padded + row, back, mask=row < right_padded)


@triton.jit
def _pull(
    index, own_gradient, other_gradient, row, live, rows, columns, OWN: tl.constexpr,
    OTHER: tl.constexpr, CROSSED: tl.constexpr,
):  # fmt: skip
    """A positive outside the product, and its gradient; CROSSED: that of the other row."""
    other = tl.load(index + row, mask=live, other=-1)
    some = other >= 0
    weight = tl.zeros(row.shape, tl.float64)
    if OWN:
        mine = own_gradient + S_POSITIVE * rows + (other if CROSSED else row)
        weight += tl.load(mine, mask=live & some, other=0.0)
    if OTHER:
        theirs = other_gradient + S_POSITIVE * columns + other
        weight += tl.load(theirs, mask=some, other=0.0)
    return other, some, weight.to(tl.float32)


@triton.jit(do_not_specialize=["rows", "columns", "splits"])
def finish_pairs(
    sums, left, left_scale, inverse_norm, right, right_scale, partner, inverse, own_gradient,
    other_gradient, unit, out, block_along, block_pull, scale, factor, rows, columns, left_padded,
    right_padded, depth, splits,
    LEARNED: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, PARTNER: tl.constexpr,
    TWO: tl.constexpr, NORMALIZE: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """sum_j A_ij right_j, [splits, left_padded, DEPTH], to the gradient of the left rows.

    dL/dx_i = scale (sum_j G_ij y_j + pulls), then the Jacobian of the normalisation. `block_along`
    gets sums of <x_i, sum_j G_ij y_j>, what the gradient of the scale consists of, `block_pull`
    those of the pulls.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < rows
    value = temperature_of(scale, factor, LEARNED)
    down = tl.div_rn(1.0, tl.load(unit))
    size = tl.load(left_scale + row, mask=live, other=0.0)
    pull = tl.zeros([BLOCK_M], tl.float32)
    pull1 = pull
    if PARTNER:
        # With y None, i is pulled by its partner, and by the row whose partner it is.
        p, some, pull = _pull(
            partner, own_gradient, other_gradient, row, live, rows, columns, OWN, OTHER and not TWO,
            False,
        )  # fmt: skip
        factor_p = tl.load(right_scale + p, mask=some, other=0.0) * pull
        if TWO:
            q, some1, pull1 = _pull(
                inverse, own_gradient, other_gradient, row, live, rows, columns, True, False, True
            )
            factor_q = tl.load(right_scale + q, mask=some1, other=0.0) * pull1
    along = tl.zeros([BLOCK_M], tl.float32)
    for turn in tl.static_range(2):
        for d in range(0, DEPTH, BLOCK_D):
            column = d + tl.arange(0, BLOCK_D)
            x = load_packed(left, row, live, column, left_padded, DEPTH, PARTS) * size[:, None]
            g = load_sum(sums, row, live, column, left_padded, splits, DEPTH) * down
            if PARTNER:
                y = load_packed(right, p, some, column, right_padded, DEPTH, PARTS)
                g += y * factor_p[:, None]
                if TWO:
                    y = load_packed(right, q, some1, column, right_padded, DEPTH, PARTS)
                    g += y * factor_q[:, None]
            if turn == 0:
                along += tl.sum(g * x, 1)
            else:
                back = tl.load(inverse_norm + row, mask=live, other=0.0)
                store_gradient(
                    out, g * value, x, along * value, back, row, live, column, depth, NORMALIZE
                )
    tl.store(block_along + tl.program_id(0), tl.sum(tl.where(live, along, 0.0), 0))
    tl.store(block_pull + tl.program_id(0), tl.sum(tl.where(live, pull + pull1, 0.0), 0))


@triton.jit
def _total(values, count, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, count, BLOCK):
        where = first + tl.arange(0, BLOCK)
        total += tl.load(values + where, mask=where < count, other=0.0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["blocks", "tiles"])
def add_up_pairs(
    block_along, block_pull, block_sums, unit, of_scale, of_bias, blocks, tiles, part,
    BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of scale and bias; `part` is a half where every pair was met twice."""
    tl.store(of_scale, (_total(block_along, blocks, BLOCK) * part).to(tl.float32))
    bias = tl.zeros((), tl.float64)
    if BIASED:
        bias = _total(block_sums, tiles, BLOCK) / tl.load(unit).to(tl.float64)
        bias += _total(block_pull, blocks, BLOCK)
    tl.store(of_bias, (bias * part).to(tl.float32))

"""SigLIP's gradients with its sums: for deep rows whose upstream gradient is one number.

A sum of softplus is a sum over pairs: the gradient of its logits needs no statistic. Where rows are
so deep that weights go through memory, and a loss weighs all rows alike, the forward pass writes
the shares sigmoid(s) beside the sums, multiplies them, and keeps both results; the backward pass
scales them: three products, where recomputed logits would make four.

Only for bfloat16: shares need its range, where float16 needs a bound that the sums give.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastssl.ops.contrast import triton_gradient
from fastssl.ops.contrast.pairs import NEGATIVES, ROWS, SIGMOID
from fastssl.ops.contrast.triton import Problem
from fastssl.ops.contrast.triton_pairs import (
    ends_of,
    index_of,
    log_scale_of,
    shift_of,
    sigmoid,
    softplus,
)
from fastssl.ops.nt_xent.triton_backward import tile_of
from fastssl.ops.nt_xent.triton_forward import long_product
from fastssl.ops.nt_xent.triton_rows import NEVER


@triton.jit(do_not_specialize=["rows", "columns"])
def write_shares(
    left, left_scale, right, right_scale, partner, scale, factor, bias, sums, out, turned,
    block_sums, rows, columns, left_padded, right_padded, chunk, chunk_rows,
    PARTNER: tl.constexpr, LEARNED: tl.constexpr, BIASED: tl.constexpr, PARTS: tl.constexpr,
    DEPTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of sigmoid(s_ij), 0 for partners, of the rows from `chunk`, and its sums.

    `out` [chunk_rows, right_padded] has them times columns' scales, `turned` times rows'; `sums`
    [blocks of columns, chunk_rows] those of softplus(s), `block_sums` of the shares.
    """
    block_i, block_j = tile_of(chunk, chunk_rows, left_padded, BLOCK_M)
    offset_i = block_i * BLOCK_M
    first_i = chunk + offset_i
    first_j = block_j * BLOCK_N
    i = first_i + tl.arange(0, BLOCK_M)
    j = first_j + tl.arange(0, BLOCK_N)
    live = i < rows
    t = long_product(
        left, left_padded.to(tl.int64) * DEPTH, first_i, right, right_padded.to(tl.int64) * DEPTH,
        first_j, DEPTH, PARTS, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    scale_i = tl.load(left_scale + i)
    scale_j = tl.load(right_scale + j)
    row_scale = scale_i * log_scale_of(scale, factor, LEARNED)
    t = t * scale_j[None, :] * row_scale[:, None] + shift_of(bias, BIASED)
    partner_i = index_of(partner, i, live, False, PARTNER)
    first, last = ends_of(partner_i, PARTNER)
    last_j = first_j + BLOCK_N
    met = (first_j <= last) & (last_j > first)
    if met | (last_j > columns) | (first_i + BLOCK_M > rows):
        past = (j >= columns)[None, :] | (i >= rows)[:, None]
        t = tl.where(past | (j[None, :] == partner_i[:, None]), NEVER, t)
    row = offset_i + tl.arange(0, BLOCK_M)
    tl.store(sums + block_j * chunk_rows.to(tl.int64) + row, tl.sum(softplus(t), 1))
    share = sigmoid(t)
    where = (first_i // BLOCK_M).to(tl.int64) * (right_padded // BLOCK_N) + block_j
    tl.store(block_sums + where, tl.sum(tl.sum(share, 1), 0))
    to = row.to(tl.int64)[:, None] * right_padded + j[None, :]
    tl.store(out + to, (share * scale_j[None, :]).to(out.dtype.element_ty))
    tl.store(turned + to, (share * scale_i[:, None]).to(out.dtype.element_ty))


def _parts(problem: Problem, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares times right rows [1, padded, depth], times left rows, and their sum [1]."""
    sides = problem.left, problem.right
    of_left, of_right, share = kept.split([*(side.padded * side.depth for side in sides), 1])
    return *(z.view(1, -1, problem.left.depth) for z in (of_left, of_right)), share


def forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """The raw operator contrast_forward_kept, for what schema.gradients_worth_keeping takes."""
    left, right, tiles = problem.left, problem.right, problem.tiles(SIGMOID)
    tile = tiles.weights
    across = right.padded // tile.columns
    row_sums = problem.empty(1, 1, left.padded)
    block_sums = problem.empty(left.padded // tile.rows * across)
    kept = problem.empty((left.padded + right.padded) * left.depth + 1)
    of_left, of_right, share = _parts(problem, kept)

    def write(chunk: int, count: int, step: int, weights: Tensor, turned: Tensor) -> None:
        sums = problem.empty(across, step)
        write_shares[(count // tile.rows * across,)](
            *problem.sides, problem.pointer(problem.partner), *problem.numbers, sums, weights,
            turned, block_sums, left.rows, right.rows, left.padded, right.padded, chunk, step,
            PARTNER=problem.partner is not None, **problem.modes, **problem.shape,
            **tile.arguments(),
        )  # fmt: skip
        row_sums[0, 0, chunk : chunk + count] = sums[:, :count].sum(0, dtype=torch.float64)

    triton_gradient.by_chunks(problem, tiles, write, of_left, of_right)
    share.copy_(block_sums.sum(dtype=torch.float64))
    rows = problem.statistics(known=(row_sums, 1))
    return rows, problem.empty(ROWS, 0, dtype=torch.float64), kept


def backward(
    problem: Problem, kept: Tensor, rows: Tensor, rows_grad: Tensor, want_x: bool, want_y: bool
) -> tuple[Tensor, ...]:
    """The raw operator contrast_backward_kept: the upstream gradient of all sums is the first's."""
    of_left, of_right, share = _parts(problem, kept)
    own = triton_gradient.Upstream.of(rows, rows_grad)
    # What is kept is divided by it, as if it had been brought inside float16.
    unit = own.gradient[NEGATIVES, :1].reciprocal().float()
    left = triton_gradient.Gradient(problem, own, None, unit)
    right = triton_gradient.Gradient(problem.swapped, None, own, unit)
    grad_x, *parts = left.finished(of_left)
    grad_x = grad_x if want_x else grad_x.new_empty(0)
    grad_y = right.finished(of_right)[0] if want_y else grad_x.new_empty(0)
    return grad_x, grad_y, *left.numbers(*parts, share)

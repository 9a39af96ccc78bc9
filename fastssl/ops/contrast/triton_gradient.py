"""Launches the backward pass of the family's Triton kernels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.ops.contrast import triton_backward, triton_weights
from fastssl.ops.contrast.pairs import PAIRED, SIGMOID, SOFTMAX
from fastssl.ops.contrast.triton import Problem
from fastssl.ops.nt_xent.triton_backward import multiply_weights
from fastssl.ops.nt_xent.triton_tiles import chunk_rows, split_columns


@dataclass(frozen=True)
class Upstream:
    """The statistics of one side's rows and the gradients with respect to them."""

    statistics: Tensor
    gradient: Tensor

    @classmethod
    def of(cls, statistics: Tensor, gradient: Tensor) -> "Upstream":
        """As kernels read them."""
        return cls(*(x.to(torch.float64).contiguous() for x in (statistics, gradient)))


@dataclass(frozen=True)
class Gradient:
    """What the gradient of one problem's left rows is made from; `own` or `other` may be None."""

    problem: Problem
    own: Upstream | None
    other: Upstream | None
    unit: Tensor

    @property
    def two(self) -> bool:
        """Whether both sides are the same rows."""
        return self.problem.p.y is None

    @property
    def bounded(self) -> bool:
        """Whether one exponential serves rows and columns."""
        return self.problem.bounded and self.problem.p.kind != PAIRED

    @property
    def parts_of_gradient(self) -> dict[str, bool]:
        """Which sides have statistics."""
        return {"OWN": self.own is not None, "OTHER": self.other is not None}

    def _upstream(self, side: Upstream | None) -> tuple[Tensor, Tensor]:
        side = side or self.own or self.other
        return side.statistics, side.gradient

    def weighed(self) -> tuple[Tensor, Tensor]:
        """What rows and columns bring to A."""
        problem, block = self.problem, 256
        left, right = problem.left, problem.right
        own, other = problem.empty(5, left.padded), problem.empty(5, right.padded)
        triton_weights.weigh_pairs[(-(-max(left.padded, right.padded) // block),)](
            *self._upstream(self.own), *self._upstream(self.other), right.packed[1], own, other,
            self.unit, *problem.numbers[:2], left.rows, right.rows, left.padded, right.padded,
            KIND=problem.p.kind, BOUNDED=self.bounded, **self.parts_of_gradient, **problem.modes,
            BLOCK=block, num_warps=4,
        )  # fmt: skip
        return own, other

    def sums(self) -> tuple[Tensor, Tensor]:
        """sum_j A_ij right_j [splits, padded, depth], and programs' sums of G for the bias."""
        problem = self.problem
        left, right = problem.left, problem.right
        tiles = problem.tiles(problem.p.kind, self.other is not None)
        pointer = problem.pointer
        own, other = self.weighed()
        arguments = (
            *problem.sides, pointer(problem.excluded), pointer(problem.partner),
            pointer(problem.inverse_partner if self.two else None), pointer(left.labels),
            pointer(right.labels), pointer(left.window), pointer(right.window), own, other,
            *problem.numbers,
        )  # fmt: skip
        options = {
            "KIND": problem.p.kind, "LABELS": problem.labels, "TWO": self.two,
            "OTHER_WINDOW": right.window is not None, "BOUNDED": self.bounded,
            **self.parts_of_gradient, **problem.masks, **problem.modes, **problem.shape,
        }  # fmt: skip
        depth, parts = left.depth, left.parts
        tile = tiles.backward
        if tile is not None:
            blocks = -(-left.rows // tile.rows)
            splits, span = split_columns(blocks, right.rows, tile, problem.processors)
            sums = problem.empty(splits, left.padded, depth)
            of_bias = problem.empty(blocks * splits)
            triton_backward.accumulate_pairs[(blocks, splits)](
                *arguments, sums, of_bias, left.rows, right.rows, left.padded, right.padded, span,
                **options, **tile.arguments(depth_block=False),
            )  # fmt: skip
            return sums, of_bias

        weigh, multiply = tiles.weights, tiles.product
        sums = problem.empty(1, left.padded, depth)
        step = chunk_rows(tiles, depth, left.padded, problem.processors)
        weights = problem.empty(parts, step, right.padded, dtype=left.packed[0].dtype)
        across = right.padded // weigh.columns
        of_bias = problem.empty(left.padded // weigh.rows * across)
        for chunk in range(0, left.padded, step):
            count = min(step, left.padded - chunk)
            triton_backward.write_pair_weights[(count // weigh.rows * across,)](
                *arguments, weights, of_bias, left.rows, right.rows, left.padded, right.padded,
                chunk, step, **options, **weigh.arguments(),
            )  # fmt: skip
            multiply_weights[(count // multiply.rows, -(-depth // multiply.columns))](
                weights, right.packed[0], sums, right.padded, chunk, step, PARTS=parts,
                DEPTH=depth, **multiply.arguments(),
            )  # fmt: skip
        return sums, of_bias

    def finished(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of the left rows, of the scale and of the bias."""
        problem = self.problem
        left, right = problem.left, problem.right
        sums, of_bias = self.sums()
        out = left.x.new_empty(left.x.shape)
        block = 16
        along, pull = (problem.empty(-(-left.rows // block)) for _ in range(2))
        outside = problem.partner is not None and problem.p.kind in (SOFTMAX, SIGMOID)
        inverse = problem.inverse_partner if self.two and outside else None
        triton_weights.finish_pairs[(along.numel(),)](
            sums, *left.packed, *right.packed[:2], problem.pointer(problem.partner),
            problem.pointer(inverse), self._upstream(self.own)[1], self._upstream(self.other)[1],
            self.unit, out, along, pull, *problem.numbers[:2], left.rows, right.rows, left.padded,
            right.padded, left.x.shape[1], len(sums), LEARNED=problem.modes["LEARNED"],
            **self.parts_of_gradient, PARTNER=outside, TWO=self.two, NORMALIZE=left.normalize,
            **problem.shape, BLOCK_M=block, BLOCK_D=min(left.depth, 128), num_warps=4,
        )  # fmt: skip
        of_scale, bias = problem.empty(), problem.empty()
        triton_weights.add_up_pairs[(1,)](
            along, pull, of_bias, self.unit, of_scale, bias, along.numel(), of_bias.numel(),
            0.5 if self.two else 1.0, BIASED=problem.modes["BIASED"], BLOCK=1024, num_warps=4,
        )  # fmt: skip
        return out, of_scale, bias


def backward(problem: Problem, rows, rows_grad, columns, columns_grad, want_x, want_y):
    """The raw operator contrast_backward, for a problem that is not empty."""
    p, symmetric = problem.p, problem.p.y is None
    own = Upstream.of(rows, rows_grad)
    other = Upstream.of(columns, columns_grad) if p.columns and not symmetric else None
    unit = problem.empty(2)
    both = other or own
    block = min(4096, 1 << (max(problem.left.rows, problem.right.rows) - 1).bit_length())
    triton_weights.bound_gradients[(1,)](
        own.statistics, own.gradient, both.statistics, both.gradient, problem.left.packed[1],
        problem.right.packed[1], unit, problem.left.rows, problem.right.rows, KIND=p.kind,
        OTHER=other is not None, BLOCK=max(block, 16), num_warps=16,
    )  # fmt: skip
    none, zero = p.x.new_empty(0), problem.empty().zero_()
    if symmetric:
        grad, of_scale, of_bias = Gradient(problem, own, own, unit[:1]).finished()
        return grad, none, of_scale, of_bias
    grad_x, of_scale, of_bias = none, zero, zero.clone()
    if want_x:
        grad_x, of_scale, of_bias = Gradient(problem, own, other, unit[:1]).finished()
    grad_y = none.clone()
    if want_y:
        grad_y, _, _ = Gradient(problem.swapped, other, own, unit[1:]).finished()
    return grad_x, grad_y, of_scale, of_bias

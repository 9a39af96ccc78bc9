"""Launches the backward pass of the family's Triton kernels."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.ops.contrast import triton_backward, triton_weights
from fastssl.ops.contrast.pairs import PAIRED, SIGMOID, SOFTMAX
from fastssl.ops.contrast.triton import Problem
from fastssl.ops.nt_xent.triton_backward import multiply_weights
from fastssl.ops.nt_xent.triton_tiles import Tiles, chunk_rows, split_columns


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
    """What the gradient of one problem's left rows is made from; `own` or `other` may be None.

    `unit`: a power of two for A, and for the right rows' A a second.
    """

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

    @functools.cached_property
    def tiles(self) -> Tiles:
        """Of the kernels that multiply."""
        return self.problem.tiles(self.problem.p.kind, self.other is not None)

    def _weighed(self, scaled: bool) -> tuple[Tensor, Tensor]:
        problem, block = self.problem, 256
        left, right = problem.left, problem.right
        own, other = problem.empty(5, left.padded), problem.empty(5, right.padded)
        triton_weights.weigh_pairs[(-(-max(left.padded, right.padded) // block),)](
            *self._upstream(self.own), *self._upstream(self.other), right.packed[1], own, other,
            self.unit, *problem.numbers[:2], left.rows, right.rows, left.padded, right.padded,
            KIND=problem.p.kind, BOUNDED=self.bounded, **self.parts_of_gradient, **problem.modes,
            SCALED=scaled, BLOCK=block, num_warps=4,
        )  # fmt: skip
        return own, other

    def _arguments(self, scaled: bool) -> tuple[tuple, dict]:
        """What rows and columns bring to A, and how it is made of them."""
        problem, pointer = self.problem, self.problem.pointer
        left, right = problem.left, problem.right
        arguments = (
            *problem.sides, pointer(problem.excluded), pointer(problem.partner),
            pointer(problem.inverse_partner if self.two else None), pointer(left.labels),
            pointer(right.labels), pointer(left.window), pointer(right.window),
            *self._weighed(scaled), *problem.numbers,
        )  # fmt: skip
        options = {
            "KIND": problem.p.kind, "LABELS": problem.labels, "TWO": self.two,
            "OTHER_WINDOW": right.window is not None, "BOUNDED": self.bounded,
            **self.parts_of_gradient, **problem.masks, **problem.modes, **problem.shape,
        }  # fmt: skip
        return arguments, options

    def sums(self, both: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """sum_j A_ij right_j [splits, padded, depth], and programs' sums of G for the bias.

        `both`: where A is written, the same of the right rows [1, padded, depth] comes third.
        """
        if self.tiles.backward is None:
            return self._sums_by_memory(both)
        problem, tile = self.problem, self.tiles.backward
        left, right = problem.left, problem.right
        arguments, options = self._arguments(True)
        blocks = -(-left.rows // tile.rows)
        splits, span = split_columns(blocks, right.rows, tile, problem.processors)
        sums = problem.empty(splits, left.padded, left.depth)
        of_bias = problem.empty(blocks * splits)
        triton_backward.accumulate_pairs[(blocks, splits)](
            *arguments, sums, of_bias, left.rows, right.rows, left.padded, right.padded, span,
            **options, **tile.arguments(depth_block=False),
        )  # fmt: skip
        return sums, of_bias, None

    def _sums_by_memory(self, both: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        problem, weigh = self.problem, self.tiles.weights
        left, right = problem.left, problem.right
        arguments, options = self._arguments(not both)
        across = right.padded // weigh.columns
        of_bias = problem.empty(left.padded // weigh.rows * across)

        def write(chunk: int, count: int, step: int, weights: Tensor, turned: Tensor) -> None:
            triton_backward.write_pair_weights[(count // weigh.rows * across,)](
                *arguments, self.unit, weights, turned, of_bias, left.rows, right.rows,
                left.padded, right.padded, chunk, step, BOTH=both, **options, **weigh.arguments(),
            )  # fmt: skip

        sums = problem.empty(1, left.padded, left.depth)
        of_right = problem.empty(1, right.padded, right.depth) if both else None
        by_chunks(problem, self.tiles, write, sums, of_right)
        return sums, of_bias, of_right

    def finished(self, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient of the left rows, and blocks' sums for scale and bias."""
        problem = self.problem
        left, right = problem.left, problem.right
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
        return out, along, pull

    def gradients(self, right: "Gradient | None" = None) -> tuple[Tensor, ...]:
        """The gradients of the left rows, of those of `right` if given, of scale and of bias."""
        sums, of_bias, of_right = self.sums(right is not None)
        found = []
        out, along, pull = self.finished(sums)
        if right is not None:
            del sums
            found = [right.finished(right.sums(False)[0] if of_right is None else of_right)[0]]
        return out, *found, *self.numbers(along, pull, of_bias)

    def numbers(self, along: Tensor, pull: Tensor, of_bias: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of scale and of bias, of blocks' sums."""
        problem = self.problem
        of_scale, bias = problem.empty(), problem.empty()
        triton_weights.add_up_pairs[(1,)](
            along, pull, of_bias, self.unit, of_scale, bias, along.numel(), of_bias.numel(),
            0.5 if self.two else 1.0, BIASED=problem.modes["BIASED"], BLOCK=1024, num_warps=4,
        )  # fmt: skip
        return of_scale, bias


def by_chunks(
    problem: Problem, tiles: Tiles, write: Callable[..., None], sums: Tensor,
    of_right: Tensor | None,
) -> None:  # fmt: skip
    """Fills sums of weights times right rows [1, padded, depth], and, where wanted, left rows'.

    For some left rows at a time `write(chunk, count, step, weights, turned)` writes the weights of
    `count` rows from `chunk`, of room for `step`.
    """
    left, right, multiply = problem.left, problem.right, tiles.product
    depth, parts = left.depth, left.parts
    step = chunk_rows(tiles, depth, left.padded, problem.processors)
    weights = problem.empty(parts, step, right.padded, dtype=left.packed[0].dtype)
    turned = weights if of_right is None else torch.empty_like(weights)
    columns = -(-depth // multiply.columns)
    for chunk in range(0, left.padded, step):
        count = min(step, left.padded - chunk)
        write(chunk, count, step, weights, turned)
        multiply_weights[(count // multiply.rows, columns)](
            weights, right.packed[0], sums, right.padded, chunk, step, PARTS=parts, DEPTH=depth,
            **multiply.arguments(),
        )  # fmt: skip
        if of_right is not None:
            triton_backward.multiply_turned[(right.padded // multiply.rows * columns,)](
                turned, left.packed[0], of_right, right.padded, left.padded, chunk, step, count,
                PARTS=parts, DEPTH=depth, ACROSS=columns, **multiply.arguments(),
            )  # fmt: skip


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
        grad, of_scale, of_bias = Gradient(problem, own, own, unit).gradients()
        return grad, none, of_scale, of_bias
    left = Gradient(problem, own, other, unit)
    right = Gradient(problem.swapped, other, own, unit[1:]) if want_y else None
    if want_x and want_y:
        return left.gradients(right)
    if want_x:
        grad, of_scale, of_bias = left.gradients()
        return grad, none, of_scale, of_bias
    grad = right.finished(right.sums(False)[0])[0] if want_y else none.clone()
    return none, grad, zero, zero.clone()

"""Launches the family's Triton kernels: the raw operators' contract of schema.py, on CUDA tensors.

Forward: pack_rows for each matrix, partner_products and invert where there are partners, then for
each side sum_pairs and finish_statistics; the statistics of columns are those of rows with the
roles swapped. PAIRED sums twice, its negatives first, and metrics are sums of their own. Backward
(in triton_gradient.py): the same rows, then for each gradient weigh_pairs, accumulate_pairs and
finish_pairs; deep rows have matrix kernels for each chunk instead, which serve both gradients.
Nothing waits for the device; nothing is atomic.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.ops.contrast import pairs, schema, triton_forward, triton_rows
from fastssl.ops.contrast.pairs import (
    BEST,
    LABELLED,
    NEGATIVES,
    PAIRED,
    ROWS,
    ROWS_WITH_METRICS,
    SIGMOID,
    SOFTMAX,
    Pairs,
)
from fastssl.ops.contrast.triton_tiles import family_tiles
from fastssl.ops.nt_xent.triton import LARGEST_BOUND, architecture_of, on_device, processors_of
from fastssl.ops.nt_xent.triton_tiles import ROW_UNIT, Tiles, padded_depth, split_columns

METRICS = 4
#: How many sums sum_pairs stores for a kind.
SUMS = {SOFTMAX: 2, SIGMOID: 1, LABELLED: 6, PAIRED: 4, METRICS: 7}
#: Values of LABELS.
NONE, DROPPED, POSITIVE = range(3)


@dataclass(frozen=True)
class Side:
    """A matrix of rows and what is known of each row."""

    x: Tensor
    normalize: bool
    labels: Tensor | None
    window: Tensor | None

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.x.shape[0]

    @functools.cached_property
    def padded(self) -> int:
        """Up to a multiple of every tile's sides."""
        return -(-self.rows // ROW_UNIT) * ROW_UNIT

    @functools.cached_property
    def parts(self) -> int:
        """2 for float32: rows are sums of two float16 parts, 22 bits at tensor cores' speed."""
        return 2 if self.x.dtype == torch.float32 else 1

    @functools.cached_property
    def depth(self) -> int:
        """Columns of a packed row."""
        return padded_depth(self.x.shape[1])

    @functools.cached_property
    def packed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Packed rows [parts, padded, depth], scale [padded], inverse norm [padded]."""
        dtype = torch.float16 if self.parts == 2 else self.x.dtype
        packed = self.x.new_empty(self.parts, self.padded, self.depth, dtype=dtype)
        scale, inverse = (self.x.new_empty(self.padded, dtype=torch.float32) for _ in range(2))
        block = 16
        triton_rows.pack_rows[(self.padded // block,)](
            self.x, packed, scale, inverse, self.rows, self.padded, self.x.shape[1],
            *self.x.stride(), NORMALIZE=self.normalize, PARTS=self.parts, DEPTH=self.depth,
            BLOCK_M=block, BLOCK_D=min(self.depth, 128), num_warps=4,
        )  # fmt: skip
        return packed, scale, inverse


@dataclass(frozen=True)
class Problem:
    """One direction of comparison: the rows of `left` with those of `right`."""

    p: Pairs
    left: Side
    right: Side
    excluded: Tensor | None
    partner: Tensor | None

    @classmethod
    def of(cls, p: Pairs) -> "Problem":
        """Rows of x with those of y, or with itself."""
        left = Side(p.x, p.normalize_x, p.row_labels, p.row_window)
        right = left
        if p.y is not None:
            labels = p.row_labels if p.column_labels is None else p.column_labels
            right = Side(p.y, p.normalize_y, labels, p.column_window)
        return cls(p, left, right, None if p.y is None else p.excluded, p.partner)

    @functools.cached_property
    def swapped(self) -> "Problem":
        """The same pairs from the other side; no column may be named twice."""
        return Problem(
            self.p, self.right, self.left, self.inverse_of(self.excluded), self.inverse_partner
        )

    @functools.cached_property
    def inverse_partner(self) -> Tensor | None:
        """For each column the row whose partner it is, -1 for none."""
        return self.inverse_of(self.partner)

    def inverse_of(self, index: Tensor | None) -> Tensor | None:
        """For each column the row that names it, -1 for none."""
        if index is None:
            return None
        inverse = index.new_full((self.right.rows,), -1)
        block = 256
        triton_rows.invert[(-(-self.left.rows // block),)](
            index, inverse, self.left.rows, BLOCK=block, num_warps=4
        )
        return inverse

    def tiles(self, kind: int, other: bool = False) -> Tiles:
        """The tiles of a kind of sums, or of its gradient."""
        side, window = self.left, self.left.window is not None or self.right.window is not None
        architecture = architecture_of(side.x)
        return family_tiles(architecture, side.parts, side.depth, kind, other, window)

    @functools.cached_property
    def processors(self) -> int:
        """How many the device has."""
        return processors_of(self.p.x)

    @property
    def labels(self) -> int:
        """What equal labels say, as kernels take it."""
        if self.p.row_labels is None:
            return NONE
        return POSITIVE if self.p.kind in (LABELLED, PAIRED) else DROPPED

    @functools.cached_property
    def bounded(self) -> bool:
        """Whether the host knows that one exponential per element is safe."""
        p = self.p
        if p.scale is not None or p.kind == SIGMOID or p.bias is not None:
            return False
        unit = self.left.normalize and self.right.normalize
        return unit and abs(p.factor) * math.log2(math.e) <= LARGEST_BOUND

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory on the device."""
        return self.p.x.new_empty(shape, dtype=dtype)

    def pointer(self, tensor: Tensor | None) -> Tensor:
        """Any pointer does where the kernel does not read it."""
        return self.left.x if tensor is None else tensor

    @functools.cached_property
    def numbers(self) -> tuple[Tensor, float, Tensor]:
        """Scale, factor and bias as kernels take them."""
        scale, bias = (
            None if number is None else number.to(torch.float32)
            for number in (self.p.scale, self.p.bias)
        )
        return self.pointer(scale), self.p.factor, self.pointer(bias)

    @property
    def modes(self) -> dict[str, bool]:
        """Which numbers are read from the device."""
        return {"LEARNED": self.p.scale is not None, "BIASED": self.p.bias is not None}

    @property
    def masks(self) -> dict[str, bool]:
        """Which masks kernels are compiled with."""
        return {
            "DIAGONAL": self.p.y is None,
            "EXCLUDED": self.excluded is not None,
            "PARTNER": self.partner is not None,
            "WINDOW": self.left.window is not None,
        }

    @property
    def sides(self) -> tuple[Tensor, ...]:
        """Packed rows and their scales."""
        return *self.left.packed[:2], *self.right.packed[:2]

    @functools.cached_property
    def shape(self) -> dict[str, int]:
        """What kernels are compiled with of packed rows."""
        return {"PARTS": self.left.parts, "DEPTH": self.left.depth}

    @functools.cached_property
    def positive(self) -> Tensor:
        """Rows' cosines with their partners, [R]."""
        positive = self.empty(self.left.rows)
        block = 16
        triton_rows.partner_products[(-(-self.left.rows // block),)](
            *self.sides, self.partner, positive, self.left.rows, self.left.padded,
            self.right.padded, **self.shape, BLOCK_M=block, BLOCK_D=min(self.left.depth, 128),
            num_warps=4,
        )  # fmt: skip
        return positive

    def summed(self, kind: int, labels: int, known: Tensor | None = None, bounded: bool = False):
        """Launches sum_pairs; returns its sums and how many programs share a row."""
        left, right, tile = self.left, self.right, self.tiles(kind).forward
        blocks = -(-left.rows // tile.rows)
        splits, span = split_columns(blocks, right.rows, tile, self.processors)
        sums = self.empty(SUMS[kind], splits, left.padded)
        triton_forward.sum_pairs[(blocks, splits)](
            *self.sides, self.pointer(self.excluded), self.pointer(self.partner),
            self.pointer(left.labels), self.pointer(right.labels), self.pointer(left.window),
            self.pointer(known), *self.numbers, sums, left.rows, right.rows, left.padded,
            right.padded, span, KIND=kind, LABELS=labels, BOUNDED=bounded, **self.masks,
            **self.modes, **self.shape, **tile.arguments(),
        )  # fmt: skip
        return sums, splits

    def statistics(
        self,
        positive: Tensor | None = None,
        threshold: Tensor | None = None,
        known: tuple[Tensor, int] | None = None,
    ) -> Tensor:
        """The statistics of the left rows.

        `positive`: cosines where they are of another's rows; `known`: what `summed` would return.
        """
        p, rows = self.p, self.left.rows
        found = self.empty(ROWS_WITH_METRICS if p.metrics else ROWS, rows, dtype=torch.float64)
        block = 256
        grid = (-(-rows // block),)
        inverse = positive is not None

        def finish(kind: int, sums: Tensor, splits: int, bounded: bool = False):
            partner = self.partner is not None and p.kind in (SOFTMAX, SIGMOID)
            cosines = (positive if inverse else self.positive) if partner else None
            triton_rows.finish_statistics[grid](
                sums, self.pointer(cosines), self.pointer(self.partner), found, *self.numbers,
                rows, self.left.padded, splits, KIND=kind, BOUNDED=bounded, PARTNER=partner,
                INVERSE=inverse, BEST=p.metrics, **self.modes, BLOCK=block, num_warps=4,
            )  # fmt: skip

        if p.kind == PAIRED:
            labels = min(self.labels, DROPPED)
            finish(SOFTMAX, *self.summed(SOFTMAX, labels, bounded=self.bounded), self.bounded)
            finish(PAIRED, *self.summed(PAIRED, self.labels, found[NEGATIVES]))
        else:
            # The running maximum over positives is a metric.
            bounded = self.bounded and not (p.metrics and p.kind == LABELLED)
            known = known or self.summed(p.kind, self.labels, bounded=bounded)
            finish(p.kind, *known, bounded)
        if p.metrics:
            threshold = found[BEST] if threshold is None else threshold
            sums, splits = self.summed(METRICS, self.labels, threshold)
            triton_rows.finish_metrics[grid](
                sums, found, rows, self.left.padded, splits, BLOCK=block, num_warps=4
            )
        return found


def prepared(p: Pairs) -> Pairs:
    """With the memory that kernels read laid out as they expect."""
    names = (
        "excluded", "partner", "row_labels", "column_labels", "row_window", "column_window",
        "threshold",
    )  # fmt: skip
    values = {name: getattr(p, name) for name in names}
    return p._replace(**{k: None if v is None else v.contiguous() for k, v in values.items()})


def by_reference(p: Pairs) -> bool:
    """Whether there is nothing that these kernels are for."""
    return p.x.dtype == torch.float64 or p.x.numel() == 0 or (p.y is not None and not p.y.numel())


def forward(*arguments):
    """The raw operator contrast_forward; see schema.py."""
    p = prepared(Pairs(*arguments))
    if by_reference(p):
        return schema._forward(*p)
    with on_device(p.x):
        problem = Problem.of(p)
        rows = problem.statistics(threshold=p.threshold)
        if not p.columns:
            return rows, problem.empty(pairs.ROWS, 0, dtype=torch.float64)
        outside = problem.partner is not None and p.kind in (SOFTMAX, SIGMOID)
        return rows, problem.swapped.statistics(problem.positive if outside else None)


def backward(*arguments):
    """The raw operator contrast_backward; see schema.py."""
    from fastssl.ops.contrast import triton_gradient

    p = prepared(Pairs(*arguments[: len(Pairs._fields)]))
    if by_reference(p):
        return schema._backward(*p, *arguments[len(p) :])
    with on_device(p.x):
        return triton_gradient.backward(Problem.of(p), *arguments[len(p) :])


def forward_kept(*arguments):
    """The raw operator contrast_forward_kept; see schema.py."""
    from fastssl.ops.contrast import triton_kept

    p = prepared(Pairs(*arguments))
    with on_device(p.x):
        return triton_kept.forward(Problem.of(p))


def backward_kept(kept, *arguments):
    """The raw operator contrast_backward_kept; see schema.py."""
    from fastssl.ops.contrast import triton_kept

    p = prepared(Pairs(*arguments[: len(Pairs._fields)]))
    rows, rows_grad, _, _, *wanted = arguments[len(p) :]
    with on_device(p.x):
        return triton_kept.backward(Problem.of(p), kept, rows, rows_grad, *wanted)

"""Launches NT-Xent's Triton kernels: the raw operators' contract of schema.py, on CUDA tensors.

Forward, 4 launches: pack, sum_triangle (sum_exponentials where no bound of the logits is known),
finish_rows and, for a mean or a sum, add_up. Backward, 5 launches: pack, weigh_rows,
accumulate_gradient, finish_gradient, add_up; beyond a padded depth of 256 (of 128 for float32) a
pair of matrix kernels for each chunk of rows takes the middle place. All but the matrix kernels
work on rows. Nothing waits for the device; nothing is atomic.
"""

import contextlib
import functools
import math
from dataclasses import dataclass

import torch

from fastssl.ops.nt_xent import (
    schema,
    triton_backward,
    triton_forward,
    triton_rows,
    triton_triangle,
)
from fastssl.ops.nt_xent.triton_tiles import (
    ROW_UNIT,
    Tiles,
    chunk_rows,
    own_tiles,
    padded_depth,
    share_triangle,
    split_columns,
)

#: One exponential per element, relative to log2(e) / |tau|, keeps to float32's range up to here:
#: its smallest value is 2^-88, and the weights that meet it reach 2^122 at most.
LARGEST_BOUND = 44.0


def architecture_of(z: torch.Tensor) -> int:
    """The compute capability whose tiles a tensor's device takes."""
    major = torch.cuda.get_device_capability(z.device)[0] if z.is_cuda else 9
    return 90 if major >= 9 else 80


def processors_of(z: torch.Tensor) -> int:
    """How many processors a tensor's device has."""
    if z.is_cuda:
        return torch.cuda.get_device_properties(z.device).multi_processor_count
    return 8  # the interpreter: enough for some splitting


@dataclass(frozen=True)
class _Problem:
    """What both passes derive from their arguments on the host, before any launch."""

    z0: torch.Tensor
    z1: torch.Tensor
    temperature: torch.Tensor | None
    tau: float
    normalize: bool

    @functools.cached_property
    def half(self) -> int:
        return self.z0.shape[0]

    @functools.cached_property
    def rows(self) -> int:
        return 2 * self.half

    @functools.cached_property
    def padded(self) -> int:
        return -(-self.rows // ROW_UNIT) * ROW_UNIT

    @functools.cached_property
    def depth(self) -> int:
        return padded_depth(self.z0.shape[1])

    @functools.cached_property
    def parts(self) -> int:
        """2 for float32: rows are sums of two float16 parts, 22 bits at tensor cores' speed."""
        return 2 if self.z0.dtype == torch.float32 else 1

    @functools.cached_property
    def bounded(self) -> bool:
        """Whether the host knows that one exponential per element is safe."""
        if not self.normalize or self.temperature is not None:
            return False
        return abs(math.log2(math.e) / self.tau) <= LARGEST_BOUND

    @functools.cached_property
    def tiles(self) -> Tiles:
        return own_tiles(architecture_of(self.z0), self.parts, self.depth)

    @functools.cached_property
    def processors(self) -> int:
        return processors_of(self.z0)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self.z0.new_empty(shape, dtype=dtype)

    def pack(self):
        """Returns packed [parts, padded, depth], scale [padded], inverse [padded], positive [N]."""
        dtype = torch.float16 if self.parts == 2 else self.z0.dtype
        packed = self.empty(self.parts, self.padded, self.depth, dtype=dtype)
        scale, inverse = self.empty(self.padded), self.empty(self.padded)
        positive = self.empty(self.half)
        block = 16
        triton_rows.pack[(-(-self.half // block),)](
            self.z0, self.z1, packed, scale, inverse, positive, self.half, self.rows, self.padded,
            self.z0.shape[1], *self.z0.stride(), *self.z1.stride(),
            NORMALIZE=self.normalize, PARTS=self.parts, DEPTH=self.depth,
            BLOCK_M=block, BLOCK_D=min(self.depth, 128), num_warps=4,
        )  # fmt: skip
        return packed, scale, inverse, positive

    @property
    def temperature_arguments(self):
        # Any pointer does where the kernel does not read it.
        pointer = self.z0 if self.temperature is None else self.temperature
        return pointer, self.tau

    @property
    def modes(self) -> dict[str, bool]:
        return {"LEARNED": self.temperature is not None, "BOUNDED": self.bounded}


def _add_up(problem: _Problem, values: torch.Tensor, gradient: bool) -> torch.Tensor:
    out = problem.empty()
    triton_rows.add_up[(1,)](
        values, out, *problem.temperature_arguments, values.numel(),
        LEARNED=problem.modes["LEARNED"], GRADIENT=gradient, BLOCK=1024, num_warps=4,
    )  # fmt: skip
    return out


def on_device(z: torch.Tensor):
    """Makes a tensor's device the current one, which Triton launches on."""
    return torch.cuda.device(z.device) if z.is_cuda else contextlib.nullcontext()


def _float32(temperature: torch.Tensor | None) -> torch.Tensor | None:
    return None if temperature is None else temperature.to(torch.float32)


def forward(z0, z1, temperature, tau, normalize, reduction):
    """The raw operator nt_xent_forward; see schema.py."""
    if z0.dtype == torch.float64:
        return schema._forward(z0, z1, temperature, tau, normalize, reduction)
    problem = _Problem(z0, z1, _float32(temperature), tau, normalize)
    with on_device(z0):
        return _forward(problem, schema.REDUCTIONS[reduction])


def _forward(problem: _Problem, reduction: str):
    rows, padded = problem.rows, problem.padded
    packed, scale, _, positive = problem.pack()
    peak, total = _row_sums(problem, packed, scale)
    splits = len(total)

    lse, miss = problem.empty(rows, dtype=torch.float64), problem.empty(rows)
    none = reduction == "none"
    block = 128
    programs = -(-rows // block)
    loss = problem.empty(rows if none else programs)
    triton_rows.finish_rows[(programs,)](
        peak, total, positive, loss, lse, miss, loss, *problem.temperature_arguments,
        problem.half, rows, padded, splits, 1 / rows if reduction == "mean" else 1.0,
        **problem.modes, NONE=none, BLOCK=block, num_warps=4,
    )  # fmt: skip
    if not none:
        loss = _add_up(problem, loss, gradient=False)
    return loss, lse, miss


def _row_sums(problem: _Problem, packed, scale) -> tuple[torch.Tensor, torch.Tensor]:
    """Peaks (where there is a bound, anything) and sums over negatives, [parts, padded]."""
    half, rows, padded = problem.half, problem.rows, problem.padded
    options = {
        "LEARNED": problem.modes["LEARNED"], "PARTS": problem.parts, "DEPTH": problem.depth,
    }  # fmt: skip
    if problem.bounded:
        tile = problem.tiles.triangle
        groups, bands = share_triangle(rows, tile, problem.processors)
        total = problem.empty(groups + bands, padded)
        triton_triangle.sum_triangle[(groups, bands)](
            packed, scale, total, *problem.temperature_arguments, half, rows, padded,
            **options, **tile.arguments(),
        )  # fmt: skip
        return total, total
    tile = problem.tiles.forward
    blocks = -(-rows // tile.rows)
    splits, span = split_columns(blocks, rows, tile, problem.processors)
    peak, total = problem.empty(splits, padded), problem.empty(splits, padded)
    triton_forward.sum_exponentials[(blocks, splits)](
        packed, scale, peak, total, *problem.temperature_arguments, half, rows, padded, span,
        **options, **tile.arguments(),
    )  # fmt: skip
    return peak, total


def backward(grad, z0, z1, temperature, tau, normalize, reduction, lse, miss):
    """The raw operator nt_xent_backward; see schema.py."""
    if z0.dtype == torch.float64:
        return schema._backward(grad, z0, z1, temperature, tau, normalize, reduction, lse, miss)
    problem = _Problem(z0, z1, _float32(temperature), tau, normalize)
    with on_device(z0):
        return _backward(problem, grad, schema.REDUCTIONS[reduction], lse, miss)


def _backward(problem: _Problem, grad, reduction: str, lse, miss):
    half, rows, padded = problem.half, problem.rows, problem.padded
    packed, scale, inverse, _ = problem.pack()
    row_weight, column_weight, pull = (problem.empty(padded) for _ in range(3))
    base = row_weight if problem.bounded else problem.empty(padded)
    unit = problem.empty()
    vector = grad.dim() == 1
    triton_rows.weigh_rows[(1,)](
        grad, lse, miss, scale, row_weight, column_weight, base, pull, unit,
        *problem.temperature_arguments, grad.stride(0) if vector else 0, rows, padded,
        **problem.modes, VECTOR=vector, BLOCK=min(4096, 1 << (padded - 1).bit_length()),
        num_warps=16,
    )  # fmt: skip
    sums = _sums(problem, packed, scale, row_weight, column_weight, base)

    grad_z0, grad_z1 = (z.new_empty(z.shape) for z in (problem.z0, problem.z1))
    block = 16
    along = problem.empty(-(-half // block))
    triton_rows.finish_gradient[(along.numel(),)](
        sums, packed, scale, inverse, pull, unit, grad, grad_z0, grad_z1, along,
        *problem.temperature_arguments, 1 / rows if reduction == "mean" else 1.0,
        half, padded, problem.z0.shape[1], len(sums),
        LEARNED=problem.modes["LEARNED"], VECTOR=vector, NORMALIZE=problem.normalize,
        PARTS=problem.parts, DEPTH=problem.depth, BLOCK_M=block, BLOCK_D=min(problem.depth, 128),
        num_warps=4,
    )  # fmt: skip
    return grad_z0, grad_z1, _add_up(problem, along, gradient=True)


def _sums(problem: _Problem, packed, scale, row_weight, column_weight, base) -> torch.Tensor:
    """sum_j A_ij packed_j of all rows, [splits, padded, depth]."""
    rows, padded, depth, parts = problem.rows, problem.padded, problem.depth, problem.parts
    vectors = packed, scale, row_weight, column_weight, base
    options = {**problem.modes, "PARTS": parts, "DEPTH": depth}
    tiles = problem.tiles.backward
    if tiles is not None:
        blocks = -(-rows // tiles.rows)
        splits, span = split_columns(blocks, rows, tiles, problem.processors, whole_rows=True)
        sums = problem.empty(splits, padded, depth)
        triton_backward.accumulate_gradient[(blocks, splits)](
            *vectors, sums, *problem.temperature_arguments, problem.half, rows, padded, span,
            **options, **tiles.arguments(depth_block=False),
        )  # fmt: skip
        return sums

    weigh, multiply = problem.tiles.weights, problem.tiles.product
    sums = problem.empty(1, padded, depth)
    step = chunk_rows(problem.tiles, depth, padded, problem.processors)
    weights = problem.empty(parts, step, padded, dtype=packed.dtype)
    for chunk in range(0, padded, step):
        count = min(step, padded - chunk)
        grid = count // weigh.rows * (padded // weigh.columns)
        triton_backward.write_gradient_weights[(grid,)](
            *vectors, weights, *problem.temperature_arguments, problem.half, padded, chunk, step,
            **options, **weigh.arguments(),
        )  # fmt: skip
        grid = count // multiply.rows, -(-depth // multiply.columns)
        triton_backward.multiply_weights[grid](
            weights, packed, sums, padded, chunk, step, PARTS=parts, DEPTH=depth,
            **multiply.arguments(),
        )  # fmt: skip
    return sums

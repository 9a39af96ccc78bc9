"""What the Triton kernels of NT-Xent are compiled with: the launcher's types and tiles."""

import torch

from benchmarks.machine_code.compiled import compile_kernel
from fastssl.ops.nt_xent import triton_backward, triton_forward, triton_rows
from fastssl.ops.nt_xent.triton_tiles import padded_depth, tiles_for

KERNELS = {
    "forward": triton_forward.sum_exponentials,
    "backward": triton_backward.accumulate_gradient,
    "weights": triton_backward.write_gradient_weights,
    "product": triton_backward.multiply_weights,
}
#: float32 rows are two float16 parts.
OPERANDS = {torch.bfloat16: ("bf16", 1), torch.float16: ("fp16", 1), torch.float32: ("fp16", 2)}
_VECTORS = (
    "scale", "row_weight", "column_weight", "base", "temperature", "peak", "total", "out",
)  # fmt: skip
_SCALARS = {
    "tau": "fp32", "half": "i32", "rows": "i32", "padded": "i32:16", "span": "i32:16",
    "chunk": "i32:16", "chunk_rows": "i32:16",
}  # fmt: skip


def kernels_for(architecture, dtype, depth) -> list[str]:
    """Names of the matrix kernels that run for a compute capability, dtype and depth."""
    tiles = tiles_for(architecture, OPERANDS[dtype][1], padded_depth(depth))
    return [name for name in KERNELS if getattr(tiles, name) is not None]


def tile_for(name, architecture, dtype, depth):
    """The launcher's tile."""
    return getattr(tiles_for(architecture, OPERANDS[dtype][1], padded_depth(depth)), name)


def compile_for(name, architecture, dtype, depth, bounded=True):
    """One matrix kernel, compiled as the launcher would launch it."""
    kernel = KERNELS[name]
    operand, parts = OPERANDS[dtype]
    arguments = tile_for(name, architecture, dtype, depth).arguments()
    depth = padded_depth(depth)
    options = {key: arguments.pop(key) for key in ("num_warps", "num_stages")}
    constants = {
        "LEARNED": not bounded, "BOUNDED": bounded, "PARTS": parts, "DEPTH": depth, **arguments,
    }  # fmt: skip
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    pointers = {**dict.fromkeys(_VECTORS, "fp32"), "packed": operand, "weights": operand}
    return compile_kernel(kernel, pointers, _SCALARS, constants, architecture, **options)


def compile_row_kernels(architecture, dtype, bounded=True):
    """Every kernel that is no matrix product, as (name, compiled), at D = 128."""
    operand, parts = OPERANDS[dtype]
    element = {torch.float32: "fp32"}.get(dtype, operand)
    wide = (
        "scale", "inverse", "positive", "peak", "total", "loss", "miss", "block_loss", "values",
        "out", "grad", "row_weight", "column_weight", "base", "pull", "unit", "sums",
        "block_along", "temperature",
    )  # fmt: skip
    inputs = ("z0", "z1", "grad_z0", "grad_z1")
    pointers = {
        **dict.fromkeys(wide, "fp32"), **dict.fromkeys(inputs, element), "packed": operand,
        "lse": "fp64",
    }  # fmt: skip
    scalars = {
        **_SCALARS, "depth": "i32:16", "splits": "i32", "count": "i32", "factor": "fp32",
        "row_stride0": "i32:16", "row_stride1": "i32:16", "grad_stride": "i32",
    }  # fmt: skip
    constants = {
        "LEARNED": not bounded, "BOUNDED": bounded, "PARTS": parts, "DEPTH": 128, "NORMALIZE": True,
        "NONE": False, "GRADIENT": True, "VECTOR": False, "BLOCK": 1024, "BLOCK_M": 16,
        "BLOCK_D": 128, "column_stride0": 1, "column_stride1": 1,
    }  # fmt: skip
    for name in ("pack", "finish_rows", "add_up", "weigh_rows", "finish_gradient"):
        kernel = getattr(triton_rows, name)
        known = {key: value for key, value in constants.items() if key in kernel.arg_names}
        compiled = compile_kernel(
            kernel, pointers, scalars, known, architecture, num_warps=4, num_stages=3
        )
        yield name, compiled

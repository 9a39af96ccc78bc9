"""Machine code of csrc/patch/kernel.cu in the types that the model is asked for."""

import functools
import re

from benchmarks.machine_code import cuda_code
from benchmarks.machine_code.flow import Flow
from benchmarks.machine_code.predict import Kernel
from benchmarks.machine_code.sass import disassemble

#: Kernels by what the mangled name has in it, for bfloat16 and for float32.
NAMES = {
    "levels": (r"levels_kernelI\w*6BFloatELi8E", r"levels_kernelIfLi4E"),
    "loss_last": (r"loss_last_kernelIfE", r"loss_last_kernelIfE"),
    "gather": (r"gather_kernelIh\w*6BFloatELi8E", r"gather_kernelIhfLi4E"),
    "tokens": (r"tokens_kernelI\w*6BFloatES\d_Li8E", r"tokens_kernelIffLi4E"),
    "sum": (r"\d\dsum_kernelI\w*6BFloatELi4E", r"\d\dsum_kernelIfLi2E"),
    "sum_last": (r"sum_last_kernelIfE", r"sum_last_kernelIfE"),
    "scale": (r"scale_kernelI\w*6BFloatELi8E", r"scale_kernelIfLi4E"),
    "random_plan": (r"plan_kernelI\w*RandomPlanELb1E",) * 2,
    "block_plan": (r"plan_kernelI\w*BlockPlanELb1E",) * 2,
    "inverse_plan": (r"plan_kernelI\w*InversePlanELb1E",) * 2,
    "multiblock_plan": (r"plan_kernelI\w*MultiblockPlanELb1E",) * 2,
    "mask_tokens": (r"mask_tokens_kernel",) * 2,
    "tiles": (r"tiles_kernelIhLi16E", r"tiles_kernelIhLi16E"),
}
DTYPES = ("bfloat16", "float32")
#: All of kernel.cu but for the types that nobody asks for here.
_TWO_TYPES = """
#include "patch/element_team.h"
namespace fastssl { namespace patch { namespace {
template <class F>
auto with_two_types(DType type, const F& f) {
  return type == DType::kFloat32 ? f(float()) : f(BFloat());
}
}}}
#define with_type with_two_types
#include "patch/kernel.cu"
"""


def _cubin(architecture: int) -> bytes:
    return cuda_code.cubin("patch", "levels_kernel", architecture, _TWO_TYPES)


@functools.lru_cache
def _code(architecture: int):
    return disassemble(_cubin(architecture), lines=True)


def resources(architecture: int) -> dict[str, tuple[int, int, int]]:
    """(registers, bytes on the stack, bytes of static shared memory) by mangled name."""
    return cuda_code.resources(_cubin(architecture))


@functools.lru_cache
def kernel(architecture: int, name: str, dtype: str, threads: int, shared: int = 0) -> Kernel:
    """A compiled kernel.

    Args:
        architecture: compute capability times ten.
        name: a key of `NAMES`.
        dtype: of predictions, tokens and results.
        threads: of a block.
        shared: bytes of dynamic shared memory.
    """
    pattern = re.compile(NAMES[name][DTYPES.index(dtype)])
    mangled = next(x for x in _code(architecture) if pattern.search(x))
    registers, stack, static = resources(architecture)[mangled]
    flow = Flow(_code(architecture)[mangled])
    return Kernel(name, flow, threads // 32, registers, stack, static + shared)

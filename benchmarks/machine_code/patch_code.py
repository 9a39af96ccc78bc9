"""Machine code of csrc/patch/kernel.cu in the types that the model is asked for."""

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.machine_code.flow import Flow
from benchmarks.machine_code.predict import Kernel
from benchmarks.machine_code.sass import disassemble, tool

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-O3", "-DNDEBUG", "-std=c++17", "-fmad=false", "-lineinfo")
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


def library() -> Path | None:
    """The CUDA library of a build in this checkout, the newest."""
    found = sorted(ROOT.glob("build/*/libfastssl_cuda.so"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


@functools.lru_cache
def cubin(architecture: int) -> bytes:
    """The machine code: from the built library where it has that of this architecture and is newer
    than the sources, else compiled.

    Raises:
        FileNotFoundError: neither is there.
    """
    built = library()
    sources = [*ROOT.glob("csrc/patch/*"), *ROOT.glob("csrc/common/*")]
    fresh = built and built.stat().st_mtime >= max(p.stat().st_mtime for p in sources)
    with tempfile.TemporaryDirectory() as folder:
        if fresh and architecture == 90:
            subprocess.run(
                [tool("cuobjdump"), "-xelf", "all", built], cwd=folder, check=True,
                capture_output=True,
            )  # fmt: skip
            for path in Path(folder).iterdir():
                if b"levels_kernel" in path.read_bytes():
                    return path.read_bytes()
        if shutil.which("nvcc") is None:
            raise FileNotFoundError(
                "neither a build of libfastssl_cuda.so that is newer than csrc/patch, nor nvcc"
            )
        source, out = Path(folder) / "two_types.cu", Path(folder) / "kernel.cubin"
        source.write_text(_TWO_TYPES)
        name = "sm_90a" if architecture == 90 else f"sm_{architecture}"
        subprocess.run(
            ["nvcc", *FLAGS, f"-I{ROOT / 'csrc'}", "-cubin", f"-arch={name}", "-o", out, source],
            check=True, capture_output=True,
        )  # fmt: skip
        return out.read_bytes()


@functools.lru_cache
def _code(architecture: int):
    return disassemble(cubin(architecture), lines=True)


@functools.lru_cache
def resources(architecture: int) -> dict[str, tuple[int, int, int]]:
    """(registers, bytes on the stack, bytes of static shared memory) by mangled name."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin(architecture))
        file.flush()
        text = subprocess.run(
            [tool("cuobjdump"), "--dump-resource-usage", file.name], check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip
    pattern = r"Function ([^:\s]+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    return {m[1]: (int(m[2]), int(m[3]), int(m[4])) for m in re.finditer(pattern, text)}


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
    # What is on the stack are arrays: the build does not let a register be spilled.
    registers, _, static = resources(architecture)[mangled]
    flow = Flow(_code(architecture)[mangled])
    return Kernel(name, flow, threads // 32, registers, 0, static + shared)

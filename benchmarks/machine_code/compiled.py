"""Ahead-of-time compilation of Triton kernels, for machines without a GPU.

`compile_kernel` compiles for a compute capability, `resources` reads what the compiled kernel needs
with the cuobjdump of Triton's wheel.
"""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Resources:
    """Registers per thread, bytes of stack and spilled bytes per thread, bytes of shared memory."""

    registers: int
    stack: int
    shared: int
    warps: int


def compile_kernel(kernel, pointers, scalars, constants, arch, **options):
    """Compiles a @triton.jit kernel.

    Args:
        kernel: the kernel.
        pointers: parameter name to element type ("bf16"); taken as 16-byte aligned.
        scalars: parameter name to type ("i32", "fp32"); "i32:16" for a multiple of 16.
        constants: tl.constexpr parameters, and parameters that are specialised to a value.
        arch: compute capability, 80 or 90.
        **options: num_warps, num_stages.
    """
    names = kernel.arg_names
    signature, aligned = {}, {}
    for position, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = "*" + pointers[name]
            aligned[(position,)] = [["tt.divisibility", 16]]
        else:
            kind, _, unit = scalars[name].partition(":")
            signature[name] = kind
            if unit:
                aligned[(position,)] = [["tt.divisibility", int(unit)]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants), attrs=aligned)
    target = GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})


def resources(compiled) -> Resources:
    """What a compiled kernel needs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [_CUOBJDUMP, "--dump-resource-usage", file.name],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return Resources(
        registers=found["REG"],
        stack=found["STACK"] + found["LOCAL"],
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
    )

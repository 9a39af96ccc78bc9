"""Machine code of a csrc/<op>/kernel.cu, and what its kernels need."""

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.machine_code.sass import tool

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-O3", "-DNDEBUG", "-std=c++17", "-fmad=false", "-lineinfo")


def library() -> Path | None:
    """The CUDA library of a build in this checkout, the newest."""
    found = sorted(ROOT.glob("build/*/libfastssl_cuda.so"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def is_fresh(op: str) -> bool:
    """Whether the library is newer than an operator's sources."""
    built = library()
    sources = [*ROOT.glob(f"csrc/{op}/*"), *ROOT.glob("csrc/common/*")]
    newest = max(p.stat().st_mtime for p in sources)
    return built is not None and built.stat().st_mtime >= newest


@functools.lru_cache
def cubin(op: str, kernel: str, architecture: int, source: str | None = None) -> bytes:
    """From the built library where it has that of this architecture and is newer than the sources,
    else compiled.

    Args:
        op: the folder of csrc.
        kernel: a kernel that only this operator has.
        architecture: compute capability, 80 or 90.
        source: what to compile, if not kernel.cu as it is.

    Raises:
        FileNotFoundError: neither is there.
    """
    with tempfile.TemporaryDirectory() as folder:
        if architecture == 90 and is_fresh(op):
            subprocess.run(
                [tool("cuobjdump"), "-xelf", "all", library()], cwd=folder, check=True,
                capture_output=True,
            )  # fmt: skip
            for path in Path(folder).iterdir():
                if kernel.encode() in path.read_bytes():
                    return path.read_bytes()
        if shutil.which("nvcc") is None:
            raise FileNotFoundError(
                f"neither a build of libfastssl_cuda.so that is newer than csrc/{op}, nor nvcc"
            )
        file, out = Path(folder) / "kernel.cu", Path(folder) / "kernel.cubin"
        file.write_text(source or f'#include "{op}/kernel.cu"\n')
        name = "sm_90a" if architecture == 90 else f"sm_{architecture}"
        subprocess.run(
            ["nvcc", *FLAGS, f"-I{ROOT / 'csrc'}", "-cubin", f"-arch={name}", "-o", out, file],
            check=True, capture_output=True,
        )  # fmt: skip
        return out.read_bytes()


@functools.lru_cache
def resources(code: bytes) -> dict[str, tuple[int, int, int]]:
    """(registers, bytes on the stack, bytes of static shared memory) by mangled name."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run(
            [tool("cuobjdump"), "--dump-resource-usage", file.name], check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip
    pattern = r"Function ([^:\s]+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    return {m[1]: (int(m[2]), int(m[3]), int(m[4])) for m in re.finditer(pattern, text)}

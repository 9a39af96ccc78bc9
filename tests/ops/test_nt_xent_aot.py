"""NT-Xent's Triton kernels compiled for GPUs that are not here, and what they need there."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from benchmarks.machine_code.compiled import MATRIX_INSTRUCTION, REGISTERS, SHARED_LIMIT, resources  # noqa: E402
from benchmarks.machine_code.nt_xent import compile_for, compile_row_kernels, kernels_for, tile_for  # noqa: E402

HALF = (torch.bfloat16, torch.float16)
CASES = [
    (name, architecture, dtype, depth)
    for architecture in (80, 90)
    for depth in (64, 128, 256, 768)
    for dtype in (torch.bfloat16, torch.float32, torch.float16)
    if dtype != torch.float16 or depth <= 128
    for name in kernels_for(architecture, dtype, depth)
]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("name, architecture, dtype, depth", CASES)
def test_compiles_within_the_card(name, architecture, dtype, depth):
    # The safe form, for learned temperatures, needs most; up to D = 128 both are gated.
    for bounded in (False, True) if dtype in HALF and depth <= 128 else (False,):
        compiled = compile_for(name, architecture, dtype, depth, bounded)
        assert MATRIX_INSTRUCTION[architecture] in compiled.asm["ptx"]
        found = resources(compiled)
        tile = tile_for(name, architecture, dtype, depth)
        assert tile.resident * found.shared <= SHARED_LIMIT[architecture]
        assert tile.resident * found.registers_of_program <= REGISTERS
        if dtype in HALF and depth <= 128:
            assert found.stack == 0, f"bounded={bounded}: {found}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("architecture", [80, 90])
def test_row_kernels_compile(architecture, dtype):
    for name, compiled in compile_row_kernels(architecture, dtype, bounded=dtype in HALF):
        assert resources(compiled).stack == 0, name

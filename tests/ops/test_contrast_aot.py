"""The contrastive family's Triton kernels compiled for GPUs that are not here."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from benchmarks.machine_code.compiled import MATRIX_INSTRUCTION, REGISTERS, SHARED_LIMIT, resources  # noqa: E402
from benchmarks.machine_code.contrast import (  # noqa: E402
    MAIN,
    POLICIES,
    compile_for,
    compile_row_kernels,
    forms,
    kernels_for,
    tile_for,
)
from fastssl.ops.contrast.pairs import LABELLED, PAIRED, SIGMOID, SOFTMAX  # noqa: E402

HALF = (torch.bfloat16, torch.float16)
#: Every policy at D = 128 in bfloat16; at other depths and in other types a light one and the
#: heaviest: what they share is NT-Xent's, and compiled in its tests.
CASES = [
    (policy, name, architecture, torch.bfloat16, depth)
    for architecture in (80, 90)
    for policy in POLICIES
    for depth in ((64, 128) if policy in ("info_nce, both ways", "sup_con") else (128,))
    for name in kernels_for(policy, architecture, torch.bfloat16, depth)
] + [
    (policy, name, architecture, dtype, depth)
    for architecture in (80, 90)
    for policy in ("info_nce, both ways", "sup_con")
    for dtype, depth in (
        (torch.float16, 128), (torch.float32, 128), (torch.bfloat16, 256), (torch.bfloat16, 768),
    )
    for name in kernels_for(policy, architecture, dtype, depth)
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.mark.parametrize("policy, name, architecture, dtype, depth", CASES)
def test_compiles_within_the_card(policy, name, architecture, dtype, depth):
    main = policy in MAIN and dtype in HALF and depth <= 128
    # The safe form, for learned scales, needs most; at the main sizes both are gated.
    for bounded in forms(policy, name) if main else (False,):
        compiled = compile_for(policy, name, architecture, dtype, depth, bounded)
        assert MATRIX_INSTRUCTION[architecture] in compiled.asm["ptx"]
        found = resources(compiled)
        tile = tile_for(policy, name, architecture, dtype, depth)
        assert tile.resident * found.shared <= SHARED_LIMIT[architecture]
        assert tile.resident * found.registers_of_program <= REGISTERS
        if main:
            assert found.stack == 0, f"bounded={bounded}: {found}"


@pytest.mark.parametrize("kind", [SOFTMAX, SIGMOID, LABELLED, PAIRED])
@pytest.mark.parametrize("architecture", [80, 90])
def test_row_kernels_compile(architecture, kind):
    dtype = torch.float32 if kind == SOFTMAX else torch.bfloat16
    for name, compiled in compile_row_kernels(architecture, dtype, kind, kind == LABELLED):
        assert resources(compiled).stack == 0, name

"""docs/gpu.md says of every GPU kernel which test executes its source on the CPU. No torch here."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gpu.md"
PYTHON = {path: path.read_text() for path in (ROOT / "fastssl").rglob("*.py")}
CUDA = {path: path.read_text() for path in (ROOT / "csrc").rglob("*.cu")}
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def triton_kernels() -> set[str]:
    """Functions of Triton that are launched: name[grid](...)."""
    compiled, launched = set(), set()
    for text in PYTHON.values():
        if "triton" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                if any("triton.jit" in ast.unparse(d) for d in node.decorator_list):
                    compiled.add(node.name)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                launched.add(ast.unparse(node.func.value).rpartition(".")[2])
    return compiled & launched


def cuda_kernels() -> set[str]:
    """Functions that are __global__."""
    found = set()
    for text in CUDA.values():
        for part in text.split("__global__")[1:]:
            head = re.sub(r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)", "", part)
            found.add(re.search(r"(\w+)\s*\(", head).group(1))
    return found


def listed() -> dict[str, list[tuple[str, str]]]:
    """(file, test) of each kernel in the page's table."""
    part = PAGE.read_text().partition("<!-- executed -->")[2].partition("<!-- end executed -->")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.*)$", part, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a kernel is listed twice"
    return {name: TEST.findall(rest) for name, rest in rows}


def test_there_is_something_to_find():
    assert {"sum_pairs", "pack", "multiply_weights", "finish_rows"} <= triton_kernels()
    assert "load_block" not in triton_kernels()
    assert {"apply_kernel", "draw_kernel", "plan_kernel", "loss_kernel"} <= cuda_kernels()


def test_the_list_is_that_of_the_kernels():
    assert set(listed()) == triton_kernels() | cuda_kernels()


@pytest.mark.parametrize("kernel", sorted(triton_kernels() | cuda_kernels()))
def test_the_test_exists(kernel):
    tests = listed().get(kernel, [])
    assert tests, f"{kernel}: docs/gpu.md names no test"
    folder = "tests/triton_interpret/" if kernel in triton_kernels() else "tests/ops/"
    for file, test in tests:
        assert file.startswith(folder)
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), (file, test)

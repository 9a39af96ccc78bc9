"""The rules of the house that no formatter knows; see CONTRIBUTING.md. Needs no torch."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
NATIVE = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"})
PYTHON = sorted(
    p for d in ("fastssl", "tests", "benchmarks", "examples") for p in (ROOT / d).rglob("*.py")
)
KERNELS = [p for p in NATIVE if p.suffix in {".cu", ".cuh"} or p.name.startswith("kernel_")]
OPS = sorted(
    {p.name for p in CSRC.iterdir() if p.is_dir() and p.name != "common"}
    | {p.name for p in (ROOT / "fastssl" / "ops").iterdir() if (p / "__init__.py").exists()}
)

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
TORCH = re.compile(r"(torch|ATen|c10|caffe2)/")
PYTHON_API = re.compile(r"pybind11/|Python\.h$")


def includes(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text())


def reachable(path: Path) -> set[Path]:
    """`path` and our own files that it includes, however indirectly."""
    seen, pending = set(), [path]
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            candidates = [base / name for name in includes(current) for base in (CSRC, path.parent)]
            pending += [c.resolve() for c in candidates if c.is_file()]
    return seen


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check():
    assert OPS
    assert any(p.name.startswith("kernel_") for p in KERNELS)
    assert CSRC / "common" / "stable.h" in NATIVE


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_torch_is_included_in_one_place_and_aten_nowhere(path):
    used = [i for i in includes(path) if TORCH.match(i)]
    if path == CSRC / "common" / "stable.h":
        used = [i for i in used if not i.startswith(("torch/csrc/stable/", "torch/headeronly/"))]
    assert not used, f"{name(path)} includes {used}; torch comes in through common/stable.h only"


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_know_neither_torch_nor_python(path):
    for file in reachable(path):
        used = [i for i in includes(file) if TORCH.match(i) or PYTHON_API.search(i)]
        assert not used, f"{name(path)} reaches {used} through {name(file)}"


@pytest.mark.parametrize("path", NATIVE + PYTHON, ids=name)
def test_no_file_is_over_400_lines(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{name(path)} has {lines} lines; split it by pass, not by kind of helper"


@pytest.mark.parametrize("op", OPS)
def test_an_operator_has_the_same_name_everywhere(op):
    for wanted in (
        f"fastssl/ops/{op}/__init__.py",
        f"fastssl/ops/{op}/reference.py",
        f"tests/ops/test_{op}.py",
        f"benchmarks/bench_{op}.py",
    ):
        assert (ROOT / wanted).is_file(), f"{wanted} is missing"
    # Triton alone needs no native sources; where there are any, their names are fixed.
    if (CSRC / op).is_dir():
        assert (CSRC / op / f"{op}.h").is_file()


@pytest.mark.parametrize("op", OPS)
def test_the_reference_is_short(op):
    lines = (ROOT / "fastssl" / "ops" / op / "reference.py").read_text().splitlines()
    assert len(lines) <= 50, "the truth of the tests must fit on a screen"

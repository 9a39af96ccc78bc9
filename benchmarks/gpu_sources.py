"""What a figure or a test depends on, as a hash: what has not changed is not done again.

    python -m benchmarks.gpu_sources FOLDER

copies what the native libraries are built from to FOLDER, where its contents differ, and prints its
hash, with that of Python and torch. A compiler that goes by times of files then builds no more than
it must, however the sources came here. Needs no torch.
"""

import ast
import hashlib
import importlib.metadata
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NATIVE = ("CMakeLists.txt", "csrc")
#: What all operators share.
COMMON = ("fastssl/_[a-z]*.py", "fastssl/ops/__init__.py")
#: What measures.
MEASURE = ("benchmarks/gpu_measure.py",)
#: What a test on a GPU depends on: everything, what counts the host's work and what runs the tests.
EVERYTHING = (*NATIVE, "fastssl", "tests", "pyproject.toml", "benchmarks/host_work.py",
              "benchmarks/results/host_work.json", "benchmarks/gpu_phases.py",
              "benchmarks/gpu_process.py", "benchmarks/gpu_pytest.py")  # fmt: skip


def files(patterns: Iterable[str], root: Path = ROOT) -> Iterator[Path]:
    """These files and patterns, and the sources in these folders, once each, in order.

    Raises:
        FileNotFoundError: a pattern matches nothing.
    """
    found = set()
    kinds = {".py", ".cpp", ".cu", ".cuh", ".h", ".txt"}
    for pattern in patterns:
        matched = list(root.glob(pattern))
        if not matched:
            raise FileNotFoundError(f"nothing matches {pattern} in {root}")
        for path in matched:
            inside = path.rglob("*") if path.is_dir() else ()
            found.update(file for file in inside if file.suffix in kinds and file.is_file())
            found.update([path] if path.is_file() else ())
    yield from sorted(found)


def imports(path: Path, root: Path = ROOT) -> set[Path]:
    """Files of this project that a Python file imports at its top, not in functions."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    places = [root.joinpath(*name.split(".")) for name in names]
    files = {place.with_suffix(".py") for place in places} | {p / "__init__.py" for p in places}
    return {file for file in files if file.is_file()}


def measures(patterns: Iterable[str], root: Path = ROOT) -> set[str]:
    """Names of the benchmarks and definitions that these sources import, also in turn.

    A peer depends on them: it is a benchmark of its own, or one of our operators' definitions.
    """
    found, left = set(), {path for path in files(patterns, root) if path.suffix == ".py"}
    while left:
        others = {
            x
            for x in imports(left.pop(), root)
            if x.stem.startswith("reference") or root / "benchmarks" in x.parents
        }
        left |= others - found
        found |= others
    return {str(path.relative_to(root)) for path in found}


def digest(patterns: Iterable[str], root: Path = ROOT, *more: str) -> str:
    """Sixteen digits that change with a name or a byte of the sources, or with `more`."""
    made = hashlib.sha256()
    for path in files(patterns, root):
        content = path.read_bytes()
        made.update(f"{path.relative_to(root)} {len(content)}\n".encode())
        made.update(content)
    made.update(repr(more).encode())
    return made.hexdigest()[:16]


def mirror(folder: Path, patterns: Iterable[str] = NATIVE, root: Path = ROOT) -> None:
    """Makes `folder` hold these sources; what is the same already keeps its time."""
    wanted = {path.relative_to(root): path for path in files(patterns, root)}
    for path in list(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder) not in wanted:
            path.unlink()
    for name, path in wanted.items():
        copy = folder / name
        if not copy.is_file() or copy.read_bytes() != path.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


if __name__ == "__main__":
    mirror(Path(sys.argv[1]))
    print(digest(NATIVE, ROOT, sys.version, importlib.metadata.version("torch")))

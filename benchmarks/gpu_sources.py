"""What a figure or a test depends on, as a hash: what has not changed is not done again.

    python -m benchmarks.gpu_sources FOLDER

copies what the native libraries are built from to FOLDER, where its contents differ, and prints its
hash, with that of Python and torch. A compiler that goes by times of files then builds no more than
it must, however the sources came here. Needs no torch.
"""

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
#: What a test on a GPU depends on: everything.
EVERYTHING = (*NATIVE, "fastssl", "tests")


def files(patterns: Iterable[str], root: Path = ROOT) -> Iterator[Path]:
    """Sources among these files, folders and patterns, once each, in order.

    Raises:
        FileNotFoundError: a pattern matches nothing.
    """
    found = set()
    for pattern in patterns:
        matched = list(root.glob(pattern))
        if not matched:
            raise FileNotFoundError(f"nothing matches {pattern} in {root}")
        for path in matched:
            found.update(path.rglob("*") if path.is_dir() else [path])
    kinds = {".py", ".cpp", ".cu", ".cuh", ".h", ".txt"}
    yield from sorted(path for path in found if path.suffix in kinds and path.is_file())


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

"""The wheel: what is in it, and what its libraries ask of torch and of the processor."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SYMBOLS = Path(__file__).with_name("torch_2_10_symbols.txt")
# Torch's C interface, and anything from its C++ namespaces.
OF_TORCH = re.compile(r"(aoti_)?torch_|_Z\w*?N[VK]*(2at|3c10|5torch|6caffe2)")


def nm(path, *options):
    """(type, name) of each symbol."""
    printed = subprocess.run(["nm", *options, path], check=True, capture_output=True, text=True)
    lines = (line[16:].strip() for line in printed.stdout.splitlines())
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built in the project's own build folder: compiles nothing that is up to date."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    built = subprocess.run(
        [*command, "--wheel-dir", folder, ROOT], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def libraries(wheel, names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("libraries")
    found = [name for name in names if name.endswith(".so")]
    return [Path(zipfile.ZipFile(wheel).extract(name, folder)) for name in found]


@pytest.fixture(scope="module")
def kernel_objects(wheel):
    """(instruction set, object file) of the build that made the wheel."""
    build = ROOT / "build" / "-".join(wheel.stem.split("-")[2:])
    outputs = [c["output"] for c in json.loads((build / "compile_commands.json").read_text())]
    found = [(re.search(r"kernels_(\w+)\.dir", output), build / output) for output in outputs]
    return sorted((match[1], path) for match, path in found if match)


def test_wheel_holds_the_package_and_nothing_else(names):
    from fastssl import _C

    source = ROOT / "fastssl"
    expected = {f"fastssl/{p.relative_to(source).as_posix()}" for p in source.rglob("*.py")}
    expected.add("fastssl/py.typed")
    held = {n for n in names if ".dist-info/" not in n}
    native = {n for n in held if n.endswith(".so")}
    assert held - native == expected
    cuda = {"fastssl/libfastssl_cuda.so"} if _C.build_info()["cuda_library"] else set()
    assert native - cuda == {n for n in native if n.startswith("fastssl/_C.")}
    assert len(native - cuda) == 1
    assert cuda <= native


def test_metadata(wheel, names):
    info = {n.split("/", 1)[1]: n for n in names if ".dist-info/" in n}
    archive = zipfile.ZipFile(wheel)
    assert "licenses/LICENSE" in info
    assert "fastssl = fastssl.__main__:main" in archive.read(info["entry_points.txt"]).decode()
    metadata = archive.read(info["METADATA"]).decode()
    core = re.findall(r"^Requires-Dist: ([\w-]+)(?!.*extra ==)", metadata, re.MULTILINE)
    assert sorted(core) == ["numpy", "torch", "triton"]
    assert re.findall(r"^Provides-Extra: (\w+)", metadata, re.MULTILINE) == [
        "train",
        "test",
        "bench",
        "compat",
    ]


def test_libraries_need_no_torch_newer_than_2_10(libraries):
    lines = SYMBOLS.read_text().splitlines()
    known = {line for line in lines if line and not line.startswith("#")}
    for library in libraries:
        wanted = {name for _, name in nm(library, "-D", "--undefined-only")}
        unknown = {name for name in wanted if OF_TORCH.match(name)} - known
        assert not unknown, f"{library.name} needs {sorted(unknown)}, which torch 2.10 lacks"
        if library.name.startswith("_C."):
            assert wanted & known, "the CPU operators must use torch: this check saw nothing"


def test_libraries_depend_on_no_path_of_the_build_machine(libraries):
    for library in libraries:
        dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True)
        assert "libtorch_cpu.so" in dynamic.stdout
        assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic.stdout)


def test_kernel_objects_keep_their_instruction_set_to_themselves(kernel_objects):
    """A weak or shared symbol built for AVX-512 could be the copy that an older processor runs."""
    assert {isa for isa, _ in kernel_objects} >= {"base", "avx2", "avx512"}
    for isa, path in kernel_objects:
        symbols = nm(path, "-C", "--defined-only")
        weak = [s for s in symbols if s[0] in "WVuwv"]
        assert not weak, f"{isa}/{path.name} has weak symbols {weak}"
        seen_outside = [name for kind, name in symbols if kind.isupper()]
        assert seen_outside, f"{isa}/{path.name} offers nothing"
        own = re.compile(rf"fastssl::(\w+::)?{isa}::")
        others = [name for name in seen_outside if not own.match(name)]
        assert not others, f"{isa}/{path.name} exports {others} from outside its own namespace"

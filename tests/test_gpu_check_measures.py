"""What a measure of `make gpu-check` counts, forgives and depends on."""

import json
import types

import pytest
import test_host_work
import torch
from torch.autograd import DeviceType

from benchmarks import gpu_check, gpu_patch, gpu_phases, gpu_sources
from benchmarks.gpu_measure import Step, contained
from benchmarks.gpu_results import Codes

ROOT = gpu_sources.ROOT


def compiled_without_memory(how):
    """A compiler's error that was made of one of memory."""
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    except torch.OutOfMemoryError as error:
        if how == "from":
            raise RuntimeError("backend='inductor' raised") from error
        if how == "in passing":
            raise ValueError("backend='inductor' raised")  # noqa: B904
        if how == "twice":
            try:
                raise KeyError("benchmark of a choice") from error
            except KeyError as middle:
                raise RuntimeError("LoweringException") from middle
        raise RuntimeError(f"InductorError: OutOfMemoryError: {error}") from None


@pytest.mark.parametrize("how", ["from", "in passing", "twice", "in words"])
def test_memory_that_a_compiler_lacks_is_told_as_torchs_own(how):
    result = {}
    with contained(result):
        compiled_without_memory(how)
    assert result == {"error": "out of memory"}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "out of memory"),
        (RuntimeError("out of resource: shared memory"), "RuntimeError: out of resource"),
        (ValueError("no such option: out of memory"), "ValueError: no such"),
        (AssertionError("differs"), "parity: differs"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Exception) else "",
)
def test_other_errors_stay_what_they_are(error, told):
    result = {}
    with contained(result):
        raise error
    assert result["error"].startswith(told)


def test_launches_are_kernels_not_what_the_driver_does_itself():
    def event(name, device=DeviceType.CUDA, time=2.0):
        return types.SimpleNamespace(name=name, device_type=device, device_time=time)

    kernels = [
        event("void fastssl::patch::sum_kernel<float>(SumBatch)"),
        event("void at::native::vectorized_elementwise_kernel<4, FillFunctor>"),
    ]
    others = [
        event("Memset (Device)"),
        event("Memcpy HtoD (Pageable -> Device)"),
        event("aten::zero_", DeviceType.CPU),
        event("Command Buffer Full", time=0.0),
    ]
    assert gpu_patch.launched(kernels + others) == 2


def in_turn(paths):
    """Files of this project that these import, and those that they import."""
    found, left = set(), set(paths)
    while left:
        path = left.pop()
        others = gpu_sources.imports(path) if path.suffix == ".py" else set()
        left |= others - found
        found |= others
    return found


def test_phases_depend_on_all_that_their_tests_and_who_runs_them_use():
    hashed = set(gpu_sources.files(gpu_sources.EVERYTHING))
    words = {word for phase in gpu_phases.PHASES for word in phase.tests}
    tests = set(gpu_sources.files(word for word in words if word.startswith("tests/")))
    assert len(tests) > 5
    assert {path for path in in_turn(tests) if path.stem != "__init__"} <= hashed
    runs = {ROOT / "benchmarks" / f"gpu_{name}.py" for name in ("phases", "process", "pytest")}
    assert runs | {test_host_work.PINNED, ROOT / "pyproject.toml"} <= hashed


def test_phases_run_again_where_the_hosts_work_is_counted_otherwise(tmp_path):
    for name in gpu_sources.EVERYTHING:
        path = tmp_path / name
        path = path if path.suffix else path / "a.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    seen = {gpu_sources.digest(gpu_sources.EVERYTHING, tmp_path)}
    for name in ("benchmarks/host_work.py", "benchmarks/results/host_work.json", "tests/a.py"):
        (tmp_path / name).write_text(json.dumps({"calls": {}}))
        seen.add(gpu_sources.digest(gpu_sources.EVERYTHING, tmp_path))
    assert len(seen) == 4


@pytest.mark.parametrize("family", gpu_check.FAMILIES, ids=lambda family: family.FAMILY)
def test_a_family_depends_on_no_source_that_its_hash_leaves_out(family):
    hashed = set(gpu_sources.files((*gpu_sources.COMMON, *family.SOURCES)))
    package = ROOT / "fastssl"
    for path in [path for path in hashed if path.suffix == ".py" and package in path.parents]:
        used = {x for x in gpu_sources.imports(path) if package in x.parents}
        assert used - {package / "__init__.py"} <= hashed, path


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("benchmarks/truth.py", True),  # which the peers' file imports
        ("fastssl/ops/one/reference_more.py", True),  # which their definition imports
        ("fastssl/ops/one/triton.py", False),
    ],
)
def test_a_peer_depends_on_benchmarks_and_definitions_that_its_own_import(tmp_path, changed, stale):
    contents = {
        "benchmarks/gpu_measure.py": "",
        "benchmarks/one.py": "from benchmarks import peers\nfrom fastssl.ops.one import reference",
        "benchmarks/peers.py": "import benchmarks.truth",
        "benchmarks/truth.py": "",
        "fastssl/_a.py": "",
        "fastssl/ops/__init__.py": "",
        "fastssl/ops/one/reference.py": "from fastssl.ops.one.reference_more import more\n"
        "from fastssl.ops.one import triton",
        "fastssl/ops/one/reference_more.py": "",
        "fastssl/ops/one/triton.py": "",
    }
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    family = types.SimpleNamespace(
        __name__="benchmarks.one", FAMILY="one", SOURCES=("fastssl/ops/one",), PEER_SOURCES=()
    )
    peer = Step("one", "case", {}, "peer", lambda clock, result: None)
    before = Codes([family], tmp_path)(peer)
    (tmp_path / changed).write_text("changed = 1")
    assert (Codes([family], tmp_path)(peer) != before) == stale


def test_the_views_peers_depend_on_the_whole_definition_of_views():
    family = next(f for f in gpu_check.FAMILIES if f.FAMILY == "augment")
    found = gpu_sources.measures((*family.PEER_SOURCES, "benchmarks/gpu_augment.py"))
    assert {f"fastssl/ops/augment/reference_{x}.py" for x in ("blur", "color", "resize")} <= found

"""What `make gpu-check` is made of: its script, sources, results, and steps that a CPU can run."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_phases, gpu_sources, gpu_step
from benchmarks.gpu_driver import Check
from benchmarks.gpu_measure import OURS, Clock, Step, Target
from benchmarks.gpu_order import MODEL, Predictions, ordered
from benchmarks.gpu_results import Codes, Results, path_for

ROOT = Path(__file__).parents[1]
STAMP = {"gpu": "Stand-in", "torch": "2", "triton": "3"}
TINY = {
    "nt_xent": [(64, 16, "bfloat16"), (64, 16, "float32")],
    "contrast": [(case, 64, 16, "bfloat16") for case in ("info_nce", "siglip", "clip", "queue")],
    "augment": [("SimCLR, 2 x 32", 8)],
    "patch": [(case, 2, "float32") for case in ("loss", "decoder", "gather_tokens", "plan")],
    "step": [("tiny", 4)],
}


def tiny(family) -> types.SimpleNamespace:
    """A family at sizes for a CPU, without what takes a compilation."""
    sizes = TINY[family.FAMILY]
    made = [s for s in family.steps(sizes, sizes[:1]) if "compiled" not in s.impl]
    names = {name: getattr(family, name) for name in ("FAMILY", "SOURCES", "PEER_SOURCES")}
    return types.SimpleNamespace(__name__=family.__name__, steps=lambda: iter(made), **names)


@pytest.mark.slow
def test_every_family_is_measured_on_this_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu_step.CASES, "tiny", ("vit-micro", 40, 32, 16))
    clock = Clock("cpu", "Stand-in")
    whole = Clock.milliseconds

    def short(self, call, budget=0.5, **options):
        return whole(self, call, budget=0.01, least=2)

    monkeypatch.setattr(Clock, "milliseconds", short)
    families = [tiny(family) for family in gpu_check.FAMILIES]
    check = Check(families, [], clock, tmp_path / "r.json", tmp_path / "no.json", ROOT)
    check.results.begin_call()
    check.figures(time.monotonic() + 1000)
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    assert {entry["family"] for entry in results} == set(TINY)
    assert len(results) == len(check.steps)
    for entry in results:
        assert "error" not in entry, entry
        if entry["case"] == "launches":
            assert entry["launches"] == 0  # of CUDA kernels
        elif "missing" in entry:
            assert entry["impl"] == "kornia"
        else:
            assert entry["ms"] > 0
            if entry["impl"] == OURS:
                assert "graph_ms" in entry
                assert "parity" in entry or entry["difference"] <= 1e-5
    assert check.finish() == 0
    assert "| nt_xent " in capsys.readouterr().out


def test_the_targets_are_those_of_the_issue_and_come_first(tmp_path):
    steps = [step for family in gpu_check.FAMILIES for step in family.steps()]
    assert len({step.name for step in steps}) == len(steps)
    order = ordered(steps, Predictions("NVIDIA H200", tmp_path / "none"))
    aims = {s.place: (s.target.limit, s.target.unit) for s in order if s.target}
    assert [step.place for step in order if step.ours][: len(aims)] == list(aims)
    assert {place: aim for place, aim in aims.items() if not place.startswith("patch")} == {
        "nt_xent: nt_xent; rows 65536, depth 128, dtype bfloat16": (6.6, "ms"),
        "contrast: siglip; rows 65536, depth 768, dtype bfloat16": (48.8, "ms"),
        "augment: SimCLR, 2 x 224; batch 256": (0.85, "ms"),
        "step: SimCLR, ViT-S/16, 2 x 224; batch 256, dtype bfloat16": (110, "ms"),
    }
    shares = [a for place, a in aims.items() if place.startswith("patch") and "launch" not in place]
    assert shares == [(0.6, "of the copy rate")] * 4


@pytest.mark.skipif(not MODEL.exists(), reason="the model was not run")
def test_what_has_a_target_of_milliseconds_or_bytes_is_predicted():
    predictions = Predictions("NVIDIA H200")
    for family in (f for f in gpu_check.FAMILIES if f is not gpu_step):
        for step in family.steps():
            if step.target and step.case != "launches":
                assert predictions.gap(step) is not None, step.place


def test_a_target_knows_its_card_and_its_side():
    assert Target(6.6).applies("NVIDIA H200") and not Target(6.6).applies("NVIDIA H100 80GB HBM3")
    assert Target(6.6).met({"ms": 6.6}) and not Target(6.6).met({"ms": 6.7})
    assert Target(6.6).met({}) is None
    share = Target(0.6, "share", at_least=True, card=None)
    assert share.applies("any") and share.met({"share": 0.7}) and not share.met({"share": 0.5})


def test_a_hash_follows_names_and_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    seen = {gpu_sources.digest(["a"], tmp_path)}
    (tmp_path / "a" / "x.py").write_text("2")
    seen.add(gpu_sources.digest(["a"], tmp_path))
    (tmp_path / "a" / "x.py").rename(tmp_path / "a" / "y.py")
    seen.add(gpu_sources.digest(["a"], tmp_path))
    seen.add(gpu_sources.digest(["a"], tmp_path, "another torch"))
    assert len(seen) == 4
    (tmp_path / "a" / "y.so").write_text("no source")
    assert gpu_sources.digest(["a"], tmp_path) in seen
    with pytest.raises(FileNotFoundError, match="nothing matches b"):
        gpu_sources.digest(["b"], tmp_path)


def test_a_mirror_touches_what_changed_alone(tmp_path):
    root, copy = tmp_path / "root", tmp_path / "copy"
    (root / "csrc").mkdir(parents=True)
    for name in ("CMakeLists.txt", "csrc/a.cpp", "csrc/b.h"):
        (root / name).write_text(name)
    gpu_sources.mirror(copy, root=root)
    os.utime(copy / "csrc/a.cpp", (1, 1))
    os.utime(root / "csrc/a.cpp", (5e9, 5e9))
    (root / "csrc/b.h").write_text("changed")
    (root / "CMakeLists.txt").write_text("")
    gpu_sources.mirror(copy, root=root)
    assert (copy / "csrc/a.cpp").stat().st_mtime == 1
    assert (copy / "csrc/b.h").read_text() == "changed"
    (root / "csrc/b.h").unlink()
    gpu_sources.mirror(copy, root=root)
    assert not (copy / "csrc/b.h").exists()


def step(rows=1, impl=OURS):
    return Step("one", "case", {"rows": rows}, impl, lambda clock, result: None)


def test_another_gpu_torch_or_triton_starts_afresh(tmp_path):
    results = Results(tmp_path / "r.json", STAMP)
    results.end(step(), "code", {"ms": 1.0})
    assert Results(results.path, STAMP).entry(step(), "code")["ms"] == 1.0
    assert Results(results.path, STAMP).entry(step(), "other") is None
    for change in ({"gpu": "Another"}, {"torch": "3"}, {"triton": "4"}):
        assert Results(results.path, {**STAMP, **change}).entry(step(), "code") is None
    results.path.write_text("{")
    assert Results(results.path, STAMP).entries == {}
    assert path_for("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3.json"


def test_no_reader_meets_half_a_file(tmp_path):
    path = tmp_path / "r.json"
    writer = os.fork()
    if writer == 0:
        results = Results(path, STAMP)
        while True:
            for rows in range(200):
                results.end(step(rows), "code", {"ms": 1.0, "note": "x" * 1000})
    try:
        while not path.exists():
            time.sleep(0.01)
        counts = [len(json.loads(path.read_text())["results"]) for _ in range(200)]
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    counts.append(len(json.loads(path.read_text())["results"]))
    assert counts == sorted(counts)


def test_a_peers_hash_does_not_follow_our_kernels(tmp_path):
    family = types.SimpleNamespace(
        __name__="benchmarks.one", FAMILY="one", SOURCES=("kernels",), PEER_SOURCES=("peers.py",)
    )
    for name in ("kernels/a.py", "peers.py", "fastssl/_a.py", "fastssl/ops/__init__.py",
                 "benchmarks/gpu_measure.py", "benchmarks/one.py"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    ours, peer = step(), step(impl="peer")
    for name, changed in (
        ("kernels/a.py", (True, False)),
        ("fastssl/_a.py", (True, False)),
        ("peers.py", (False, True)),
        ("benchmarks/one.py", (True, True)),
        ("benchmarks/gpu_measure.py", (True, True)),
    ):
        before = Codes([family], tmp_path)
        (tmp_path / name).write_text("2")
        after = Codes([family], tmp_path)
        assert (before(ours) != after(ours), before(peer) != after(peer)) == changed, name


def test_reports_of_the_sanitizers_are_read():
    log = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at sum_pairs+0x1230 in triton_forward.py:99
=========     by thread (1,0,0) in block (0,0,0)
=========     Address 0x7f0000000000
=========
========= Uninitialized __global__ memory read of size 1 bytes
=========     at 0x150 in void fastssl::augment::<unnamed>::apply_kernel<(bool)1>(int)
=========     by thread (1,0,0) in block (0,0,0)
=========
========= Uninitialized __global__ memory read of size 1 bytes
=========     at void at::native::softplus_kernel<float>(int)+0x40
=========
========= Host API uninitialized memory access at host access to 0x7f of size 400 bytes
=========
========= ERROR SUMMARY: 4 errors
"""
    found = list(gpu_phases.reports(log))
    names = gpu_phases.triton_kernels()
    assert {"sum_pairs", "sum_exponentials", "pack_rows", "softplus"} <= names
    assert [gpu_phases.of_ours(kernel, names) for _, kernel in found] == [True, True, False, False]


def test_the_trainers_network_needs_none_of_their_packages():
    code = """
import importlib.abc, sys
class No(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning_fabric", "typer", "yaml", "rich", "sklearn"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, No())
from benchmarks import gpu_step
print(gpu_step.trainers("vit").SIZES["vit-small"], gpu_step.trainers("networks").mlp)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "width=384, depth=12, heads=6" in done.stdout


PYTHON = """#!/usr/bin/env bash
echo "python $*" >>log
case "$*" in
  *sys.executable*) echo "$0" ;;
  *is_available* | *"import p"*) exit 0 ;;
  "-m pybind11 --cmakedir") echo nowhere ;;
  *fastssl.__path__*) echo "$PWD/build/gpu/site/fastssl" ;;
  "-m benchmarks.gpu_check"*) ls build/gpu/site/fastssl; exit 3 ;;
  "-m fastssl info") ;;
  *) exec {python} "$@" ;;
esac
"""
CMAKE = """#!/usr/bin/env bash
echo "cmake $*" >>log
case "$1" in
  --build) if [ -f slow ]; then sleep 30; fi; if [ -f broken ]; then exit 1; fi ;;
  --install) mkdir -p build/gpu/native/fastssl; touch build/gpu/native/fastssl/_C.so ;;
esac
"""


@pytest.fixture
def script(tmp_path):
    """The script in a folder of stand-ins: run(*arguments) gives status and what was called."""
    for name in (".ci", "bin", "csrc", "fastssl"):
        (tmp_path / name).mkdir()
    (tmp_path / ".ci/gpu-check").write_text((ROOT / ".ci/gpu-check").read_text())
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    for name in ("CMakeLists.txt", "csrc/a.cpp", "fastssl/__init__.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "bin/python3").write_text(PYTHON.format(python=sys.executable))
    (tmp_path / "bin/cmake").write_text(CMAKE)
    for name in ("bin/python3", "bin/cmake", ".ci/gpu-check"):
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHON": str(tmp_path / "bin/python3")}

    def start(*arguments):
        (tmp_path / "log").write_text("")
        return subprocess.Popen(
            [".ci/gpu-check", *arguments], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(*arguments):
        process = start(*arguments)
        printed = process.communicate(timeout=60)[0]
        return process.returncode, printed, (tmp_path / "log").read_text().splitlines()

    run.start, run.folder = start, tmp_path
    return run


def called(log, command):
    return [line for line in log if line.startswith(command)]


def test_the_script_builds_once_and_ends_as_its_driver_does(script):
    status, printed, log = script("--again")
    assert status == 3, printed
    assert "_C.so" in printed
    assert len(called(log, "cmake --build")) == 1
    (last,) = called(log, "python -m benchmarks.gpu_check")
    seconds = float(last.split()[4])
    assert 500 < seconds <= 530 and last.endswith(" --again") and "--failed" not in last
    status, printed, log = script()
    assert "== build: nothing has changed" in printed and "_C.so" in printed
    assert called(log, "cmake") == []
    (script.folder / "csrc/a.cpp").write_text("int changed;")
    status, printed, log = script()
    assert len(called(log, "cmake --build")) == 1 and "_C.so" in printed


def test_a_failed_build_costs_no_tests_and_is_told_to_the_driver(script):
    (script.folder / "broken").touch()
    status, printed, log = script()
    assert status == 3
    assert "== build: FAILED" in printed and "_C.so" not in printed
    assert called(log, "python -m benchmarks.gpu_check")[0].endswith("--failed build")
    (script.folder / "broken").unlink()
    assert "--failed" not in called(script()[2], "python -m benchmarks.gpu_check")[0]


def test_a_script_that_is_terminated_while_it_builds_prints_the_table(script):
    (script.folder / "slow").touch()
    process = script.start()
    while "cmake --build" not in (script.folder / "log").read_text():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert "python -m benchmarks.gpu_check --table" in (script.folder / "log").read_text()

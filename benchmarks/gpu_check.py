"""NT-Xent on a GPU: parity, time, rate and peak memory beside PyTorch's ways to do it. Then
the contrastive family (gpu_contrast.py), augmentation (gpu_augment.py) and masked patches
(gpu_patch.py).

`python -m benchmarks.gpu_check --seconds 120` is what `make gpu-check` ends with. A time is
reported only after parity was asserted in the same run. Results are written after every measure,
most important first, so that a run that is cut off is still of use. Needs no network and no package
beside torch, triton and this one.
"""

import argparse
import functools
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

import torch
import torch._dynamo

import fastssl
from benchmarks import gpu_augment, gpu_contrast, gpu_patch
from benchmarks.gpu_measure import contained, milliseconds, replayed
from benchmarks.nt_xent_chunked import Chunked
from fastssl.ops.nt_xent import reference

TEMPERATURE = 0.1
RESULTS = Path(__file__).parent / "results"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
#: Milliseconds forward and backward to aim at on an H200, by rows, depth and dtype.
AIMS = {(65536, 128, "bfloat16"): 6.6}
#: The largest difference forgiven, relative to the largest value: loss and gradients.
ALLOWED = {"bfloat16": 1e-2, "float32": 2e-5}
#: Parity with float64 is asserted at up to this many rows (1 GB for its matrix, and some copies).
EXACT_ROWS = 8192
#: The parts of the time that are over when NT-Xent, the contrastive family and augmentation end, at
#: most.
NT_XENT_TIME, CONTRAST_TIME, AUGMENT_TIME = 0.35, 0.6, 0.8
ORDER = [
    (65536, 128, "bfloat16"),
    (8192, 128, "bfloat16"),
    (65536, 128, "float32"),
    (2048, 128, "bfloat16"),
    (8192, 128, "float32"),
    (512, 128, "bfloat16"),
    (32768, 128, "bfloat16"),
    (8192, 768, "bfloat16"),
    (32768, 768, "bfloat16"),
    (65536, 768, "bfloat16"),
    (262144, 128, "bfloat16"),
    (2048, 128, "float32"),
    (32768, 128, "float32"),
    (8192, 768, "float32"),
    (512, 128, "float32"),
    (2048, 768, "bfloat16"),
    (512, 768, "bfloat16"),
    (2048, 768, "float32"),
    (512, 768, "float32"),
    (32768, 768, "float32"),
    (65536, 768, "float32"),
    (262144, 768, "bfloat16"),
    (262144, 128, "float32"),
    (262144, 768, "float32"),
]


def views(rows: int, depth: int, dtype: str):
    """Two correlated views, so that positives stand out as they do in training."""
    generator = torch.Generator("cuda").manual_seed(rows + depth)
    z = torch.randn(rows // 2, depth, generator=generator, device="cuda")
    noise = torch.randn(rows // 2, depth, generator=generator, device="cuda")
    return [x.to(DTYPES[dtype]).requires_grad_() for x in (z, z + 0.5 * noise)]


def textbook(z0, z1, temperature):
    """One matrix in the inputs' dtype, in place where autograd allows it."""
    z = torch.nn.functional.normalize(torch.cat([z0, z1]).float()).to(z0.dtype)
    logits = (z @ z.T / temperature).fill_diagonal_(float("-inf"))
    partner = torch.arange(len(z), device=z.device).roll(len(z0))
    return torch.nn.functional.cross_entropy(logits.float(), partner)


def with_gradients(function):
    def run(z0, z1):
        loss = function(z0, z1, TEMPERATURE)
        return loss.detach(), *torch.autograd.grad(loss, [z0, z1])

    return run


@functools.cache
def implementations():
    return {
        "fastssl": with_gradients(functools.partial(fastssl.nt_xent, impl="triton")),
        "chunked": Chunked(compiled=False),
        "chunked-compiled": Chunked(compiled=True),
        "eager": with_gradients(textbook),
        "compiled": with_gradients(torch.compile(textbook, dynamic=True)),
    }


def difference(ours, theirs) -> float:
    """Largest difference, relative to the largest value of what is compared."""
    return max(
        ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
        for a, b in zip(ours, theirs, strict=True)
    )


def parity(ours, z0, z1, dtype: str) -> dict:
    """Compares with float64, or with the float32 sum over chunks where that does not fit.

    Raises:
        AssertionError: the results differ by more than rounding explains.
    """
    exact = 2 * len(z0) <= EXACT_ROWS
    if exact:
        wide = [z.detach().double().requires_grad_() for z in (z0, z1)]
        truth = with_gradients(reference.nt_xent)(*wide)
    else:
        truth = Chunked(compiled=False)(z0.detach().float(), z1.detach().float())
    worst = difference(ours, truth)
    assert worst <= ALLOWED[dtype], f"differs by {worst:.3g}, allowed {ALLOWED[dtype]:.3g}"
    return {"difference": worst, "against": "float64" if exact else "float32, chunked"}


def measure(name: str, z0, z1, dtype: str) -> dict:
    """One implementation at one size: parity of ours, then time and peak memory."""
    run = implementations()[name]
    rows, depth = 2 * len(z0), z0.shape[1]
    result = {}
    with contained(result):
        torch.cuda.empty_cache()
        outcome = run(z0, z1)
        if name == "fastssl":
            result["parity"] = parity(outcome, z0, z1, dtype)
        del outcome
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(z0, z1)
        torch.cuda.synchronize()
        result["peak_mib"] = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
        median, count = milliseconds(lambda: run(z0, z1))
        result["ms"], result["calls"] = round(median, 4), count
        result["tflops"] = round(3 * 2 * rows**2 * depth / median / 1e9, 1)
        if name == "fastssl":
            forward = functools.partial(fastssl.nt_xent, z0.detach(), z1.detach(), TEMPERATURE)
            result["forward_ms"] = round(milliseconds(forward, budget=0.5)[0], 4)
            result["graph_ms"] = round(replayed(lambda: run(z0, z1)), 4)
            if aim := AIMS.get((rows, depth, dtype)):
                result["aim_ms"], result["within_aim"] = aim, median <= aim
    return result


def write(path: Path, report: dict) -> None:
    """Replaces the file as a whole: a reader, or a kill, never meets half of it."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(partial, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="stop after this time")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<gpu>.json")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no NVIDIA GPU: nothing to measure", file=sys.stderr)
        return 1
    torch._dynamo.config.recompile_limit = 64  # or a size too many would run eager in silence
    began = time.monotonic()
    gpu = torch.cuda.get_device_name()
    file = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"
    path = arguments.output or RESULTS / file
    path.parent.mkdir(parents=True, exist_ok=True)
    import triton

    report = {
        "gpu": gpu, "torch": torch.__version__, "triton": triton.__version__,
        "cuda": torch.version.cuda, "python": platform.python_version(),
        "temperature": TEMPERATURE, "flop_count": "3 * 2 * rows^2 * depth", "complete": False,
        "results": [],
    }  # fmt: skip
    failed = False
    for rows, depth, dtype in ORDER:
        z0, z1 = views(rows, depth, dtype)
        for name in implementations():
            left = NT_XENT_TIME * arguments.seconds - (time.monotonic() - began)
            # An upper estimate at 20 TFLOP/s of what the calls take.
            if left < 6 * 6 * rows**2 * depth / 2e13 + 1:
                continue
            result = measure(name, z0, z1, dtype)
            ours_failed = name == "fastssl" and "error" in result
            failed |= ours_failed
            entry = {"rows": rows, "depth": depth, "dtype": dtype, "impl": name, **result}
            report["results"].append(entry)
            report["seconds"] = round(time.monotonic() - began, 1)
            write(path, report)
            print(json.dumps(entry), flush=True)
            if ours_failed:
                break
        del z0, z1
    parts = ((gpu_contrast, CONTRAST_TIME), (gpu_augment, AUGMENT_TIME), (gpu_patch, 1.0))
    for family, part in parts:
        deadline = began + part * arguments.seconds
        failed |= family.run(report, lambda: write(path, report), deadline, milliseconds)
    done = {(r["rows"], r["depth"], r["dtype"]) for r in report["results"]}
    augmented = {(r["case"], r["batch"]) for r in report["augment"]}
    masked = {(r["case"], r["batch"], r["dtype"]) for r in report["patch"]}
    contrasted = {(r["case"], r["rows"], r["depth"], r["dtype"]) for r in report["contrast"]}
    families = (
        (done, ORDER), (contrasted, gpu_contrast.ORDER), (augmented, gpu_augment.ORDER),
        (masked, gpu_patch.ORDER),
    )  # fmt: skip
    report["complete"] = all(len(found) == len(order) for found, order in families)
    report["seconds"] = round(time.monotonic() - began, 1)
    write(path, report)
    count = sum(len(report[name]) for name in ("results", "contrast", "augment", "patch"))
    print(f"{count} results in {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

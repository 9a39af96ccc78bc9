"""What a step in chunks costs: time against one pass, and peak memory by batch.

    python -m benchmarks.cached_step

Each figure is a process's own: seconds of CPU time on one thread, the fastest of three steps, and
MiB of resident memory that a step adds at its peak. Gradients are compared, in float64, before
anything is timed.
"""

import copy
import json
import os
import subprocess
import sys
import time

import torch
from torch import nn

from benchmarks.measure import peak_memory
from fastssl import cached_step, nt_xent
from fastssl.train import networks

#: Batch and chunk size, None for one pass.
CASES = [(256, None), (256, 64), (1024, None), (1024, 64), (1024, 256), (8192, 256)]


def model() -> nn.Module:
    torch.manual_seed(0)
    backbone = networks.ResNet(networks.BasicBlock, (2, 2, 2, 2), 3, 8, "cifar")
    return nn.Sequential(backbone, networks.mlp(backbone.features, 256, 128)).to(
        memory_format=torch.channels_last
    )


def measure(count: int, size: int | None) -> tuple[float, float, float | None]:
    """CPU time of a step and of its loss alone, in seconds, and MiB."""
    torch.set_num_threads(1)
    net, views = model(), torch.randn(2, count, 3, 32, 32)
    views = [view.to(memory_format=torch.channels_last) for view in views]

    def step():
        net.zero_grad()
        cached_step(net, views, nt_xent, chunk_size=size)

    def loss():
        z = torch.randn(2, count, 128, requires_grad=True)
        nt_xent(*z).backward()

    if count == 256 and size == 64:
        _assert_exact(copy.deepcopy(net).double(), [view[:48].double() for view in views])
    cached_step(net, [view[:16] for view in views], nt_xent, chunk_size=8)  # set up once
    start = time.process_time()
    memory = peak_memory(step)
    seconds = time.process_time() - start
    if count <= 1024:  # more takes minutes
        seconds = min(seconds, _fastest(step, 2))
    return seconds, _fastest(loss, 2), memory


def _assert_exact(net: nn.Module, views: list) -> None:
    grads = []
    for chunk in (20, None):
        net.zero_grad()
        cached_step(net, views, nt_xent, chunk_size=chunk, batch_norm="fixed")
        grads.append([p.grad.clone() for p in net.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11 * theirs.abs().max().item())


def _fastest(call, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Prints the table."""
    print("| batch | chunk | CPU seconds | of them loss | against one pass | peak, MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    # Or the allocator keeps what was freed, and the peak is not of what is held.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    whole = {}
    for count, size in CASES:
        command = [sys.executable, "-m", "benchmarks.cached_step", str(count), str(size or 0)]
        made = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        seconds, loss, memory = json.loads(made.stdout)
        if size is None:
            whole[count] = seconds
        ratio = f"{seconds / whole[count]:.2f}x" if count in whole else "-"
        memory = "-" if memory is None else f"{memory:.0f}"
        print(
            f"| {count} | {size or '-'} | {seconds:.2f} | {loss:.2f} | {ratio} | {memory} |",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]) or None)))
    else:
        main()

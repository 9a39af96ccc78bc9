"""Gradient caching under DistributedDataParallel: two processes against one that has all rows."""

import copy
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from fastssl import cached_step, clip_loss, nt_xent

WORLD = 2


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
    ).double()  # fmt: skip


class Scaled(nn.Module):
    """A tower that also holds a parameter of the loss, as CLIP's model does."""

    def __init__(self):
        super().__init__()
        self.net = network(1)
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x):
        return self.net(x)


def rows(step=0, count=9):
    """Both views of all ranks' rows, [2, WORLD, count, 6]."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(2, WORLD, count, 6, dtype=torch.float64, generator=generator)


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters()]


class Counted:
    """A module under DDP, and how often it reduced."""

    def __init__(self, module, **options):
        self.ddp, self.reductions = DistributedDataParallel(module, **options), 0
        self.ddp.register_comm_hook(None, self._hook)

    def _hook(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.reductions += 1
        return allreduce_hook(None, bucket)


def step(encoder, given, loss=nt_xent, size=4, norm="fixed"):
    return cached_step(encoder, list(given), loss, chunk_size=size, batch_norm=norm)


def of_rank(rank):
    """What is found, by name: (ours, expected) tensors, or numbers."""
    found = {}
    loss = lambda *z: nt_xent(*z, process_group=dist.group.WORLD)  # noqa: E731

    # Several steps, since DDP's first are special; the last in one pass.
    counted, single = Counted(network()), network()
    for i, size in enumerate((4, 4, 9, 100, None)):
        counted.ddp.zero_grad(), single.zero_grad()
        counted.reductions = 0
        step(counted.ddp, rows(i)[:, rank], loss, size)
        step(single, rows(i).flatten(1, 2), size=None)
        found["group", size, i] = list(zip(gradients(counted.ddp), gradients(single), strict=True))
        found["reductions", size, i] = counted.reductions

    # A loss of each rank's own rows, under torch.compile.
    counted, single = Counted(network()), network()
    step(torch.compile(counted.ddp, backend="eager"), rows()[:, rank])
    for r in range(WORLD):
        step(single, rows()[:, r], lambda *z: nt_xent(*z) / WORLD, None)
    found["compiled"] = list(zip(gradients(counted.ddp), gradients(single), strict=True))
    found["reductions", "compiled"] = counted.reductions

    # Steps that accumulate under no_sync.
    counted.ddp.zero_grad(), single.zero_grad()
    counted.reductions = 0
    with counted.ddp.no_sync():
        step(counted.ddp, rows(1)[:, rank], loss)
    found["no_sync"] = counted.reductions
    step(counted.ddp, rows(2)[:, rank], loss)
    found["reductions", "accumulated"] = counted.reductions
    for i in (1, 2):
        step(single, rows(i).flatten(1, 2), size=None)
    found["accumulated"] = list(zip(gradients(counted.ddp), gradients(single), strict=True))

    # Two towers and a logit scale inside one; DDP inside a larger module; uneven shards.
    towers = [Counted(network(2)), Counted(Scaled(), find_unused_parameters=True)]
    single = [network(2), Scaled()]
    cut = [5, 9][rank]
    given = rows()[:, rank, :cut]
    expected = torch.cat([rows()[:, 0, :5], rows()[:, 1, :9]], 1)
    scale = towers[1].ddp.module.scale
    step(
        [nn.Sequential(towers[0].ddp, nn.Identity()), towers[1].ddp], given,
        lambda *z: clip_loss(*z, scale, process_group=dist.group.WORLD),
    )  # fmt: skip
    step(single, expected, lambda *z: clip_loss(*z, single[1].scale), None)
    found["towers"] = list(
        zip(gradients(*(t.ddp for t in towers)), gradients(*single), strict=True)
    )
    found["reductions", "towers", 0], found["reductions", "towers", 1] = (
        tower.reductions for tower in towers
    )

    # Batch norm by chunk: the running statistics of one time through this rank's chunks.
    counted, local = Counted(network()), copy.deepcopy(network())
    step(counted.ddp, rows()[:, rank, :8], norm="chunk")
    for view in rows()[:, rank, :8]:
        for chunk in view.split(4):
            local(chunk)
    found["statistics"] = list(zip(counted.ddp.buffers(), local.buffers(), strict=True))
    found["reductions", "statistics"] = counted.reductions

    try:
        step(DistributedDataParallel(network(), static_graph=True), rows()[:, rank])
    except ValueError as error:
        found["static_graph"] = str(error)
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    torch.save(of_rank(rank), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    processes = mp.spawn(work, (str(folder),), nprocs=WORLD, join=False)
    try:
        end = time.monotonic() + 240
        # Returns when one process has ended, raises where one has failed.
        while not processes.join(timeout=5):
            assert time.monotonic() < end, "the processes have not ended after 240 seconds"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_gradients_are_those_of_one_process_with_all_rows(found):
    cases = 0
    for rank, results in enumerate(found):
        for name, result in results.items():
            for ours, expected in result if isinstance(result, list) else ():
                error = (ours - expected).abs().max()
                assert error <= 1e-12 * max(1, expected.abs().max()), (rank, name, error)
                cases += 1
    assert cases > 100


def test_gradients_are_reduced_once(found):
    for results in found:
        counts = {name: n for name, n in results.items() if name[0] == "reductions"}
        assert len(counts) == 10 and set(counts.values()) == {1}, counts
        assert results["no_sync"] == 0


def test_a_static_graph_is_refused(found):
    for results in found:
        assert results["static_graph"].startswith("encoder: DistributedDataParallel's static_graph")

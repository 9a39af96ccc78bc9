"""One rank of the tests in test_compat_distributed_losses.py: a process of its own.

    python losses_rank.py RANK FOLDER

It writes FOLDER/rank<RANK>.pt: losses, gradients of this rank's rows, and banks, by case.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import fastssl
from fastssl.compat import lightly, solo_learn

WORLD, N, D, K, STEPS = 2, 4, 5, 14, 5
TAU = 0.3
RANKS = range(WORLD)


def data(step=0):
    """(out0, out1, labels) of all ranks, [WORLD * N, ...]."""
    generator = torch.Generator().manual_seed(step)
    z = torch.randn(2, WORLD * N, D, dtype=torch.float64, generator=generator)
    return *z, torch.randint(3, (WORLD * N,), generator=generator)


def share(rank, step=0):
    """Those of one rank."""
    out0, out1, labels = (x[rank * N : (rank + 1) * N] for x in data(step))
    return out0.clone().requires_grad_(), out1.clone().requires_grad_(), labels


#: name: what a rank computes of its share.
LOSSES = {
    "NTXentLoss": lambda a, b, _: lightly.NTXentLoss(TAU, gather_distributed=True)(a, b),
    "fastssl.NTXentLoss": lambda a, b, _: fastssl.NTXentLoss(TAU, 0, True)(a, b),
    "DCLLoss": lambda a, b, _: lightly.DCLLoss(TAU, None, True)(a, b),
    "DCLLoss with weights": lambda a, b, _: lightly.DCLLoss(
        TAU, lambda x, y: (x * y[:, :1]).sum(1).exp(), True
    )(a, b),
    "DCLWLoss": lambda a, b, _: lightly.DCLWLoss(TAU, gather_distributed=True)(a, b),
    "SupConLoss": lambda a, b, labels: lightly.SupConLoss(TAU, True)(a, b, labels),
    "SupConLoss without labels": lambda a, b, _: lightly.SupConLoss(TAU, True)(a, b),
    "simclr_loss_func": lambda a, b, labels: solo_learn.simclr_loss_func(
        torch.cat([a, b]), labels.repeat(2), TAU
    ),
    "mocov3_loss_func": lambda a, b, _: solo_learn.mocov3_loss_func(a, b, TAU),
}


def steps(module, rank):
    """Losses, gradients and banks of some steps with a memory bank."""
    found = []
    for step in range(STEPS):
        out0, out1, _ = share(rank, step)
        loss = module(out0, out1)
        loss.backward()
        found.append((loss.detach(), out0.grad, out1.grad, module.memory_bank.rows))
    return found


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    found = {}
    for name, function in LOSSES.items():
        out0, out1, labels = share(rank)
        loss = function(out0, out1, labels)
        loss.backward()
        found[name] = loss.detach(), out0.grad, out1.grad
    shard = slice(0, N + 1) if rank == 0 else slice(N + 1, None)
    out0, out1, _ = data()
    found["uneven"] = lightly.SupConLoss(TAU, True)(out0[shard], out1[shard])
    for kind in (fastssl, lightly):
        torch.manual_seed(0)
        module = kind.NTXentLoss(TAU, (K, D), gather_distributed=True).double()
        found[kind.__name__] = steps(module, rank)
    torch.manual_seed(0)
    bank = fastssl.MemoryBank(K, D, process_group=dist.group.WORLD)
    bank.enqueue(share(rank)[0])
    found["bank"] = bank.rows
    alone = dist.new_group([0])
    bank = fastssl.MemoryBank(K, D, process_group=alone if rank == 0 else None)
    bank.enqueue(share(rank)[0])
    found["alone"] = bank.rows
    try:
        fastssl.MemoryBank(K, D, process_group=alone).enqueue(share(rank)[0])
    except ValueError as error:
        found["not a member"] = str(error)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

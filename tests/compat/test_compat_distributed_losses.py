"""Drop-ins over two processes against one process that has all rows.

A rank's loss is the mean over its own rows; the gradient of its rows is that of the sum of all
ranks' losses. That is what lightly and solo-learn compute.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from losses_rank import LOSSES, RANKS, STEPS, TAU, D, K, N, data, share

import fastssl
from fastssl.compat import lightly

SCRIPT = Path(__file__).with_name("losses_rank.py")
NAMES = [name for name in LOSSES if name != "mocov3_loss_func"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in RANKS
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"rank{rank}.pt") for rank in RANKS]


def rows(name, out0, out1, labels):
    """All rows' losses, [2N]."""
    if name == "simclr_loss_func":
        z = F.normalize(torch.cat([out0, out1]), dim=1)
        s, labels = z @ z.T / TAU, labels.repeat(2)
        others = s.masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        positives = others.masked_fill(labels[:, None] != labels, -torch.inf)
        return others.logsumexp(1) - positives.logsumexp(1)
    if name == "SupConLoss":
        z = torch.cat([out0, out1])
        return fastssl.sup_con(z, labels.repeat(2), TAU, reduction="none")
    if not name.startswith("DCL"):
        return fastssl.nt_xent(out0, out1, TAU, reduction="none")
    x, y = (F.normalize(z, dim=1) for z in (out0, out1))
    weights = 1
    if name == "DCLLoss with weights":
        weights = torch.cat([(x * y[:, :1]).sum(1).exp(), (y * x[:, :1]).sum(1).exp()])
    elif name == "DCLWLoss":  # over a rank's rows
        similarity = (x * y).sum(1).detach().view(-1, N) / 0.5
        weights = (2 - N * similarity.softmax(1)).flatten().repeat(2)
    positives = (x * y).sum(1).repeat(2) / TAU
    return fastssl.dcl(out0, out1, TAU, reduction="none") + (1 - weights) * positives


def of(rank, x):
    return x[rank * N : (rank + 1) * N]


@pytest.mark.parametrize("name", NAMES)
def test_losses(found, name):
    out0, out1, labels = data()
    out0.requires_grad_(), out1.requires_grad_()
    losses = rows(name, out0, out1, labels).view(2, len(RANKS), N).mean((0, 2))
    grads = torch.autograd.grad(losses.sum(), (out0, out1))
    for rank in RANKS:
        wanted = losses[rank].detach(), *(of(rank, g) for g in grads)
        torch.testing.assert_close(found[rank][name], wanted)


def test_pairs_of_uneven_shards_have_labels_of_their_own(found):
    out0, out1, _ = data()
    mean = sum(found[rank]["uneven"] for rank in RANKS) / len(RANKS)
    torch.testing.assert_close(mean, fastssl.nt_xent(out0, out1, TAU))


def test_moco_v3(found):
    _, keys, _ = data()
    for rank in RANKS:
        query, _, _ = share(rank)
        logits = F.normalize(query, dim=1) @ F.normalize(keys, dim=1).T / TAU
        loss = 2 * TAU * F.cross_entropy(logits, torch.arange(N) + rank * N)
        (grad,) = torch.autograd.grad(loss, query)
        torch.testing.assert_close(found[rank]["mocov3_loss_func"], (loss.detach(), grad, None))


@pytest.mark.parametrize("kind", [fastssl, lightly], ids=lambda kind: kind.__name__)
def test_memory_bank(found, kind):
    """Each rank compares its rows with the bank; all ranks' keys are enqueued, in their order."""
    torch.manual_seed(0)
    bank = kind.NTXentLoss(TAU, (K, D)).double().memory_bank
    for step in range(STEPS):
        for rank in RANKS:
            out0, out1, _ = share(rank, step)
            loss = fastssl.info_nce(out0, out1, bank.rows, temperature=TAU)
            loss.backward()
            first = found[rank][kind.__name__][step][:3]
            torch.testing.assert_close(first, (loss.detach(), out0.grad, out1.grad))
        bank.enqueue(F.normalize(data(step)[1], dim=1))
        for rank in RANKS:
            torch.testing.assert_close(found[rank][kind.__name__][step][3], bank.rows)


def test_a_bank_with_a_group(found):
    for rank in RANKS:
        torch.testing.assert_close(found[rank]["alone"][-N:], F.normalize(share(rank)[0], dim=1))
        torch.testing.assert_close(found[rank]["bank"][-2 * N :], F.normalize(data()[0], dim=1))
    assert "not a member" not in found[0]
    assert "process_group" in found[1]["not a member"]

"""Losses of solo-learn against their definitions, written out."""

import pytest
import torch
import torch.nn.functional as F
from compat_cases import agree

import fastssl
from fastssl.compat import solo_learn as ours

N, D, K = 6, 5, 20
WIDE = torch.float64
DTYPES = [torch.float32, WIDE]


def rows(n=N, dtype=WIDE):
    return torch.randn(n, D, dtype=dtype)


def simclr(z, indexes, temperature):
    """-log(positives / (positives + negatives)) of sums of exponentials."""
    z = F.normalize(z, dim=1)
    exponentials = (z @ z.T / temperature).exp()
    same = indexes[:, None] == indexes
    itself = torch.eye(len(z), dtype=torch.bool)
    positives = torch.where(same & ~itself, exponentials, 0).sum(1)
    negatives = torch.where(same, 0, exponentials).sum(1)
    return -(positives / (positives + negatives)).log().mean()


def moco_v2(query, key, queue, temperature):
    logits = torch.cat([(query * key).sum(1)[:, None], query @ queue], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


def moco_v3(query, key, temperature):
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(query))) * 2 * temperature


def cosines(p, z):
    return (p * z).sum(1) / (p.norm(dim=1) * z.norm(dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.1, 0.5, -0.4])
@pytest.mark.parametrize(
    "indexes", [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1], [5, 5, 7, 7, 7, 7], [3] * 6]
)
def test_simclr(indexes, temperature, dtype):
    indexes = torch.tensor(indexes)
    agree(
        lambda z: ours.simclr_loss_func(z, indexes, temperature),
        lambda z: simclr(z, indexes, temperature),
        rows(dtype=dtype),
    )


def test_simclr_is_nt_xent_for_pairs():
    z0, z1 = rows(), rows()
    found = ours.simclr_loss_func(torch.cat([z0, z1]), torch.arange(N).repeat(2), 0.2)
    torch.testing.assert_close(found, fastssl.nt_xent(z0, z1, 0.2))
    assert torch.equal(
        ours.simclr_loss_func(z0, torch.tensor([0, 1, 0, 1, 2, 2], dtype=torch.int32)),
        ours.simclr_loss_func(z0, torch.tensor([0, 1, 0, 1, 2, 2]), temperature=0.1),
    )


def test_simclr_where_exponentials_overflow():
    z = rows(dtype=torch.float32).requires_grad_()
    loss = ours.simclr_loss_func(z, torch.tensor([0, 1, 2, 0, 1, 2]), 0.005)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def test_simclr_where_a_row_has_no_positive():
    indexes = torch.tensor([0, 1, 2, 0, 1, 3])
    assert ours.simclr_loss_func(rows(), indexes) == simclr(rows(), indexes, 0.1) == torch.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.1, 0.5, -0.4])
def test_moco_v2(temperature, dtype):
    queue = F.normalize(torch.randn(D, K, dtype=dtype), dim=0)
    agree(
        lambda q, k: ours.mocov2plus_loss_func(q, k, queue, temperature),
        lambda q, k: moco_v2(q, k, queue, temperature),
        rows(dtype=dtype),
        rows(dtype=dtype),
    )
    agree(
        lambda q: ours.mocov2plus_loss_func(q, q.detach(), queue),
        lambda q: moco_v2(q, q.detach(), queue, 0.1),
        F.normalize(rows(dtype=dtype), dim=1),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.2, 1.0, -0.4])
def test_moco_v3(temperature, dtype):
    agree(
        lambda q, k: ours.mocov3_loss_func(q, k, temperature),
        lambda q, k: moco_v3(q, k, temperature),
        rows(dtype=dtype),
        rows(dtype=dtype),
    )
    assert torch.equal(
        ours.mocov3_loss_func(*(pair := (rows(), rows()))), ours.mocov3_loss_func(*pair, 0.2)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simplified", [True, False])
def test_byol_and_simsiam(simplified, dtype):
    z = rows(dtype=dtype).requires_grad_()
    p = rows(dtype=dtype)
    for function, definition in (
        (ours.byol_loss_func, lambda p, z: (2 - 2 * cosines(p, z)).mean()),
        (ours.simsiam_loss_func, lambda p, z: -cosines(p, z).mean()),
    ):
        agree(
            lambda p, f=function: f(p, z, simplified), lambda p, f=definition: f(p, z.detach()), p
        )
        assert not function(p, z).requires_grad, "targets have no gradient"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    z, p, queue = rows().to(dtype), rows().to(dtype), rows(K).to(dtype).T
    indexes = torch.tensor([0, 1, 2, 0, 1, 2])
    for found, wanted in (
        (ours.simclr_loss_func(z, indexes), simclr(z.double(), indexes, 0.1)),
        (
            ours.mocov2plus_loss_func(z, p, queue),
            moco_v2(*(x.double() for x in (z, p, queue)), 0.1),
        ),
        (ours.mocov3_loss_func(z, p), moco_v3(z.double(), p.double(), 0.2)),
        (ours.byol_loss_func(z, p), 2 - 2 * cosines(z.double(), p.double()).mean()),
        (ours.simsiam_loss_func(z, p), -cosines(z.double(), p.double()).mean()),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.simclr_loss_func(rows(), torch.zeros(3).long()), ValueError, "indexes: got"),
        (lambda: ours.simclr_loss_func(rows(), torch.zeros(N)), TypeError, "indexes: got dtype"),
        (lambda: ours.simclr_loss_func(rows()[0], torch.zeros(N)), ValueError, "z: got shape"),
        (lambda: ours.mocov2plus_loss_func(rows(), rows(), rows()), ValueError, "negatives: got"),
        (lambda: ours.mocov3_loss_func(rows(), rows(3)), ValueError, "key: got shape"),
        (lambda: ours.mocov3_loss_func(rows(), rows(), 0), ValueError, "temperature: got"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()

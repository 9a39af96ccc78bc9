"""Losses and the memory bank of lightly against lightly's."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from compat_cases import library, takes_the_same

import fastssl
from fastssl.compat import lightly as ours
from fastssl.compat.lightly import loss as our_losses

N, D = 6, 5
WIDE = torch.float64
NAMES = ("NTXentLoss", "DCLLoss", "DCLWLoss")
#: Which of the two inputs require a gradient.
WANTED = [(True, True), (True, False), (False, True)]


@pytest.fixture
def theirs():
    return library("lightly.loss")


@pytest.fixture
def their_bank():
    return library("lightly.models.modules.memory_bank").MemoryBankModule


def views(n=N, d=D, dtype=WIDE):
    return torch.randn(n, d, dtype=dtype), torch.randn(n, d, dtype=dtype)


def both(first, second, out0, out1, wanted=(True, True), **tolerance):
    """Both modules give the same loss and gradients."""
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly makes a tensor of a tensor
        for module in (first, second):
            given = [
                x.detach().as_strided(x.size(), x.stride(), x.storage_offset()).requires_grad_(w)
                for x, w in zip((out0, out1), wanted, strict=True)
            ]
            leaves = [x for x in given if x.requires_grad]
            loss = module(*given)
            results.append(
                (loss.detach(), torch.autograd.grad(loss, leaves, 1.7 * loss.new_ones(())))
            )
    assert results[0][0].dtype == results[1][0].dtype
    torch.testing.assert_close(results[0], results[1], **tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_signatures(theirs, name):
    takes_the_same(getattr(ours, name), getattr(theirs, name))
    takes_the_same(getattr(ours, name).forward, getattr(theirs, name).forward)
    assert getattr(our_losses, name) is getattr(ours, name)


def test_signature_of_the_bank(their_bank):
    takes_the_same(ours.MemoryBankModule, their_bank)
    takes_the_same(ours.MemoryBankModule.forward, their_bank.forward)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
@pytest.mark.parametrize("tau", [0.5, 0.07, 10, 7.0, -0.3])
@pytest.mark.parametrize("name", NAMES)
def test_losses(theirs, name, tau, dtype, wanted):
    for n, d in ((N, D), (1, D), (2, 1), (17, 24)):
        if n == 1 and name != "NTXentLoss":
            continue  # minus infinity: no negatives
        if d == 1 and dtype != WIDE:
            continue  # all of the gradient is rounding
        mine, other = getattr(ours, name)(tau), getattr(theirs, name)(tau)
        both(mine, other, *views(n, d, dtype), wanted)


@pytest.mark.parametrize("name", NAMES[1:])
def test_one_pair_alone_has_no_negatives(theirs, name):
    out0, out1 = views(1)
    for m in (ours, theirs):
        assert getattr(m, name)()(out0, out1) == -torch.inf


@pytest.mark.parametrize("name", NAMES)
def test_any_strides(theirs, name):
    wide = torch.randn(2, 2 * D, N, dtype=WIDE)
    both(getattr(ours, name)(), getattr(theirs, name)(), *wide[:, ::2].transpose(1, 2))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_nearer_to_the_truth(theirs, name):
    out0, out1 = (x.bfloat16() for x in views(64, 32))
    mine, other, truth = getattr(ours, name)(0.1), getattr(theirs, name)(0.1), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = other(out0.double(), out1.double())
        found, rough = mine(out0, out1), other(out0, out1)
    assert found.dtype == rough.dtype == torch.bfloat16
    assert (found - truth).abs() <= max((rough - truth).abs(), truth.abs() * 2**-8)


@pytest.mark.parametrize("name", NAMES)
def test_autocast(theirs, name):
    out0, out1 = views(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, other = (getattr(m, name)()(out0, out1) for m in (ours, theirs))
    assert found.dtype == torch.float32  # lightly's DCLLoss gives bfloat16
    torch.testing.assert_close(found, other.float(), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(theirs, name):
    given, seconds = [x.requires_grad_() for x in views(4, 3)], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for m in (ours, theirs):
            loss = getattr(m, name)(0.4)(*given)
            firsts = torch.autograd.grad(loss, given, create_graph=True)
            seconds.append(torch.autograd.grad(sum(g.square().sum() for g in firsts), given))
    torch.testing.assert_close(*seconds)


def test_weights_of_the_positives(theirs):
    out0, out1 = views()
    for weight_fn in (
        lambda x, y: ((x - y) ** 2).sum(1),
        lambda x, y: (x * y[:, :1]).sum(1).exp(),  # another one in the other direction
        lambda x, y: torch.linspace(0, 2, len(x), dtype=x.dtype),
    ):
        mine, other = ours.DCLLoss(0.2, weight_fn), theirs.DCLLoss(0.2, weight_fn)
        both(mine, other, out0, out1)
        for wanted in WANTED:
            both(mine, other, out0, out1, wanted)
    for sigma in (0.5, 0.1, 3):
        both(ours.DCLWLoss(0.2, sigma), theirs.DCLWLoss(0.2, sigma), out0, out1)
    replaced = ours.DCLWLoss(0.2), theirs.DCLWLoss(0.2)
    for module in replaced:
        module.weight_fn = lambda x, y: x[:, 0]
    both(*replaced, out0, out1)


def test_weights_by_name(theirs):
    out0, out1 = (F.normalize(x, dim=1) for x in views())
    other = library("lightly.loss.dcl_loss").negative_mises_fisher_weights
    with pytest.warns(UserWarning):
        wanted = other(out0, out1, 0.3)
    torch.testing.assert_close(our_losses.negative_mises_fisher_weights(out0, out1, 0.3), wanted)


def twins(theirs, size, tau=0.2, dtype=WIDE):
    """Two losses with equal banks."""
    torch.manual_seed(1)
    mine = ours.NTXentLoss(tau, size).to(dtype)
    torch.manual_seed(1)
    other = theirs.NTXentLoss(tau, size).to(dtype)
    assert torch.equal(mine.memory_bank.bank, other.memory_bank.bank), "drawn alike"
    return mine, other


@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
@pytest.mark.parametrize("size", [1, 6, 16, 17, 18])
@pytest.mark.parametrize("tau", [0.2, -0.3])
def test_memory_bank(theirs, tau, size, dtype):
    mine, other = twins(theirs, (size, D), tau, dtype)
    for n in (6, 6, 6, 5, 1, 6, 20, 6, 40, 3, 6, 6):
        both(mine, other, *views(n, dtype=dtype), WANTED[n % 2])
        torch.testing.assert_close(mine.memory_bank.bank, other.memory_bank.bank)
        assert torch.equal(mine.memory_bank.bank_ptr, other.memory_bank.bank_ptr)


def test_the_bank_is_kept_where_out0_needs_no_gradient(theirs):
    mine, other = twins(theirs, (16, D))
    out0, out1 = views()
    before = mine.memory_bank.bank
    both(mine, other, out0, out1, (False, True))
    with torch.no_grad():
        losses = [m(out0.clone().requires_grad_(), out1) for m in (mine, other)]
    torch.testing.assert_close(*losses)
    for module in (mine, other):
        assert torch.equal(module.memory_bank.bank, before)


def test_several_losses_before_the_backward_pass(theirs):
    mine, other = twins(theirs, (16, D))
    given = [views() for _ in range(7)]
    grads = []
    for module in (mine, other):
        query = given[0][0].clone().requires_grad_()
        total = sum(module(query + x, y) for x, y in given)
        grads.append(torch.autograd.grad(total, query))
    torch.testing.assert_close(*grads)


def test_second_derivatives_with_a_bank(theirs):
    query, key, seconds = *views(), []
    query.requires_grad_()
    for module in twins(theirs, (16, D)):
        loss = module(query, key) + module(query, key + 1)
        (first,) = torch.autograd.grad(loss, query, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), query))
    torch.testing.assert_close(*seconds)


def test_compiled_with_a_bank(theirs):
    mine, other = twins(theirs, (16, D))
    compiled = torch.compile(mine, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    for _ in range(12):
        both(compiled, other, *views(), (True, False))
        torch.testing.assert_close(mine.memory_bank.bank, other.memory_bank.bank)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] < 12, "not again for each step"


def test_memory_bank_in_half_precision():
    module = ours.NTXentLoss(0.2, (16, D))
    for _ in range(4):
        out0, out1 = views(dtype=torch.bfloat16)  # lightly raises RuntimeError
        module(out0.requires_grad_(), out1).backward()
        assert out0.grad.isfinite().all()
    assert module.memory_bank.bank.dtype == torch.bfloat16


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("size", [1, 6, 16, 18])
def test_the_bank_by_itself(their_bank, size, first):
    banks = []
    for kind in (ours.MemoryBankModule, their_bank):
        torch.manual_seed(2)
        banks.append(kind((size, D), feature_dim_first=first))
    for n in (6, 6, 6, 5, 1, 6, 20, 6, 40, 3):
        batch = torch.randn(n, D)
        for update in (False, True):
            results = [bank(batch, update=update) for bank in banks]
            assert results[0][0] is batch
            assert torch.equal(results[0][1], results[1][1])
        assert torch.equal(*(bank.bank for bank in banks))
        assert banks[0].size == banks[1].size
    assert not banks[0].state_dict()
    assert torch.equal(banks[0].bank, copy.deepcopy(banks[0]).bank)
    assert torch.equal(banks[0].bank, pickle.loads(pickle.dumps(banks[0])).bank)


def test_a_loss_of_plain_pytorch_over_the_bank():
    bank = ours.MemoryBankModule((16, D))
    query, total = torch.randn(N, D, requires_grad=True), 0
    for _ in range(5):
        out, negatives = bank(torch.randn(N, D), update=True)
        total = total + torch.einsum("nc,ck->nk", query, negatives).logsumexp(1).sum()
    total.backward()
    assert query.grad.isfinite().all()


def test_a_bank_set_by_hand(theirs):
    mine, other = twins(theirs, (16, D))
    for module in (mine, other):
        module(*(x.requires_grad_() for x in views()))
    rows = torch.randn(16, D, dtype=WIDE)  # not of unit length
    for module in (mine, other):
        module.memory_bank.bank = rows.clone()
    for _ in range(4):
        both(mine, other, *views())
        torch.testing.assert_close(mine.memory_bank.bank, other.memory_bank.bank)


def test_no_bank(theirs, their_bank):
    batch = torch.randn(N, D)
    for kind in (ours.MemoryBankModule, their_bank):
        for size in (0, (0, D), (0,)):
            assert kind(size)(batch, update=True) == (batch, None)
    for kind in (ours, theirs):
        assert isinstance(kind.NTXentLoss().memory_bank, (ours.MemoryBankModule, their_bank))


def test_sizes(their_bank):
    for size in (-1, (-1, 3), (3, -1), (1, 2, 3)):
        for kind in (ours.MemoryBankModule, their_bank):
            with pytest.raises(ValueError, match="Illegal memory bank size"):
                kind(size)
    # 1.6.0 raises here; earlier releases warned, and took the width of the first batch.
    with pytest.warns(UserWarning, match="'size=16' does not specify feature dimension"):
        bank = ours.MemoryBankModule(16)
    assert bank.size == (16,)
    assert bank(torch.randn(N, D))[1].shape == (D, 16)


def test_attributes(theirs):
    for m in (ours, theirs):
        module = m.NTXentLoss(0.3, (16, D), False)
        assert (module.temperature, module.gather_distributed, module.eps) == (0.3, False, 1e-8)
        assert isinstance(module.cross_entropy, torch.nn.CrossEntropyLoss)
        assert not module.state_dict()
        assert not list(module.parameters())
        for name in NAMES[1:]:
            module = getattr(m, name)(0.3)
            assert (module.temperature, module.gather_distributed) == (0.3, False)
        assert module.weight_fn.keywords == {"sigma": 0.5}


@pytest.mark.parametrize("name", NAMES)
def test_copies(name):
    module, given = getattr(ours, name)(), views()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(*given), module(*given))


@pytest.mark.parametrize("tau", [0, 1e-9, -1e-9])
def test_temperatures(theirs, tau):
    for m in (ours, theirs):
        with pytest.raises(ValueError, match=r"Illegal temperature: abs\(.*\) < 1e-8"):
            m.NTXentLoss(tau)


@pytest.mark.parametrize("name", [*NAMES, "SupConLoss"])
def test_distributed_is_asked_for_once(monkeypatch, name):
    asked = []
    monkeypatch.setattr(torch.distributed, "is_available", lambda: bool(asked.append(1)))
    with pytest.raises(ValueError, match="gather_distributed"):
        getattr(ours, name)(gather_distributed=True)
    assert len(asked) == 1
    getattr(ours, name)()
    assert len(asked) == 1


def test_gathering_in_one_process(theirs):
    for name in NAMES:
        mine, other = (getattr(m, name)(gather_distributed=True) for m in (ours, theirs))
        both(mine, other, *views())


def test_sup_con():
    out0, out1 = views()
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    found = ours.SupConLoss(0.2)(out0, out1, labels)
    wanted = fastssl.sup_con(torch.cat([out0, out1]), torch.cat([labels, labels]), 0.2)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(ours.SupConLoss(0.2)(out0, out1), fastssl.nt_xent(out0, out1, 0.2))

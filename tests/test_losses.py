"""Losses as modules: what they pass on, what they keep, and NT-Xent's memory bank."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F

import fastssl

N, D, K = 6, 5, 16
WIDE = torch.float64
MODULES = {
    "InfoNCELoss": "info_nce",
    "CLIPLoss": "clip_loss",
    "SigLIPLoss": "siglip_loss",
    "SupConLoss": "sup_con",
    "PairNTXentLoss": "pair_nt_xent",
    "DCLLoss": "dcl",
    "DCLWLoss": "dclw",
    "NTXentLoss": "nt_xent",
}


def rows(n=N, dtype=WIDE):
    return torch.randn(n, D, dtype=dtype)


def inputs(name):
    """What `forward` takes."""
    if name in ("SupConLoss", "PairNTXentLoss"):
        return rows(), torch.tensor([0, 1, 2, 0, 1, 0])
    if name in ("CLIPLoss", "SigLIPLoss"):
        return rows(), rows(), torch.tensor(2.0, dtype=WIDE), torch.tensor(-1.0, dtype=WIDE)
    return rows(), rows()


@pytest.mark.parametrize("name", MODULES)
def test_arguments_are_those_of_the_function(name):
    module, function = getattr(fastssl, name), getattr(fastssl, MODULES[name])
    assert inspect.getdoc(module)
    own = inspect.signature(module).parameters
    tensors = inspect.signature(module.forward).parameters
    theirs = inspect.signature(function).parameters
    if name == "DCLWLoss":
        theirs = {**inspect.signature(fastssl.dcl).parameters, **theirs}
        del theirs["options"], theirs["weights"]
    wanted = {p.name: p.default for p in theirs.values() if p.name not in tensors}
    if name == "NTXentLoss":
        tensors = {**tensors, "z0": 0, "z1": 0}
        wanted = {n: d for n, d in wanted.items() if n not in ("z0", "z1")}
        wanted |= {"memory_bank_size": 0, "gather_distributed": False}
    assert {p.name: p.default for p in own.values()} == wanted
    assert set(theirs) <= {*own, *tensors}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", MODULES)
def test_modules_call_their_functions(name, reduction):
    module = getattr(fastssl, name)(reduction=reduction, normalize=True)
    given = [x.requires_grad_() if x.is_floating_point() else x for x in inputs(name)]
    leaves = [x for x in given if x.requires_grad]
    function = getattr(fastssl, MODULES[name])
    found, wanted = module(*given), function(*given, reduction=reduction, normalize=True)
    assert torch.equal(found, wanted)
    upstream = torch.randn_like(found)
    for a, b in zip(
        *(torch.autograd.grad(x, leaves, upstream) for x in (found, wanted)), strict=True
    ):
        assert torch.equal(a, b)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(*given), found)
    assert not module.state_dict()
    assert repr(module).startswith(f"{name}(")
    assert ("reduction" in repr(module)) == (reduction != "mean")


@pytest.mark.parametrize("name", MODULES)
def test_metrics(name):
    if "return_metrics" not in inspect.signature(getattr(fastssl, name)).parameters:
        pytest.skip("has none")
    loss, found = getattr(fastssl, name)(return_metrics=True)(*inputs(name))
    assert loss.dim() == 0
    assert {"top1", "alignment"} <= set(found)


@pytest.mark.parametrize("name", [n for n in MODULES if n not in ("CLIPLoss", "SigLIPLoss")])
def test_temperatures(name):
    module, given = getattr(fastssl, name), inputs(name)
    function = getattr(fastssl, MODULES[name])
    for value in (0.2, -0.3, 10):
        assert torch.equal(module(value)(*given), function(*given, temperature=value))
        assert module(value).temperature == value
    learned = module(torch.nn.Parameter(torch.tensor(0.2, dtype=WIDE)))
    learned(*given).backward()
    assert learned.temperature.grad is not None
    assert list(learned.state_dict()) == ["temperature"]
    assert list(dict(module(torch.tensor(0.2)).named_buffers())) == ["temperature"]
    with pytest.raises(ValueError, match="temperature"):
        module(-9e-9)
    with pytest.raises(TypeError, match="temperature"):
        module("a")


@pytest.mark.parametrize("name", MODULES)
def test_errors_come_with_the_constructor(name):
    module = getattr(fastssl, name)
    with pytest.raises(TypeError, match=f"{name}.*'colour'"):
        module(colour=1)
    with pytest.raises(ValueError, match="reduction: got 'avg'"):
        module(reduction="avg")
    with pytest.raises(ValueError, match="strategy: got 'pigeon'"):
        module(strategy="pigeon")


def test_what_forward_takes_besides():
    x, y, labels = rows(), rows(), torch.tensor([0, 1, 2, 0, 1, 0])
    queue, weights = rows(9), torch.rand(2 * N, dtype=WIDE)
    for found, wanted in (
        (fastssl.NTXentLoss(0.3)(x, y, labels), fastssl.nt_xent(x, y, 0.3, labels=labels)),
        (fastssl.InfoNCELoss()(x, y, labels=labels), fastssl.info_nce(x, y, labels=labels)),
        (fastssl.InfoNCELoss()(x, y, queue), fastssl.info_nce(x, y, queue)),
        (fastssl.DCLLoss()(x, y, weights), fastssl.dcl(x, y, weights=weights)),
        (
            fastssl.SupConLoss(form="in")(x, labels, y, labels),
            fastssl.sup_con(x, labels, form="in", references=y, reference_labels=labels),
        ),
    ):
        assert torch.equal(found, wanted)


def test_a_subclass_may_have_a_constructor_of_its_own():
    class Mine(fastssl.NTXentLoss):
        def __init__(self, factor):
            super().__init__(0.2, reduction="sum")
            self.factor = factor

        def forward(self, out0, out1):
            return self.factor * super().forward(out0, out1)

    x, y = rows(), rows()
    assert torch.equal(Mine(3)(x, y), 3 * fastssl.nt_xent(x, y, 0.2, reduction="sum"))
    assert repr(Mine(3)) == "Mine(factor=3)"


def plain(query, key, negatives, tau):
    """MoCo's loss, written out."""
    query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ negatives.T], 1) / tau
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))


@pytest.mark.parametrize("tau", [0.5, 0.07, -0.4])
def test_memory_bank(tau):
    module = fastssl.NTXentLoss(tau, (K, D)).double()
    expected = module.memory_bank.rows.clone()
    for n in (6, 6, 5, 1, 30, 6, 6, 6):
        x, y = rows(n).requires_grad_(), rows(n).requires_grad_()
        found, wanted = module(x, y), plain(x, y, expected, tau)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(
            torch.autograd.grad(found, (x, y)), torch.autograd.grad(wanted, (x, y))
        )
        expected = torch.cat([expected, F.normalize(y, dim=1).detach()])[-K:]
        torch.testing.assert_close(module.memory_bank.rows, expected)
    assert not module.state_dict()
    assert "memory_bank_size" in repr(module)


def test_two_losses_of_one_bank_before_the_backward_pass():
    """Symmetric MoCo: the second loss sees the keys of the first."""
    module = fastssl.NTXentLoss(0.2, (K, D)).double()
    for _ in range(9):
        bank = module.memory_bank.rows.clone()
        x0, x1 = rows().requires_grad_(), rows().requires_grad_()
        y0, y1 = rows(), rows()
        loss = module(x0, y1) + module(x1, y0)
        later = torch.cat([bank, F.normalize(y1, dim=1)])[-K:]
        wanted = plain(x0, y1, bank, 0.2) + plain(x1, y0, later, 0.2)
        torch.testing.assert_close(
            torch.autograd.grad(loss, (x0, x1)), torch.autograd.grad(wanted, (x0, x1))
        )


def test_the_bank_changes_only_where_out0_needs_a_gradient():
    module = fastssl.NTXentLoss(0.2, (K, D))
    x, y = rows(dtype=torch.float32), rows(dtype=torch.float32)
    before = module.memory_bank.rows
    module(x, y)
    module(x, y.clone().requires_grad_())
    with torch.no_grad():
        module(x.clone().requires_grad_(), y)
    assert module.memory_bank.rows is before
    module(x.requires_grad_(), y)
    assert module.memory_bank.rows is not before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_memory_bank_in_half_precision(dtype):
    module = fastssl.NTXentLoss(0.2, (K, D))
    for _ in range(4):
        before = module.memory_bank.rows.double()
        x, y = rows().to(dtype).requires_grad_(), rows().to(dtype)
        found = module(x, y)
        wide = x.detach().double().requires_grad_()
        wanted = plain(wide, y.double(), before, 0.2)
        assert found.dtype == module.memory_bank.rows.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(
            torch.autograd.grad(found, x)[0].double(),
            torch.autograd.grad(wanted, wide)[0],
            rtol=2e-2,
            atol=2e-2,
        )


def test_memory_bank_under_autocast():
    module = fastssl.NTXentLoss(0.2, (K, D))
    x, y = rows(dtype=torch.bfloat16).requires_grad_(), rows(dtype=torch.bfloat16)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = module(x, y.float())
        assert loss.dtype == torch.float32
        loss.backward()


def test_memory_bank_with_options():
    x, y = rows().requires_grad_(), rows()
    module = fastssl.NTXentLoss(
        0.2, (K, D), reduction="none", return_metrics=True, hard_negative_margin=0.5
    ).double()
    bank = module.memory_bank.rows.clone()
    (found, metrics) = module(x, y)
    wanted, others = fastssl.info_nce(
        x, y, bank, temperature=0.2, reduction="none", return_metrics=True, hard_negative_margin=0.5
    )
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(metrics, others)
    with pytest.raises(ValueError, match="labels"):
        module(x, y, torch.zeros(N, dtype=torch.int64))
    raw = fastssl.NTXentLoss(0.2, (K, D), normalize=False).double()
    raw(x, y)
    assert torch.equal(raw.memory_bank.rows[-N:], y)


def test_memory_bank_that_gets_its_width_later():
    with pytest.warns(UserWarning, match="does not specify feature dimension"):
        module = fastssl.NTXentLoss(0.2, K)
    module(rows().requires_grad_(), rows()).backward()
    assert module.memory_bank.rows.shape == (K, D)
    for size in (-1, (-2, 3), (1, 2, 3)):
        with pytest.raises(ValueError, match="Illegal memory bank size"):
            fastssl.NTXentLoss(0.2, size)
    assert fastssl.NTXentLoss(0.2, (0,)).memory_bank is None


def test_compiled_with_a_bank():
    module = fastssl.NTXentLoss(0.2, (K, D))
    twin = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(4):
        x, y = rows(dtype=torch.float32).requires_grad_(), rows(dtype=torch.float32)
        grads = [torch.autograd.grad(m(x, y), x)[0] for m in (compiled, twin)]
        torch.testing.assert_close(*grads)
    torch.testing.assert_close(module.memory_bank.rows, twin.memory_bank.rows)


def test_distributed_is_asked_for_once(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.distributed, "is_available", lambda: bool(asked.append(1)))
    with pytest.raises(ValueError, match="not available"):
        fastssl.NTXentLoss(gather_distributed=True)
    assert len(asked) == 1
    fastssl.NTXentLoss()
    fastssl.NTXentLoss(0.1, (K, D))
    assert len(asked) == 1

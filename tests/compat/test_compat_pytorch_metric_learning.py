"""NTXentLoss, SupConLoss and CrossBatchMemory against pytorch-metric-learning's."""

import copy
import importlib
import inspect
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from compat_cases import library
from torch import distributed

from fastssl.compat._fallback import say_once

NAMES = ("NTXentLoss", "SupConLoss")


def libraries():
    """The library, and ours, which needs it."""
    theirs = library("pytorch_metric_learning")
    for part in ("losses", "distances", "reducers", "regularizers", "miners", "utils.distributed"):
        importlib.import_module(f"pytorch_metric_learning.{part}")
    return SimpleNamespace(
        ours=importlib.import_module("fastssl.compat.pytorch_metric_learning"),
        losses=theirs.losses, distances=theirs.distances, reducers=theirs.reducers,
        regularizers=theirs.regularizers, miners=theirs.miners, wrapper=theirs.utils.distributed,
    )  # fmt: skip


@pytest.fixture
def both():
    say_once.cache_clear()
    found = libraries()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield found


def labels_of(kind, rows):
    """Labels of so many rows."""
    one = torch.arange(rows)
    return {
        "pairs": one // 2,
        "views": torch.cat([one[: rows // 2], one[: rows - rows // 2]]),
        "classes": torch.randint(0, 4, (rows,)),
        "one class": torch.zeros(rows, dtype=torch.long),
        "none": one,
        "some": torch.where(one < rows // 2, one // 3, one + rows),
    }[kind]


def agree(mine, other, *arguments, rtol=1e-5, **keywords):
    """Values and gradients of both losses; what stays out of the graph stays out of both."""
    results = []
    for loss in (mine, other):
        leaves = [
            a.detach().clone().requires_grad_(a.requires_grad)
            if torch.is_tensor(a) and a.is_floating_point() else a
            for a in (*arguments, *keywords.values())
        ]  # fmt: skip
        named = dict(zip(keywords, leaves[len(arguments) :], strict=True))
        loss = loss(*leaves[: len(arguments)], **named)
        loss.sum().backward()
        results.append([loss.detach(), *(a.grad for a in leaves if torch.is_tensor(a))])
    for a, b in zip(*results, strict=True):
        if a is None or b is None:
            assert a is None and b is None
            continue
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item() + 1e-12)
    return results[0][0]


def data(rows, kind="classes", width=16, dtype=torch.float32):
    return torch.randn(rows, width, dtype=dtype, requires_grad=True), labels_of(kind, rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["pairs", "views", "classes", "one class", "none", "some"])
@pytest.mark.parametrize("rows", [2, 3, 17, 40])
def test_values_and_gradients(both, name, kind, rows):
    for dtype, rtol in ((torch.float32, 2e-5), (torch.float64, 1e-10)):
        for temperature in (0.05, 0.5, 5):
            mine, other = (getattr(o, name)(temperature) for o in (both.ours, both.losses))
            x, labels = data(rows, kind, dtype=dtype)
            agree(mine, other, x, labels, rtol=rtol)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["one class", "none"])
def test_no_valid_pairs_is_exactly_zero(both, name, kind):
    x, labels = data(6, kind)
    loss = getattr(both.ours, name)()(x, labels)
    assert loss.item() == 0
    (grad,) = torch.autograd.grad(loss, x)
    assert not grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_nearer_to_the_truth(both, name):
    x, labels = data(32)
    truth = getattr(both.losses, name)()(x.bfloat16().double(), labels)
    mine, other = (getattr(o, name)()(x.bfloat16(), labels) for o in (both.ours, both.losses))
    assert mine.dtype == other.dtype == torch.bfloat16
    assert (mine - truth).abs() <= (other - truth).abs() + 0.01 * truth
    with torch.autocast("cpu", torch.bfloat16):
        mine = getattr(both.ours, name)()(x, labels)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, getattr(both.losses, name)()(x, labels), rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("learned", [False, True])
def test_references(both, name, learned):
    mine, other = (getattr(o, name)(0.2) for o in (both.ours, both.losses))
    x, labels = data(9)
    y, ref_labels = data(21)
    y.requires_grad_(learned)
    agree(mine, other, x, labels, ref_emb=y, ref_labels=ref_labels)
    agree(mine, other, x, labels, ref_emb=y[:1], ref_labels=labels[:1])
    agree(mine, other, x[:1], labels[:1], ref_emb=y[:2], ref_labels=torch.tensor([labels[0], 99]))
    # References with the very same labels: the library takes out each sample's own reference.
    agree(mine, other, x, labels, ref_emb=y[:9], ref_labels=labels)
    agree(mine, other, x, labels, ref_emb=y[:9], ref_labels=labels.clone())
    assert torch.equal(mine(x, labels, ref_emb=x, ref_labels=labels), mine(x, labels))


def test_labels_of_other_types(both):
    x, labels = data(20)
    for name in NAMES:
        mine, other = (getattr(o, name)() for o in (both.ours, both.losses))
        for kind in (torch.int32, torch.float32, torch.bool, torch.uint8):
            agree(mine, other, x, labels.to(kind))
        agree(mine, other, x, labels.int(), ref_emb=x.detach(), ref_labels=labels.double() / 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {"p": 1}, {"p": 3}, {}, {"normalize_embeddings": False},
        {"normalize_embeddings": False, "p": 1}, {"inverted": False},
    ],
    ids=str,
)  # fmt: skip
def test_distances_that_are_dot_products(both, name, options):
    distance = both.distances.DotProductSimilarity
    options = dict(options)
    inverted = options.pop("inverted", True)
    x, labels = data(24, "classes", width=5)
    mine, other = (getattr(o, name)(0.7, distance=distance(**options)) for o in
                   (both.ours, both.losses))  # fmt: skip
    mine.distance.is_inverted = other.distance.is_inverted = inverted
    agree(mine, other, x, labels)


def test_a_temperature_that_is_learned(both):
    x, labels = data(12)
    grads = []
    for owner in (both.ours, both.losses):
        loss = owner.NTXentLoss()
        loss.temperature = torch.nn.Parameter(torch.tensor([0.3]))
        grads.append(torch.autograd.grad(loss(x, labels).sum(), loss.temperature)[0])
    torch.testing.assert_close(*grads)


REDUCERS = {
    "mean": lambda r: r.MeanReducer(),
    "sum": lambda r: r.SumReducer(),
    "non-zero": lambda r: r.AvgNonZeroReducer(),
    "per anchor": lambda r: r.PerAnchorReducer(),
    "per anchor, non-zero": lambda r: r.PerAnchorReducer(reducer=r.AvgNonZeroReducer()),
    "threshold": lambda r: r.ThresholdReducer(low=0.5, high=2.0),
    "class weighted": lambda r: r.ClassWeightedReducer(torch.linspace(0.5, 2, 64)),
    "nothing": lambda r: r.DoNothingReducer(),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("kind", ["pairs", "views", "some", "classes"])
def test_reducers(both, name, reducer, kind):
    reduce = REDUCERS[reducer](both.reducers)
    mine, other = (getattr(o, name)(0.5, reducer=reduce) for o in (both.ours, both.losses))
    x, labels = data(30, kind)
    fused = name == "SupConLoss" or kind in ("pairs", "views")
    if not fused and reducer in ("non-zero", "threshold", "class weighted", "nothing"):
        with pytest.warns(UserWarning, match=r"NTXentLoss: \w+Reducer wants each"):
            mine(x, labels)
    if reducer != "nothing":
        agree(mine, other, x, labels)
        return
    a, b = mine(x, labels)["loss"], other(x, labels)["loss"]
    torch.testing.assert_close(a["losses"], b["losses"])
    assert a["reduction_type"] == b["reduction_type"]
    torch.testing.assert_close(a["indices"], b["indices"])


def test_references_one_by_one(both):
    x, labels = data(10, "none")
    y = torch.randn(10, 16)
    order = torch.randperm(10)
    reducer = both.reducers.AvgNonZeroReducer()
    mine, other = (o.NTXentLoss(reducer=reducer) for o in (both.ours, both.losses))
    agree(mine, other, x, labels, ref_emb=y[order], ref_labels=labels[order])
    agree(mine, other, x, labels, ref_emb=y[order], ref_labels=labels[order] * 2)


def test_what_is_almost_zero_is_dropped_as_there(both):
    """Rows far below rounding do not count in the mean over losses above zero."""
    centres = torch.eye(6)[:, :6].repeat_interleave(2, 0)
    x = torch.cat([centres, torch.randn(4, 6)]).requires_grad_()
    labels = torch.arange(16) // 2
    for name in NAMES:
        mine, other = (
            getattr(o, name)(0.02, reducer=both.reducers.AvgNonZeroReducer(collect_stats=True))
            for o in (both.ours, both.losses)
        )
        agree(mine, other, x, labels, rtol=1e-4)
        assert mine.reducer.num_past_filter == other.reducer.num_past_filter < 16


@pytest.mark.parametrize("name", NAMES)
def test_regularizer_and_statistics(both, name):
    losses = [
        getattr(o, name)(
            0.2, embedding_regularizer=both.regularizers.LpRegularizer(), embedding_reg_weight=0.3,
            collect_stats=True, distance=both.distances.CosineSimilarity(collect_stats=True),
            reducer=both.reducers.MeanReducer(collect_stats=True),
        )
        for o in (both.ours, both.losses)
    ]  # fmt: skip
    x, labels = data(18)
    agree(*losses, x, labels)
    mine, other = losses
    for stat in ("initial_avg_query_norm", "final_avg_ref_norm"):
        assert getattr(mine.distance, stat) == pytest.approx(getattr(other.distance, stat))
    for part in ("loss", "embedding_reg_loss"):
        mine_size = mine.reducer.reducers[part].losses_size
        assert mine_size == other.reducer.reducers[part].losses_size, part
    assert mine._record_these == other._record_these


def test_what_is_not_fused_says_so_once(both):
    x, labels = data(12)
    lp = both.distances.LpDistance()
    powered = both.distances.DotProductSimilarity(power=2)
    everything = both.miners.BatchEasyHardMiner()(x, labels)

    class Own(both.ours.NTXentLoss):
        def _compute_loss(self, *arguments):
            return super()._compute_loss(*arguments)

    for ours, theirs, arguments, reason in (
        ("NTXentLoss", "NTXentLoss", {"distance": lp}, "distance LpDistance is neither"),
        ("SupConLoss", "SupConLoss", {"distance": powered}, "distance has power 2"),
        ("SupConLoss", "SupConLoss", {}, "indices_tuple names the pairs"),
        (Own, "NTXentLoss", {}, "a subclass computes"),
    ):
        kind = ours if isinstance(ours, type) else getattr(both.ours, ours)
        mine, other = kind(**arguments), getattr(both.losses, theirs)(**arguments)
        pairs = everything if "indices" in reason else None
        with pytest.warns(UserWarning, match=reason):
            mine(x, labels, pairs)
        agree(mine, other, x, labels, pairs)  # a second warning would be an error
    with pytest.raises(ValueError, match="labels"):
        both.losses.NTXentLoss()(x)
    with pytest.warns(UserWarning, match="no labels"), pytest.raises(ValueError, match="labels"):
        both.ours.NTXentLoss()(x)
    with pytest.raises(ValueError, match="temperature: got 0"):
        both.ours.NTXentLoss(0)(x, labels)
    with (
        pytest.warns(UserWarning, match="no matrices"),
        pytest.raises(ValueError, match="2D tensor"),
    ):
        both.ours.SupConLoss()(x[:, None], labels)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_self_supervised_wrapper(both, name, symmetric):
    x, y = (torch.randn(13, 8, requires_grad=True) for _ in range(2))
    losses = [
        both.losses.SelfSupervisedLoss(getattr(o, name)(), symmetric=symmetric)
        for o in (both.ours, both.losses)
    ]
    agree(*losses, x, y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrapper", ["theirs", "ours"])
def test_cross_batch_memory(both, name, wrapper):
    owner = both.ours if wrapper == "ours" else both.losses
    mine = owner.CrossBatchMemory(getattr(both.ours, name)(), 8, memory_size=20)
    other = both.losses.CrossBatchMemory(getattr(both.losses, name)(), 8, memory_size=20)
    with warnings.catch_warnings():
        if wrapper == "theirs":
            warnings.simplefilter("ignore")
        for step in range(6):  # wraps around
            x, labels = data(7, width=8)
            a, b = (copy.deepcopy(w) for w in (mine, other))
            agree(mine, other, x, labels)
            assert torch.equal(mine.embedding_memory, other.embedding_memory)
            assert torch.equal(mine.label_memory, other.label_memory)
            mask = torch.arange(7) % 2 == step % 2
            agree(a, b, x, labels, enqueue_mask=mask)


def test_cross_batch_memory_with_a_miner_or_another_loss(both):
    x, labels = data(8, width=8)
    miner = both.miners.MultiSimilarityMiner()
    losses = [
        o.CrossBatchMemory(o.NTXentLoss(), 8, memory_size=20, miner=miner)
        for o in (both.ours, both.losses)
    ]
    with pytest.warns(UserWarning, match="names the pairs"):
        agree(*losses, x, labels)
    losses = [
        o.CrossBatchMemory(both.losses.ContrastiveLoss(), 8, memory_size=20)
        for o in (both.ours, both.losses)
    ]
    agree(*losses, x, labels)
    distance = both.distances.LpDistance()
    losses = [
        o.CrossBatchMemory(o.NTXentLoss(distance=distance), 8, memory_size=20)
        for o in (both.ours, both.losses)
    ]
    with pytest.warns(UserWarning, match="LpDistance"):
        agree(*losses, x, labels)


@pytest.mark.parametrize("name", NAMES)
def test_distributed_wrapper_takes_it(both, name):
    x, labels = data(12)
    wrapped = both.wrapper.DistributedLossWrapper(getattr(both.ours, name)())
    with pytest.warns(UserWarning, match="non-distributed"):
        loss = wrapped(x, labels)
    torch.testing.assert_close(loss, getattr(both.losses, name)()(x, labels))


def ranks_agree(rank, world, folder):
    """The library's wrapper around both, with the rows of all ranks."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    both = libraries()
    torch.manual_seed(rank)
    x, labels = data(10)
    for name in NAMES:
        for efficient in (False, True):
            losses = [
                both.wrapper.DistributedLossWrapper(getattr(o, name)(), efficient=efficient)
                for o in (both.ours, both.losses)
            ]
            agree(*losses, x, labels)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_wrapper_over_ranks(both, tmp_path):
    torch.multiprocessing.spawn(ranks_agree, (2, str(tmp_path)), nprocs=2)


@pytest.mark.parametrize("name", NAMES)
def test_is_the_librarys_class_by_name_and_by_type(both, name):
    mine, other = getattr(both.ours, name), getattr(both.losses, name)
    assert inspect.signature(mine) == inspect.signature(other)
    assert mine.__name__ == name
    assert issubclass(mine, other)
    loss = mine(0.3, reducer=both.reducers.MeanReducer())
    assert loss.temperature == 0.3
    x, labels = data(10)
    loss(x, labels)
    for again in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert torch.equal(again(x, labels), loss(x, labels))
    assert not loss.state_dict()
    assert str(loss).startswith(name)

"""Ranking losses with in-batch negatives against sentence-transformers'."""

import copy
import importlib
import inspect
import itertools
import pickle
import warnings
from types import SimpleNamespace

import pytest
import torch
from compat_cases import library
from torch import distributed, nn

from fastssl.compat._fallback import say_once

WAYS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
DIRECTIONS = [
    ("query_to_doc", *more) for k in range(4) for more in itertools.combinations(WAYS[1:], k)
]
PAIRS = [
    ("MultipleNegativesRankingLoss", {}),
    ("MultipleNegativesSymmetricRankingLoss", {}),
    ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 4}),
    ("CachedMultipleNegativesSymmetricRankingLoss", {"mini_batch_size": 4}),
]


class Embedder(nn.Module):
    """Bags of words: no tokenizer, nothing to download; dropout as an encoder has."""

    config_keys = ()

    def __init__(self, words=50, width=12, dropout=0.0):
        super().__init__()
        self.words = nn.EmbeddingBag(words, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features, **_):
        features["sentence_embedding"] = self.dropout(self.words(features["input_ids"]))
        return features


def libraries():
    """The library, and ours, which needs it."""
    theirs = library("sentence_transformers")
    try:
        losses = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    except ImportError:
        losses = importlib.import_module("sentence_transformers.losses")
    ours = importlib.import_module("fastssl.compat.sentence_transformers")
    return SimpleNamespace(
        ours=ours, theirs=losses, util=theirs.util, model=theirs.SentenceTransformer
    )


@pytest.fixture(scope="module")
def both():
    return libraries()


@pytest.fixture(autouse=True)
def strict(both):
    """What is not expected to warn must not."""
    say_once.cache_clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fastssl")
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def columns(rows, count=2, words=6):
    return [
        {
            "input_ids": torch.randint(0, 50, (rows, words)),
            "attention_mask": torch.ones(rows, words, dtype=torch.long),
        }
        for _ in range(count)
    ]


def losses_of(both, name, dropout=0.0, dtype=torch.float32, **options):
    """Ours and theirs over copies of one model."""
    torch.manual_seed(1)
    model = both.model(modules=[Embedder(dropout=dropout)], device="cpu").to(dtype)
    return [
        getattr(owner, name)(copy.deepcopy(model), **options) for owner in (both.ours, both.theirs)
    ]


def agree(mine, other, features, rtol=1e-5):
    """Loss and gradients of the model's parameters."""
    found = []
    for loss in (mine, other):
        loss.model.zero_grad()
        torch.manual_seed(2)
        value = loss([dict(f) for f in features], torch.empty(0))
        (value * 1.5).backward()
        found.append([value.detach(), *(p.grad for p in loss.model.parameters())])
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item() + 1e-9)
    return found[0][0]


@pytest.mark.parametrize("name, options", PAIRS, ids=[n for n, _ in PAIRS])
@pytest.mark.parametrize("rows", [1, 2, 5, 33])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_values_and_gradients(both, name, options, rows, count):
    for dtype, rtol in ((torch.float32, 2e-5), (torch.float64, 1e-10)):
        agree(*losses_of(both, name, dtype=dtype, **options), columns(rows, count), rtol)


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", PAIRS[2][0]])
@pytest.mark.parametrize("mode", ["joint", "per_direction"])
@pytest.mark.parametrize("directions", DIRECTIONS, ids="+".join)
def test_directions(both, name, mode, directions):
    if mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(directions):
        with pytest.raises(ValueError, match="partition_mode"):
            losses_of(both, name, directions=directions, partition_mode=mode)
        return
    pair = losses_of(both, name, directions=directions, partition_mode=mode)
    for rows, count in ((7, 2), (6, 4)):
        agree(*pair, columns(rows, count), 2e-5)


@pytest.mark.parametrize("name, options", PAIRS, ids=[n for n, _ in PAIRS])
def test_dot_products_and_scales(both, name, options):
    for scale, similarity in ((1, both.util.dot_score), (0.3, both.util.dot_score), (100.0, None)):
        more = {} if similarity is None else {"similarity_fct": similarity}
        agree(*losses_of(both, name, scale=scale, **more, **options), columns(9, 3), 5e-5)


@pytest.mark.parametrize("name, options", PAIRS[2:], ids=[n for n, _ in PAIRS[2:]])
def test_cached_forms_replay_dropout(both, name, options):
    pair = losses_of(both, name, dropout=0.5, **options)
    for loss in pair:
        loss.train()
    agree(*pair, columns(10, 2), 2e-5)
    with torch.no_grad():
        torch.manual_seed(2)
        mine = pair[0](columns(10), torch.empty(0))
    assert not mine.requires_grad


def test_cached_form_is_the_plain_one(both):
    features = columns(11, 3)
    plain, _ = losses_of(both, "MultipleNegativesRankingLoss")
    cached, _ = losses_of(both, "CachedMultipleNegativesRankingLoss", mini_batch_size=3)
    agree(cached, plain, features)


def test_half_precision_is_compared_in_float32(both):
    name = "MultipleNegativesRankingLoss"
    embeddings = [torch.randn(20, 16).bfloat16().requires_grad_() for _ in range(3)]
    mine, other = losses_of(both, name)
    values = [x.compute_loss_from_embeddings(embeddings, None) for x in (mine, other)]
    torch.testing.assert_close(*values)
    grads = [torch.autograd.grad(value, embeddings) for value in values]
    torch.testing.assert_close(*grads, rtol=2e-2, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mine.compute_loss_from_embeddings([x.float() for x in embeddings], None)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", PAIRS[2][0]])
def test_what_is_not_fused_says_so_once(both, name):
    for options, reason in (
        ({"similarity_fct": both.util.euclidean_sim}, "similarity_fct euclidean_sim is neither"),
        ({"hardness_mode": "all_negatives", "hardness_strength": 2.0}, "'all_negatives' weights"),
    ):
        mine, other = losses_of(both, name, **options)
        with pytest.warns(UserWarning, match=f"{name}: .*{reason}"):
            mine(columns(5, 3), torch.empty(0))
        agree(mine, other, columns(5, 3))  # a second warning would be an error
    quiet = losses_of(both, name, hardness_mode="all_negatives")  # of strength 0
    agree(*quiet, columns(5, 3))


@pytest.mark.parametrize("name, options", PAIRS, ids=[n for n, _ in PAIRS])
def test_arguments_configuration_and_pickles(both, name, options):
    mine, other = losses_of(both, name, **options)
    assert mine.get_config_dict() == other.get_config_dict()
    assert mine.citation == other.citation
    theirs = type(other).__init__
    theirs = inspect.signature(getattr(theirs, "__wrapped__", theirs))
    assert [*inspect.signature(type(mine).__init__).parameters] == [*theirs.parameters]
    assert isinstance(mine, getattr(both.theirs, name.replace("Symmetric", "")))
    features = columns(4)
    wanted = mine([dict(f) for f in features], torch.empty(0))
    for again in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert torch.equal(again([dict(f) for f in features], torch.empty(0)), wanted)


def test_errors(both):
    mine, _ = losses_of(both, "MultipleNegativesRankingLoss")
    x = torch.randn(4, 8)
    with pytest.raises(ValueError, match=r"embeddings: got 1 column"):
        mine.compute_loss_from_embeddings([x], None)
    with pytest.raises(ValueError, match=r"embeddings\[2\]: got shape \(3, 8\)"):
        mine.compute_loss_from_embeddings([x, x, x[:3]], None)


def ranks_agree(rank, world, folder, plugins):
    """On each rank, with embeddings of all: values and gradients are theirs."""
    torch.set_num_threads(1)
    for plugin in plugins:  # of pytest's command line
        importlib.import_module(plugin)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    both, name = libraries(), "MultipleNegativesRankingLoss"
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.filterwarnings("error", message="fastssl")
    for directions in (DIRECTIONS[0], DIRECTIONS[2], DIRECTIONS[-1]):
        pair = losses_of(both, name, gather_across_devices=True, directions=directions)
        torch.manual_seed(rank)
        agree(*pair, columns(5, 3), 2e-5)
    pair = losses_of(both, PAIRS[3][0], gather_across_devices=True)
    agree(*pair, columns(6), 2e-5)
    distributed.destroy_process_group()


@pytest.mark.slow
def test_several_ranks(both, tmp_path, request):
    plugins = [p for p in request.config.option.plugins if "no:" not in p]
    torch.multiprocessing.spawn(ranks_agree, (2, str(tmp_path), plugins), nprocs=2)

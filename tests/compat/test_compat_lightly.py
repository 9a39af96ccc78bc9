"""Functions of lightly.models.utils against lightly's, and against plain indexing."""

import copy
import inspect

import pytest
import torch
from compat_cases import agree, library, takes_the_same

from fastssl.compat.lightly import utils

B, S, D, K = 3, 10, 4, 6
WIDE = torch.float64


@pytest.fixture
def theirs():
    return library("lightly.models.utils")


@pytest.fixture
def index():
    return torch.rand(B, S).argsort(1)[:, :K]


def tokens(dtype=WIDE):
    return torch.randn(B, S, D, dtype=dtype)


@pytest.mark.parametrize("name", utils.__all__)
def test_signatures(theirs, name):
    takes_the_same(getattr(utils, name), getattr(theirs, name))
    assert inspect.getdoc(getattr(utils, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, WIDE])
def test_tokens_at_an_index(theirs, index, dtype):
    x, value = tokens(dtype), torch.randn(B, K, D, dtype=dtype)
    token = torch.randn(1, 1, D, dtype=dtype)
    loose = {"rtol": 0, "atol": 0} if dtype != torch.bfloat16 else {"rtol": 2e-2, "atol": 2e-2}
    for name, leaves in (
        ("get_at_index", (x,)),
        ("set_at_index", (x, value)),
        ("mask_at_index", (x, token)),
    ):
        ours, other = (getattr(m, name) for m in (utils, theirs))
        agree(
            lambda x, *more, f=ours: f(x, index, *more),
            lambda x, *more, f=other: f(x, index, *more),
            *leaves,
            **loose,
        )
    assert torch.equal(utils.set_at_index(x, index, 2), theirs.set_at_index(x, index, 2))
    expanded = utils.expand_index_like(index, x)
    assert torch.equal(expanded, theirs.expand_index_like(index, x))
    assert expanded.stride(-1) == 0, "the index is repeated in memory"


def test_tokens_at_an_index_by_plain_indexing(index):
    x, token = tokens(), torch.randn(1, 1, D, dtype=WIDE)
    rows = torch.arange(B).unsqueeze(1)
    assert torch.equal(utils.get_at_index(x, index), x[rows, index])
    wanted = x.clone()
    wanted[rows, index] = token[0, 0]
    assert torch.equal(utils.mask_at_index(x, index, token), wanted)
    value = torch.randn(B, K, D, dtype=WIDE)
    wanted[rows, index] = value
    assert torch.equal(utils.set_at_index(x, index, value), wanted)


def test_what_a_mask_token_replaces_does_not_matter(index):
    x = tokens()
    bad = utils.set_at_index(x, index, float("nan"))
    token = torch.zeros(1, 1, D, dtype=WIDE)
    mask = torch.zeros(B, S, dtype=torch.bool).scatter_(1, index, True)
    for found in (utils.mask_at_index(bad, index, token), utils.mask_bool(bad, mask, token)):
        assert torch.equal(found, utils.mask_at_index(x, index, token))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mask_bool(theirs, dtype):
    mask = (torch.rand(B, S) < 0.5).to(dtype) * (1 if dtype == torch.bool else 3)
    ours, other = (lambda x, t, f=m.mask_bool: f(x, mask, t) for m in (utils, theirs))
    agree(ours, other, tokens(), torch.randn(1, 1, D, dtype=WIDE), rtol=0, atol=0)


def test_class_tokens(theirs):
    token = torch.randn(1, 1, D, dtype=WIDE)
    ours, other = utils.prepend_class_token, theirs.prepend_class_token
    agree(ours, other, tokens(), token, rtol=0, atol=1e-15)
    agree(*(lambda t, f=m.repeat_token: f(t, (B, S)) for m in (utils, theirs)), token)
    assert utils.repeat_token(token, (B, S)).is_contiguous()


def test_patchify(theirs):
    x = torch.randn(2, 3, 24, 24)
    patches = utils.patchify(x, 8)
    assert torch.equal(patches, theirs.patchify(x, 8))
    assert torch.equal(utils.unpatchify(patches, 8), theirs.unpatchify(patches, 8))
    one = utils.patchify(x[:, :1], 8)
    assert torch.equal(utils.unpatchify(one, 8, 1), theirs.unpatchify(one, 8, 1))
    with pytest.raises(ValueError, match="channels: got 3, the patches have 1"):
        utils.unpatchify(one, 8)
    assert utils.patchify(torch.randn(2, 3, 8, 16), 4).shape == (2, 8, 48)


def pooled(source, mask, classes, reduce):
    """One class of one sample at a time."""
    functions = {"mean": torch.mean, "sum": torch.sum, "prod": torch.prod}
    functions |= {"amax": torch.amax, "amin": torch.amin}
    found = [
        functions[reduce](x[:, m == c], -1) if (m == c).any() else x.new_zeros(len(x))
        for x, m in zip(source, mask, strict=True)
        for c in range(classes)
    ]
    return torch.stack(found).view(len(source), classes, -1).transpose(1, 2)


def test_pool_masked(theirs):
    source, mask = torch.randn(B, 5, 6, 7, dtype=WIDE), torch.randint(0, 4, (B, 6, 7))
    ours, other = (lambda x, f=m.pool_masked: f(x, mask, 5) for m in (utils, theirs))
    agree(ours, other, source, rtol=1e-12, atol=1e-15)
    strided = source.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(ours(strided), ours(source))


@pytest.mark.parametrize("reduce", ["mean", "sum", "amax", "amin", "prod"])
def test_pool_masked_by_its_definition(reduce):
    source, mask = torch.randn(B, 5, 6, 7, dtype=WIDE), torch.randint(0, 4, (B, 6, 7))
    wanted = pooled(source, mask, 5, reduce)  # none of class 4
    found = utils.pool_masked(source, mask, 5, reduce)
    torch.testing.assert_close(found, wanted)
    assert not found[..., 4].any()
    assert torch.equal(utils.pool_masked(source[0], mask[0], 5, reduce), found[0])


def test_pool_masked_lets_nan_be_seen():
    source, mask = torch.zeros(1, 2, 2), torch.tensor([[0, 0], [1, 1]])
    source[0, 0, 0] = float("nan")
    assert utils.pool_masked(source, mask, 2).isnan().tolist() == [[True, False]]
    with pytest.raises(ValueError, match="source: got 2 dimensions"):
        utils.pool_masked(source[0], mask, 2)


@pytest.mark.parametrize("dim", [-1, 1, (1, 2)])
def test_normalize_mean_var(theirs, dim):
    ours, other = (lambda x, f=m.normalize_mean_var: f(x, dim) for m in (utils, theirs))
    agree(ours, other, tokens(), rtol=1e-12, atol=1e-12)


def test_update_momentum(theirs):
    student = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7))
    for p in student.parameters():
        torch.nn.init.normal_(p)
    teacher = copy.deepcopy(student)
    for p in teacher.parameters():
        torch.nn.init.normal_(p)
    for m in (0.996, 0.25, 0.0, 1.0):
        ours, other = copy.deepcopy(teacher), copy.deepcopy(teacher)
        utils.update_momentum(student, ours, m)
        theirs.update_momentum(student, other, m)
        pairs = zip(ours.parameters(), other.parameters(), strict=True)
        for mine, their in pairs:
            torch.testing.assert_close(mine, their, rtol=1e-6, atol=1e-7)
            assert mine.requires_grad
            assert mine.grad_fn is None
    same = zip(ours.parameters(), teacher.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in same), "m = 1 changes the teacher"


def test_update_momentum_of_modules_that_differ():
    student = torch.nn.Linear(3, 3).to(torch.bfloat16)
    teacher = torch.nn.Linear(3, 3)
    wanted = 0.9 * teacher.weight.detach() + 0.1 * student.weight.detach().float()
    utils.update_momentum(student, teacher, 0.9)
    torch.testing.assert_close(teacher.weight.detach(), wanted)
    utils.update_momentum(torch.nn.ReLU(), torch.nn.ReLU(), 0.9)
    with pytest.raises(ValueError, match="model_ema: got 0 parameters, model has 2"):
        utils.update_momentum(student, torch.nn.ReLU(), 0.9)


@pytest.mark.parametrize("n, batch, repeat", [(1, 3, 2), (4, 2, 3), (3, 1, 1), (2, 5, 4)])
def test_repeat_interleave_batch(theirs, n, batch, repeat):
    x = torch.randn(n * batch, 3, 2, dtype=WIDE)
    ours, other = (
        lambda x, f=m.repeat_interleave_batch: f(x, batch, repeat) for m in (utils, theirs)
    )
    agree(ours, other, x, rtol=0, atol=1e-14)
    ragged = torch.cat([x, x[:1]]) if batch > 1 else x
    assert torch.equal(ours(ragged), other(ragged))


def test_apply_masks(theirs, index):
    masks = [index, index.flip(1), index.roll(1, 0)]
    for mask in (masks, index):
        ours, other = (lambda x, m=mask, f=lib.apply_masks: f(x, m) for lib in (utils, theirs))
        agree(ours, other, tokens(), rtol=0, atol=1e-14)

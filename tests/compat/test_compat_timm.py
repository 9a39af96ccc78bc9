"""PatchDropout against timm's."""

import pytest
import torch
from compat_cases import library, takes_the_same

from fastssl.compat.timm import PatchDropout, PatchDropoutWithIndices


@pytest.fixture
def theirs():
    return library("timm.layers.patch_dropout")


def numbered(batch, length, width=3):
    """Tokens that say which they are."""
    places = torch.arange(length, dtype=torch.float32).view(1, length, 1)
    return (places + torch.zeros(batch, 1, width)).requires_grad_()


@pytest.mark.parametrize("prob", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("prefix, length", [(0, 16), (1, 197), (5, 12), (1, 11)])
@pytest.mark.parametrize("ordered", [False, True])
def test_counts_and_tokens(theirs, prob, prefix, length, ordered):
    x = numbered(4, length)
    other = theirs.PatchDropoutWithIndices(prob, prefix, ordered)(x)
    kept, indices = PatchDropoutWithIndices(prob, prefix, ordered)(x)
    assert kept.shape == other[0].shape
    assert indices.shape == other[1].shape
    assert indices.dtype == other[1].dtype
    assert kept[:, :prefix, 0].tolist() == [list(range(prefix))] * 4
    assert torch.equal(kept[:, prefix:, 0].long(), indices + prefix)
    assert all(len(set(row)) == len(row) for row in indices.tolist())
    assert not ordered or (indices.diff(dim=1) > 0).all()
    upstream = torch.randn_like(kept)
    (grad,) = torch.autograd.grad(kept, x, upstream)
    places = torch.cat([torch.arange(prefix).expand(4, -1), indices + prefix], 1).unsqueeze(-1)
    wanted = torch.zeros_like(x).scatter(1, places.expand_as(upstream), upstream)
    assert torch.equal(grad, wanted)


def test_without_order_it_is_random():
    _, indices = PatchDropoutWithIndices()(numbered(2000, 9))
    first = torch.bincount(indices[:, 0], minlength=8)
    assert (first - 250).abs().max() < 5 * (2000 * 7 / 64) ** 0.5
    covered = torch.bincount(indices.flatten(), minlength=8)
    assert (covered - 1000).abs().max() < 5 * 500**0.5


def test_draws_follow_torchs_seed():
    drop, x = PatchDropout(), numbered(3, 50)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)


def test_evaluation_and_probability_0():
    x = numbered(2, 9)
    for drop in (PatchDropout().eval(), PatchDropout(0.0)):
        assert drop(x) is x
    for drop in (PatchDropoutWithIndices().eval(), PatchDropout(0.0, return_indices=True)):
        kept, indices = drop(x)
        assert kept is x
        assert indices is None


@pytest.mark.parametrize("name", ["PatchDropout", "PatchDropoutWithIndices"])
def test_signature_and_attributes(theirs, name):
    ours, other = globals()[name], getattr(theirs, name)
    takes_the_same(ours, other)
    mine, their = ours(0.3, 2, True), other(0.3, 2, True)
    for attribute in ("prob", "num_prefix_tokens", "ordered"):
        assert getattr(mine, attribute) == getattr(their, attribute)
    assert not list(mine.state_dict())


@pytest.mark.parametrize("prob", [-0.1, 1, 1.5])
def test_probability_out_of_range(prob):
    with pytest.raises(ValueError, match=r"prob: got .*, must be in \[0, 1\)"):
        PatchDropout(prob)

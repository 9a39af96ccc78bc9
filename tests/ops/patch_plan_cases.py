"""What tests of mask plans share."""

import importlib
import math

import pytest
import torch

IDS = torch.tensor([0, 1, 2, 77, 1 << 31, (1 << 32) + 5, (1 << 62) + 1, -1, -(1 << 40)])
LEAST = 1e-3  # probability; the seeds are fixed, so a test either always passes or never
FIELDS = ("ids_shuffle", "ids_restore", "mask", "keep_lengths")


def lightly(name):
    """A module of lightly; skips where it, or the torchvision that it needs, cannot be imported."""
    try:
        return importlib.import_module(f"lightly.{name}")
    except (ImportError, RuntimeError) as error:
        return pytest.skip(f"lightly: {error}")


def tensors(plan):
    """The tensors of a MaskPlan or a MultiblockPlan."""
    if hasattr(plan, "context"):
        return [plan.targets, *tensors(plan.context)]
    return [x for name in FIELDS if (x := getattr(plan, name)) is not None]


def same(a, b):
    """Whether two plans have the same bits."""
    x, y = tensors(a), tensors(b)
    return len(x) == len(y) and all(torch.equal(p, q) for p, q in zip(x, y, strict=True))


def check(plan, ordered=True):
    """What holds for every plan: a permutation, its inverse, and the mask that follows."""
    batch, length = plan.mask.shape
    places = torch.arange(length).expand(batch, length)
    assert plan.ids_shuffle.dtype == plan.ids_restore.dtype == torch.int64
    assert torch.equal(plan.ids_shuffle.sort(1).values, places)
    assert torch.equal(plan.ids_restore.gather(1, plan.ids_shuffle), places)
    kept = torch.full((batch,), plan.keep) if plan.keep_lengths is None else plan.keep_lengths
    assert torch.equal(plan.mask, plan.ids_restore >= kept.unsqueeze(1))
    assert (kept <= plan.keep).all()
    if ordered:
        down = plan.ids_shuffle.diff(dim=1) < 0
        assert (down.sum(1) <= 1).all()
        assert not down[torch.arange(length - 1) + 1 != kept.unsqueeze(1)].any()


def probability_of(statistic, freedom):
    """Of a chi-square so large or larger (Wilson and Hilferty)."""
    z = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(z / math.sqrt(2))


def chi_square(counts, probabilities):
    """The probability of counts so far from the expected ones, of independent draws."""
    expected = torch.as_tensor(probabilities, dtype=torch.float64) * counts.sum()
    return probability_of(((counts - expected) ** 2 / expected).sum().item(), len(counts) - 1)


def largest_deviation(hits, probability):
    """The largest, in standard deviations, of the mean of 0 or 1 [B, ...] from a probability."""
    sigma = math.sqrt(probability * (1 - probability) / len(hits))
    return ((hits.double().mean(0) - probability).abs() / sigma).max().item()

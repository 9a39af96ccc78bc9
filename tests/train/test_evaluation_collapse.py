import numpy as np
import pytest
import torch
from torch import nn

from fastssl.train.data import Data, Split
from fastssl.train.evaluation import collapse


def with_values(values, count, features, seed=0):
    """A matrix [count, features] of these singular values."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(n, len(values))))[0] for n in (count, features))
    return (left * values) @ right.T


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
@pytest.mark.parametrize("values", [[3.0], [1.0, 1.0, 1.0, 1.0], [5.0, 2.0, 0.5, 0.01]])
def test_rank_me_is_the_formula_of_the_paper(values, shape):
    shares = np.array(values) / sum(values)
    wanted = np.exp(-(shares * np.log(shares)).sum())
    found = collapse.rank_me(with_values(values, *shape).astype(np.float32))
    assert found == pytest.approx(wanted, rel=1e-4)


def test_extremes():
    zeros = np.zeros((6, 3), np.float32)
    assert collapse.rank_me(zeros) == 1 and collapse.deviation(zeros) == 0
    same = np.ones((6, 3), np.float32)
    assert collapse.rank_me(same) == pytest.approx(1)
    assert collapse.deviation(same) == pytest.approx(0, abs=1e-12)
    spread = np.random.default_rng(0).normal(size=(4000, 16))
    assert collapse.deviation(spread) == pytest.approx(1 / 4, rel=0.01)
    assert collapse.rank_me(spread) == pytest.approx(16, rel=0.01)


def test_warns_of_points_and_lines_and_of_nothing_else():
    rng = np.random.default_rng(0)

    def warning(features):
        values = {"rank_me": collapse.rank_me(features), "deviation": collapse.deviation(features)}
        return collapse.warning(values, features.shape[1])

    assert warning(rng.normal(size=(100, 16))) is None
    assert warning(1 + 0.2 * rng.normal(size=(100, 16))) is None
    assert warning(1 + 1e-3 * rng.normal(size=(100, 16))).startswith(
        "features have collapsed to a p"
    )
    line = np.outer(rng.normal(size=100), np.ones(16))
    assert warning(line).startswith("features have collapsed to a line: they fill 1.00 of 16 dir")


def test_online_looks_at_samples_of_all_classes():
    """Also where they are sorted, and always at the same."""
    labels = torch.arange(4).repeat_interleave(50)
    images = (labels * 60).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    images[..., 0, 0] = 200
    split = Split(images, labels)
    data = Data("sorted", tuple("abcd"), split, split)
    seen = []

    class Flat(nn.Flatten):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    values = collapse.online(Flat(), data, "cpu", train=80, test=8)
    assert seen == [80, 8] and values["knn"] == 1.0
    assert collapse.online(Flat(), data, "cpu", train=80, test=8) == values

"""Every loss of the contrastive family against its definition, in every implementation."""

import pytest
import torch
from contrast_loss_cases import (
    CASES,
    LOSSES,
    MEASURED,
    assert_exact,
)

SIZES = [(1, 1), (1, 9), (2, 1), (3, 2), (17, 33), (37, 20)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, size, impl):
    assert_exact(case, impl, *size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_types(case, dtype, impl):
    assert_exact(case, impl, 19, 24, dtype)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reductions(case, reduction, impl):
    assert_exact(case, impl, 11, 20, reduction=reduction)


@pytest.mark.parametrize("case", MEASURED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_metrics(case, dtype, impl):
    assert_exact(case, impl, 23, 12, dtype, return_metrics=True)


TEMPERATURES = [0.01, 0.0289, 0.031, 1.0, 10.0, -0.01, -0.2, -10.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_temperatures(case, temperature, impl):
    assert_exact(case, impl, 13, 24, temperature=temperature, spread=0.3)


@pytest.mark.parametrize("case", LOSSES, ids=str)
def test_raw_similarities(case, impl):
    assert_exact(case, impl, 13, 24, temperature=4.0, normalize=False)

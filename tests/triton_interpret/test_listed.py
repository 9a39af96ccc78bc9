"""The tests that docs/gpu.md names execute the kernels beside which they stand."""

import pytest
from test_gpu_kernels_listed import listed, triton_kernels

LISTED = {k: tests for k, tests in listed().items() if k in triton_kernels()}


@pytest.mark.parametrize("kernel", sorted(LISTED))
def test_a_listed_test_executes_its_kernel(kernel, executed):
    tests = [test for test in LISTED[kernel] if test in executed]
    if not tests:
        pytest.skip("the test has not been run before this one")
    for test in tests:
        assert kernel in executed[test], f"{kernel} is not executed by {test}"

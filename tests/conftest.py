"""What holds for every test: seeds, poisoned memory, the library that must be there."""

import os
import random
from pathlib import Path

# Read by cuBLAS at its first use; deterministic algorithms refuse to run without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent


def pytest_configure(config):
    config.addinivalue_line("markers", "no_poison: leave uninitialised memory as it comes")


def pytest_sessionstart(session):
    if os.environ.get("FASTSSL_REQUIRE"):
        try:
            import fastssl  # noqa: F401
        except ImportError as error:
            pytest.exit(f"FASTSSL_REQUIRE={os.environ['FASTSSL_REQUIRE']}: {error}", returncode=1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(request):
    """Fill what `empty` returns, in C++ too, with NaN: nothing may read what it did not write."""
    if TESTS / "ops" not in request.path.parents or request.node.get_closest_marker("no_poison"):
        yield
        return
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)

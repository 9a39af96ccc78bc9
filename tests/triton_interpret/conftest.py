"""Runs Triton kernels on the CPU: `TRITON_INTERPRET=1 pytest tests/triton_interpret`.

Triton reads the variable when kernels are defined, so these tests need a process of their own; in
any other this folder is not collected. Where a GPU is present the compiled kernels are tested.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"

if not INTERPRET:
    collect_ignore_glob = ["test_*.py"]


def pytest_configure(config):
    config.addinivalue_line("markers", "real_tiles: keeps the tile sizes of the launcher")


def _reason_to_skip() -> str:
    if torch.cuda.is_available():
        return "a GPU is present: tests/cuda runs the compiled kernels"
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    version = tuple(int(x) for x in triton.__version__.split(".")[:2])
    if version < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        # github.com/triton-lang/triton/issues/9171
        return f"triton {triton.__version__}'s interpreter breaks with numpy {np.__version__}"
    return ""


def pytest_collection_modifyitems(items):
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = _reason_to_skip() if here else ""
    if reason:
        for item in here:
            item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: item.path.name == "test_listed.py")  # it looks back at the others


@pytest.fixture(autouse=True, scope="session")
def bfloat16_as_hardware_does():
    """The interpreter multiplies bfloat16's bit patterns and truncates to it; GPUs do neither.

    Products of float16 go through float32 as well: numpy is slow at them.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder as Builder
    from triton.runtime.interpreter import TensorHandle

    cast, dot = Builder.cast_impl, Builder.create_dot

    def rounded_cast(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            wide = torch.from_numpy(np.ascontiguousarray(src.data))
            bits = wide.to(torch.bfloat16).view(torch.uint16).numpy()
            return TensorHandle(bits, tl.bfloat16)
        return cast(self, src, dst_type)

    def widened_dot(self, a, b, d, *options):
        a, b = (cast(self, x, tl.float32) for x in (a, b))
        return dot(self, a, b, d, *options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "cast_impl", rounded_cast)
        patch.setattr(Builder, "create_fp_trunc", rounded_cast)
        patch.setattr(Builder, "create_dot", widened_dot)
        yield


_executed: dict[tuple[str, str], set[str]] = {}


@pytest.fixture
def executed():
    """Names of the kernels that each test, (file, function), has executed so far."""
    return _executed


@pytest.fixture(autouse=True)
def noted(request):
    """Notes the kernels that a test executes."""
    from triton.runtime.interpreter import GridExecutor

    file = request.path.relative_to(Path(__file__).parents[2])
    names = _executed.setdefault((str(file), request.node.originalname), set())
    call = GridExecutor.__call__

    def noting(self, *arguments, **named):
        names.add(self.fn.__name__)
        return call(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridExecutor, "__call__", noting)
        yield

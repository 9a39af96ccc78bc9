"""Operators are tested in every implementation and instruction set that can run here."""

import pytest

from fastssl._library import _C

CAPABILITIES = _C.cpu_capabilities() if _C else []
IMPLEMENTATIONS = ["reference", *(f"cpu-{name}" for name in CAPABILITIES)]


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    """The name for `impl=`, with the instruction set switched for the test's duration."""
    name, _, capability = request.param.partition("-")
    if not capability:
        yield name
        return
    before = _C.cpu_capability()
    _C.use_cpu_capability(capability)
    yield name
    _C.use_cpu_capability(before)

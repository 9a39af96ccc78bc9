"""Registers the Triton kernels for CUDA tensors; they are imported at their first call.

Importing them imports Triton's compiler, which `import fastssl` shall not pay for. Without Triton
nothing is registered, and CUDA tensors go to the reference.
"""

from importlib.util import find_spec

from fastssl._library import LIBRARY


def _forward(*arguments):
    from fastssl.ops.contrast import triton

    return triton.forward(*arguments)


def _backward(*arguments):
    from fastssl.ops.contrast import triton

    return triton.backward(*arguments)


if find_spec("triton") is not None:
    LIBRARY.impl("contrast_forward", _forward, "CUDA")
    LIBRARY.impl("contrast_backward", _backward, "CUDA")

"""Loads the native libraries and holds the operator library.

Nothing fails here when a native library is missing or does not load: the reason is kept, `fastssl
info` prints it, and an implementation that is asked for by name and missing raises.
"""

import functools
import os
import warnings
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec

import torch

LIBRARY = torch.library.Library("fastssl", "DEF")

#: Why a native library is not loaded; empty when it is.
cpu_error = ""
cuda_error = ""

try:
    from fastssl import _C
except ImportError as error:
    _C = None
    cpu_error = str(error)
    warnings.warn(
        f"fastssl's CPU library is not loaded ({error}): CPU tensors take the slow reference",
        stacklevel=2,
    )


def _load_cuda() -> str:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    # Not Path(__file__).parent: an editable install keeps built files apart from the sources.
    for path in files("fastssl").iterdir():
        if path.name.startswith("libfastssl_cuda."):
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                return str(error)
            return ""
    return "not built (nvcc was not found at build time)"


cuda_error = _load_cuda()

_required = os.environ.get("FASTSSL_REQUIRE", "").split(",")
if "cpu" in _required and cpu_error:
    raise ImportError(f"FASTSSL_REQUIRE asks for the CPU library: {cpu_error}")
if "cuda" in _required and cuda_error:
    raise ImportError(f"FASTSSL_REQUIRE asks for the CUDA library: {cuda_error}")


def raw(name: str):
    """The raw operator torch.ops.fastssl.<name>, which says it where a GPU has no memory left.

    Torch's stable interface makes a plain RuntimeError of whatever fails below it; those who catch
    torch.OutOfMemoryError, to go on with less, would not see it.
    """
    operator = getattr(torch.ops.fastssl, name)
    return operator if torch.compiler.is_compiling() else _telling(operator)


@functools.cache
def _telling(operator):
    def call(*arguments):
        try:
            return operator(*arguments)
        except RuntimeError as error:
            if not lacks_memory(error) or not any(_on_gpu(x) for x in arguments):
                raise
            raise torch.OutOfMemoryError(f"{operator}: no memory: {error}") from error

    return call


def lacks_memory(error: RuntimeError) -> bool:
    """Whether a native operator failed where it asked for memory."""
    return '"aten::new_empty"' in str(error) and not isinstance(error, torch.OutOfMemoryError)


def _on_gpu(x) -> bool:
    return isinstance(x, torch.Tensor) and x.is_cuda


def register_triton(op: str, *names: str) -> None:
    """Register `<op>_<name>`, functions of fastssl.ops.<op>.triton, for CUDA tensors.

    The module is imported at their first call: it imports Triton's compiler, which `import fastssl`
    shall not pay for. Without Triton nothing is registered, and CUDA tensors go to the reference.
    """
    if find_spec("triton") is None:
        return

    def launcher(name: str):
        return lambda *arguments: getattr(import_module(f"fastssl.ops.{op}.triton"), name)(
            *arguments
        )

    for name in names:
        LIBRARY.impl(f"{op}_{name}", launcher(name), "CUDA")

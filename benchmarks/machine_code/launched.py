"""The launches of Triton kernels that a launcher makes, caught before they reach a GPU.

A launcher is called with tensors of the meta device, which have shapes and no memory. What it would
launch is kept with all that it is compiled with, so that the model and the tests describe no launch
a second time.
"""

import contextlib
import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from triton.runtime.jit import JITFunction

from benchmarks.machine_code.cards import Card
from benchmarks.machine_code.compiled import Resources, compile_kernel, resources
from benchmarks.machine_code.predict import Kernel, kernel_of

_ELEMENTS = {
    torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip
_OPTIONS = ("num_warps", "num_stages", "maxnreg")
_compiled: dict[tuple, "Compiled"] = {}


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for an architecture, ready to be read."""

    binary: object
    needs: Resources
    kernel: Kernel


@dataclass(frozen=True)
class Launched:
    """A launch: the kernel, how many programs, its arguments by name."""

    function: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, object]
    options: dict[str, int]

    @property
    def name(self) -> str:
        """The kernel's."""
        return self.function.__name__

    @property
    def programs(self) -> int:
        """Thread blocks."""
        return math.prod(self.grid)

    def __getitem__(self, name: str):
        """An argument, or a number that the kernel was compiled with."""
        return self.arguments[name]

    def compiled(self, architecture: int) -> Compiled:
        """As the launcher's just-in-time compiler would compile it for an architecture."""
        pointers, scalars, constants = {}, {}, {}
        for parameter in self.function.params:
            name, value = parameter.name, self.arguments[parameter.name]
            if isinstance(value, torch.Tensor):
                pointers[name] = _ELEMENTS[value.dtype]
            elif parameter.is_constexpr:
                constants[name] = value
            elif isinstance(value, float):
                scalars[name] = "fp32"
            elif value == 1 and not parameter.do_not_specialize:
                constants[name] = 1
            else:
                aligned = value % 16 == 0 and not parameter.do_not_specialize
                width = "i32" if -(2**31) <= value < 2**31 else "i64"
                scalars[name] = width + (":16" if aligned else "")
        parts = (pointers, scalars, constants, self.options)
        key = self.name, architecture, *(tuple(sorted(part.items())) for part in parts)
        if key not in _compiled:
            binary = compile_kernel(
                self.function, pointers, scalars, constants, architecture, **self.options
            )
            needs = resources(binary)
            _compiled[key] = Compiled(binary, needs, kernel_of(binary, needs))
        return _compiled[key]


@contextlib.contextmanager
def _caught(into: list[Launched]) -> Iterator[None]:
    def run(self, *arguments, grid, warmup, **named):
        bound = dict(zip(self.arg_names, arguments, strict=False))
        options = {k: named.pop(k) for k in _OPTIONS if k in named}
        into.append(Launched(self, tuple(grid), {**bound, **named}, options))

    with mock.patch.object(JITFunction, "run", run):
        yield


def launches_of(call: Callable, card: Card, modules: list[types.ModuleType]) -> list[Launched]:
    """What `call` launches on a card.

    Args:
        call: calls a launcher with meta tensors.
        card: the card whose tiles and number of multiprocessors the launcher is told.
        modules: the launchers' modules, which ask for them by the names of nt_xent's launcher.
    """
    found: list[Launched] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_caught(found))
        told = {"architecture_of": card.architecture, "processors_of": card.processors}
        for module in modules:
            for name, value in told.items():
                if hasattr(module, name):
                    stack.enter_context(
                        mock.patch.object(module, name, lambda _, value=value: value)
                    )
        call()
    return found


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")

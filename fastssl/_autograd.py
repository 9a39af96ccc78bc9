"""What calls of operators share: autograd Functions without overhead, code without autocast."""

import functools
from collections.abc import Callable

import torch


def applied(function: type[torch.autograd.Function]) -> Callable:
    """`function.apply`, faster outside of torch.func and torch.compile.

    Function.apply binds default arguments through `inspect` (70 of 100 us a call) before it comes
    to its base class, which is all that a plain call needs.
    """
    plain = super(torch.autograd.Function, function).apply

    def apply(*arguments):
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return function.apply(*arguments)
        return plain(*arguments)

    return apply


def without_autocast(function: Callable) -> Callable:
    """The function in the dtypes it chooses; autocast would round products to half precision."""

    @functools.wraps(function)
    def call(*arguments, **keywords):
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*arguments, **keywords)

    return call

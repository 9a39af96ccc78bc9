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


def no_third_derivative() -> None:
    """In the backward pass of a gradient: raise where its graph is wanted, too."""
    if torch.is_grad_enabled():
        raise RuntimeError("this loss can be differentiated twice, not three times")


def autocast_enabled(x) -> bool:
    """Whether autocast is on where the tensor lives."""
    if not isinstance(x, torch.Tensor) or not torch.amp.is_autocast_available(x.device.type):
        return False
    return torch.is_autocast_enabled(x.device.type)

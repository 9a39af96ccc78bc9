"""The libraries that drop-ins are compared with, where they are installed, and how."""

import importlib
import inspect

import pytest
import torch


def library(name: str):
    """A module of another library, or the test is skipped."""
    try:
        return importlib.import_module(name)
    except (
        ImportError,
        RuntimeError,
    ) as error:  # a torchvision of another build raises RuntimeError
        pytest.skip(f"{name} does not import: {error}")


def takes_the_same(ours, theirs):
    """Ours can be called as theirs: parameters, order, defaults; ours may have more behind."""
    wanted = list(inspect.signature(theirs).parameters.values())
    found = list(inspect.signature(ours).parameters.values())
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    for mine, other in zip(found, wanted, strict=False):
        assert (mine.name, mine.default, mine.kind in named) == (other.name, other.default, True)
    assert len(found) >= len(wanted)
    for more in found[len(wanted) :]:
        assert more.default is not inspect.Parameter.empty, f"{more.name} must not be required"


def gradients(function, *leaves):
    """The function's result and the gradients of its leaves, for an upstream that varies."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    result = function(*leaves)
    upstream = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return result, torch.autograd.grad(result, leaves, upstream)


def agree(ours, theirs, *leaves, **tolerance):
    """Both functions give the same values and gradients."""
    (mine, my_grads), (other, other_grads) = gradients(ours, *leaves), gradients(theirs, *leaves)
    assert mine.dtype == other.dtype
    torch.testing.assert_close(mine, other, **tolerance)
    torch.testing.assert_close(my_grads, other_grads, **tolerance)


def partition(first, second, length: int):
    """Each row of the two index tensors together holds 0 to length - 1 once."""
    assert first.dtype == second.dtype == torch.int64
    both = torch.cat([first, second], 1).sort(1).values
    assert torch.equal(both, torch.arange(length, device=both.device).expand_as(both))

"""What stands for CUDA graphs where there is no GPU."""

from itertools import chain

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Called:
    """Calls the step where a graph would be replayed; the values that it reads are those of now."""

    def __init__(self, device=None):
        self.events = []

    def warm_up(self, function):
        self.events.append("warm-up")
        return function()

    def capture(self, function):
        self.events.append("capture")

        def replay():
            self.events.append("replay")
            return function()

        return replay


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def place(tensor):
    return tensor.untyped_storage().data_ptr()


class Tape(Called, TorchDispatchMode):
    """Repeats operators with the tensors and the numbers that they had when they were recorded.

    As a CUDA graph does: what the host decided, computed or counted meanwhile is not done again.
    Recording has no effect either: what was written to is put back.
    """

    def __init__(self, device=None):
        Called.__init__(self)
        TorchDispatchMode.__init__(self)
        self.calls, self.before, self.made = [], {}, set()
        self.recording = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tensors((args, kwargs))
        for tensor in given:
            where = place(tensor)
            # Batch norm's schema does not say that it writes to its statistics.
            if where not in self.made and where not in self.before:
                storage = tensor.untyped_storage()
                self.before[where] = storage, storage.clone()
        result = function(*args, **kwargs)
        known = {place(tensor) for tensor in given}
        new = [t if place(t) not in known else None for t in tensors(result)]
        self.made.update(place(tensor) for tensor in new if tensor is not None)
        self.calls.append((function, args, kwargs, new, result))
        return result

    def capture(self, function):
        self.events.append("capture")
        self.recording = True
        with self:
            result = function()
        self.recording = False
        for storage, content in self.before.values():
            storage.copy_(content)
        return lambda: self.replayed(result)

    @torch.no_grad()
    def replayed(self, result):
        self.events.append("replay")
        for function, args, kwargs, new, _ in self.calls:
            again = tensors(function(*args, **kwargs))
            for kept, found in zip(new, again, strict=True):
                if kept is not None:
                    kept.copy_(found)
        return result

    @property
    def names(self):
        """The recorded operators."""
        return list(chain(str(function) for function, *_ in self.calls))

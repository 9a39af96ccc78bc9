"""What a forward pass depends on besides its input and parameters, put back to run it again."""

import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

#: Buffers up to this size are taken to change whenever their module trains: batch norm's running
#: statistics change without a trace in the version counter.
_SMALL = 1 << 16


def random_state(devices: Iterable[torch.device]) -> Callable[[], None]:
    """A function that puts the global random generators back to where they are now.

    They are torch's of the CPU and of `devices`, Python's and NumPy's.
    """
    cpu, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    others = []
    for device in devices:
        module = torch.get_device_module(device)
        # Of which there is one, so that its functions take no argument.
        where = () if device.type == "mps" else (device,)
        others.append((module, module.get_rng_state(*where), where))

    def restore() -> None:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)
        for module, state, where in others:
            module.set_rng_state(state, *where)

    return restore


class _Saved(NamedTuple):
    buffer: Tensor
    version: int
    content: Tensor


class Buffers:
    """The buffers of modules in training mode, at moments that can be returned to.

    Copies are made only of what may have changed since the last ones.
    """

    def __init__(self, encoders: Iterable[nn.Module]):
        modules = dict.fromkeys(m for encoder in encoders for m in encoder.modules() if m.training)
        self._places = [(m, k) for m in modules for k, b in m._buffers.items() if b is not None]
        self._known: list[_Saved | None] = [None] * len(self._places)

    def save(self) -> list[_Saved]:
        """The present moment."""
        for i, (module, name) in enumerate(self._places):
            buffer = module._buffers[name]
            if not self._is_known(i, buffer):
                self._known[i] = _Saved(buffer, buffer._version, buffer.detach().clone())
        return list(self._known)

    @torch.no_grad()
    def restore(self, moment: list[_Saved]) -> None:
        """Returns to a moment."""
        for i, ((module, name), saved) in enumerate(zip(self._places, moment, strict=True)):
            known = self._known[i].content is saved.content
            if known and self._is_known(i, module._buffers[name]):
                continue
            if module._buffers[name] is not saved.buffer:
                module._buffers[name] = saved.buffer
            saved.buffer.copy_(saved.content)
            self._known[i] = saved._replace(version=saved.buffer._version)

    def _is_known(self, i: int, buffer: Tensor) -> bool:
        known = self._known[i]
        if known is None or buffer.numel() <= _SMALL:
            return False
        return known.buffer is buffer and known.version == buffer._version

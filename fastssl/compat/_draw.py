"""Where drop-ins take their random numbers from, since the originals take no seed."""

import torch
from torch import Tensor

from fastssl._random import checked_seed


def keyed(
    batch: int,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> dict:
    """Keywords `seed`, `sample_ids` and `device` for the plans of `fastssl.masking`.

    Without a seed the sample ids are consecutive from a number that `generator` draws. They are a
    tensor, not a seed, so that torch.compile need not stop to read them; and the default is the
    generator of the CPU, so that torch.manual_seed gives the same masks on every device and
    nothing waits for a GPU.

    Args:
        batch: B.
        device: of the plan; None for the CPU.
        generator: to draw from; None for torch's own of the CPU.
        seed: instead of drawing, in [0, 2^63); samples are then numbered from 0.

    Raises:
        TypeError: `seed` is no integer.
        ValueError: `seed` is out of range, or given along with `generator`.
    """
    _one_of(generator, seed)
    if seed is not None:
        return {"seed": checked_seed(seed), "device": device}
    first = moved(torch.randint(1 << 62, (1,), **seeded(generator)), device)
    sample_ids = first + torch.arange(batch, device=first.device)
    return {"seed": 0, "sample_ids": sample_ids}


def seeded(generator: torch.Generator | None = None, seed: int | None = None) -> dict:
    """Keywords `generator` and `device` for torch's own random functions; raises as `keyed`."""
    _one_of(generator, seed)
    if seed is not None:
        generator = torch.Generator().manual_seed(checked_seed(seed))
    return {"generator": generator, "device": generator.device if generator else "cpu"}


class Stream:
    """What `keyed` gives, call after call: with a seed, the number of the call is the step.

    Args:
        seed: in [0, 2^63); None to draw from torch's generator of the CPU at each call.
    """

    def __init__(self, seed: int | None = None):
        self.seed = None if seed is None else checked_seed(seed)
        self.step = 0

    def keyed(self, batch: int, device: torch.device | str | None = None) -> dict[str, object]:
        """Keywords for the next plan."""
        keywords = keyed(batch, device, seed=self.seed)
        if self.seed is None:
            return keywords
        self.step += 1
        return keywords | {"step": self.step - 1}


def moved(numbers: Tensor, device: torch.device | str | None) -> Tensor:
    """The tensor on `device`, None for the CPU, without waiting for a GPU."""
    return numbers.to(device="cpu" if device is None else device, non_blocking=True)


def _one_of(generator, seed) -> None:
    if seed is not None and generator is not None:
        raise ValueError("seed: got a seed and a generator, must be one of them")

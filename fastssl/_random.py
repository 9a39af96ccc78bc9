"""Random numbers by counter: a function of (seed, step, sample id), the same on every device.

Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011), keyed by the
seed and counted by (sample id, step, purpose, number of the draw), so that a sample's draw depends
on nothing else. csrc/common/philox.h is the same in C++ and CUDA.
"""

import enum
import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


class Purpose(enum.IntEnum):
    """What a counter's draws are for, as in csrc/common/philox.h: operators share no numbers."""

    AUGMENT = 0
    MASK = 1
    TOKENS = 2
    PRETEXT = 3


def philox(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Four random 32-bit words from a counter of four; words are int64 tensors that broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64, sign bit included
        c0, c1, c2, c3 = (
            (p1 >> 32) & _WORD ^ c1 ^ k0,
            p1 & _WORD,
            (p0 >> 32) & _WORD ^ c3 ^ k1,
            p0 & _WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return [c0, c1, c2, c3]


def words_of(seed: int, step: Tensor, sample_ids: Tensor, purpose: Purpose, number) -> Tensor:
    """Four random words [4, ...] for each sample.

    Args:
        seed: in [0, 2^63).
        step: 0-d int64.
        sample_ids: int64, broadcast against `number`.
        purpose: of the draw.
        number: of the block of four words, an integer or a tensor, below 2^28.
    """
    last = purpose << 28 | number
    if not isinstance(last, Tensor):  # filled in, not copied, which would wait for a GPU
        last = torch.full((), last, dtype=torch.int64, device=sample_ids.device)
    counter = [sample_ids & _WORD, (sample_ids >> 32) & _WORD, step & _WORD, last]
    found = philox(counter, (seed & _WORD, seed >> 32 & _WORD))
    return torch.stack(torch.broadcast_tensors(*found))


def uniform(word: Tensor) -> Tensor:
    """A number in [0, 1), exact in float64."""
    return word.double() * 2.0**-32


def exp_(x: Tensor) -> Tensor:
    """exp(x) in float64 from products and sums alone: libraries differ in the last bit of theirs.

    x = k log 2 + r, with log 2 in two parts so that r is exact enough; a Taylor series for exp(r).
    """
    k = torch.round(x * 1.4426950408889634)
    r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10
    p = torch.full_like(r, 1.0 / math.factorial(13))
    for n in range(12, -1, -1):
        p = p * r
        p = p + 1.0 / math.factorial(n)
    return p * ((k.long() + 1023) << 52).view(torch.float64)


def checked_seed(seed) -> int:
    """The seed itself; raises where it is no integer in [0, 2^63)."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: got {seed!r}, must be an integer")
    if not 0 <= seed < 1 << 63:
        raise ValueError(f"seed: got {seed}, must be in [0, 2^63)")
    return seed


def checked_step(step, device: torch.device, where: str) -> tuple[Tensor | None, int]:
    """(the tensor, 0) of a 0-d int64 tensor on `device`, or (None, the number); inside
    torch.compile always a tensor.

    Raises:
        TypeError: neither an integer nor a tensor.
        ValueError: out of [0, 2^32), or a tensor of another kind or on another device; `where` says
            what decides on the device.
    """
    if isinstance(step, Tensor):
        if step.dim() != 0 or step.dtype != torch.int64:
            got = f"{step.dtype} {tuple(step.shape)}"
            raise ValueError(f"step: got {got}, a tensor must be 0-d int64")
        if step.device != device:
            raise ValueError(f"step: got device {step.device}, must be that of {where}, {device}")
        return step, 0
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"step: got {step!r}, must be an integer or a 0-d int64 tensor")
    if not 0 <= step < 1 << 32:
        raise ValueError(f"step: got {step}, must be in [0, 2^32)")
    if torch.compiler.is_compiling():  # or every step would be compiled anew
        return torch.full((), step, dtype=torch.int64, device=device), 0
    return None, step


def checked_ids(sample_ids, size: int, device: torch.device) -> Tensor:
    """int64 [size] on `device`; 0 to size - 1 for None.

    Raises:
        TypeError: not an int64 tensor.
        ValueError: another shape.
    """
    if sample_ids is None:
        return torch.arange(size, device=device)
    if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64:
        got = getattr(sample_ids, "dtype", type(sample_ids).__name__)
        raise TypeError(f"sample_ids: got {got}, must be an int64 tensor")
    if sample_ids.shape != (size,):
        raise ValueError(f"sample_ids: got shape {tuple(sample_ids.shape)}, must be ({size},)")
    return sample_ids.to(device, non_blocking=True).contiguous()

"""Passes through shared memory's 32 banks, counted from the addresses of a warp's threads.

A pass moves 128 bytes: of 32 threads with 4 bytes each, of 16 with 8, of 8 with 16. Threads of a
pass that want different words of one bank take turns; those that want the same word share it.
(CUDA C++ Programming Guide, "Shared Memory", compute capability 5.x and later.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

BANKS, WORD, WARP = 32, 4, 32


def passes(addresses: Sequence[int | None], width: int) -> int:
    """How many passes an access takes.

    Args:
        addresses: byte addresses of the threads, None for those that do not take part.
        width: bytes of each.
    """
    at_once = WARP * WORD // width
    some = [_turns(addresses[n : n + at_once], width) for n in range(0, WARP, at_once)]
    # Where all that a warp wants fits a pass, one is enough.
    return 1 if _turns(addresses, width) == 1 else sum(some)


def _turns(addresses: Sequence[int | None], width: int) -> int:
    """How many different words the busiest bank is asked for."""
    words: dict[int, set[int]] = {}
    for at in addresses:
        if at is not None:
            for word in range(at // WORD, (at + width) // WORD):
                words.setdefault(word % BANKS, set()).add(word)
    return max((len(x) for x in words.values()), default=0)


@dataclass(frozen=True)
class Access:
    """A warp's access: bytes of each thread, addresses, how often."""

    name: str
    width: int
    addresses: tuple[int | None, ...]
    times: int = 1

    @property
    def passes(self) -> int:
        """What the banks take for it."""
        return self.times * passes(self.addresses, self.width)

    @property
    def least(self) -> int:
        """If no two threads met in a bank."""
        different = {a for a in self.addresses if a is not None}
        return self.times * max(1, -(-len(different) * self.width // (BANKS * WORD)))


def _each(name: str, width: int, place: Callable[[int], int | None], times: int = 1) -> Access:
    return Access(name, width, tuple(place(rank) for rank in range(WARP)), times)


def placed_at(e: int) -> int:
    """levels_team.h's, of number `e` of the target."""
    return e ^ ((e >> 5 & 1) << 2)


def key_place(i: int) -> int:
    """plan_team.h's, of key `i`."""
    return i ^ (-(i >> 4 & 1) & 15)


def levels(dtype: str, place: Callable[[int], int] = placed_at) -> list[Access]:
    """A row of the loss: 16 x 16 pixels of three colours, 8 pixels of each for a thread."""
    count = {"bfloat16": 8, "float32": 4}[dtype]
    found = [
        _each(f"target, written {k}", 16, lambda r, k=k: 4 * place(24 * r + 4 * k))
        for k in range(6)
    ]
    for a in range(24 // count):
        found += [
            _each(
                f"target, read {a}.{q}", 16,
                lambda r, a=a, q=q: 4 * place((r + 32 * a) * count + q),
            )
            for q in range(0, count, 4)
        ]  # fmt: skip
    found.append(_each("moments, written", 16, lambda r: 16 * r if r < 3 else None))
    found.append(_each("moments, read", 16, lambda r: 0 if r < 3 else None, 3))
    found.append(_each("affine, written", 4, lambda r: 16 * r if r < 3 else None, 3))
    found.append(_each("affine, read", 16, lambda r: 0, 3))
    return found


def sort(count: int = 256, threads: int = 128, place: Callable[[int], int] = key_place):
    """The steps of a plan's sort: two keys of 8 bytes read and, at most, both written."""
    found = []
    run = 2
    while run <= count:
        apart = run // 2
        while apart:
            for warp in range(threads // WARP):
                for second in (0, apart):

                    def at(rank, warp=warp, apart=apart, second=second):
                        i = warp * WARP + rank
                        first = (i & ~(apart - 1)) * 2 + (i & (apart - 1))
                        return 8 * place(first + second) if i < count // 2 else None

                    found.append(_each(f"run {run}, apart {apart}", 8, at, 2))
            apart //= 2
        run *= 2
    return found


def last_sums(threads: int = 1024) -> list[Access]:
    """The chunks' sums of 32 columns: each thread writes its own, the first warp reads all."""
    found = [_each("written", 8, lambda r: 8 * r)]
    return found + [_each("read", 8, lambda r, g=g: 8 * (32 * g + r)) for g in range(threads // 32)]


def total(accesses: Sequence[Access]) -> tuple[int, int]:
    """(passes, the least that there could be)."""
    return sum(x.passes for x in accesses), sum(x.least for x in accesses)


def of(kernel: str, dtype: str) -> tuple[int, int] | None:
    """`total` of a kernel: of a row, of a sample's sort, of a warp; None where it has none."""
    if kernel == "levels":
        return total(levels(dtype))
    if kernel == "random_plan":
        return total(sort())
    if kernel == "sum_last":
        return total(last_sums())
    return None

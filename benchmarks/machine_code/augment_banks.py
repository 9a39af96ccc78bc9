"""Passes through shared memory that the augmentation kernel's accesses take, from their addresses.

Shared memory has 32 banks of 4 bytes. A warp's access takes a pass for each different word that one
bank has to give; accesses of 8 and 16 bytes are made by halves and quarters of a warp.
"""

from collections.abc import Callable, Iterator
from statistics import fmean

from benchmarks.machine_code.augment_views import QUAD, quads, taps

WARP, BANKS = 32, 32


def passes(addresses: list[int], width: int) -> int:
    """Of one access of a warp: the byte address of each lane, `width` bytes each."""
    lanes = WARP * 4 // max(width, 4)
    total = 0
    for first in range(0, len(addresses), lanes):
        words: dict[int, set[int]] = {}
        for address in addresses[first : first + lanes]:
            for word in range(address // 4, (address + width - 1) // 4 + 1):
                words.setdefault(word % BANKS, set()).add(word)
        total += max((len(found) for found in words.values()), default=0)
    return total


def warps(threads: int, rows: int, columns: int) -> Iterator[list[tuple[int, int]]]:
    """Items (row, column) of each warp of a team in each round, as `Walk` deals them out."""
    items = rows * columns
    for first in range(0, items, threads):
        for warp in range(first, min(first + threads, items), WARP):
            last = min(warp + WARP, items, first + threads)
            yield [divmod(n, columns) for n in range(warp, last)]


def measured(
    threads: int, rows: int, columns: int, width: int, at: Callable[[int, int], int]
) -> tuple[float, float]:
    """(passes of a warp's access on average, the least that so many bytes take)."""
    found, least = [], []
    for lanes in warps(threads, rows, columns):
        addresses = [at(row, column) for row, column in lanes]
        found.append(passes(addresses, width))
        least.append(max(1, -(-len(set(addresses)) * width // (4 * BANKS))))
    return fmean(found), fmean(least)


def accesses(size: int, threads: int, crop: int, radius: int, step: int) -> dict:
    """Every kind of access in the loops over items of a view of size x size.

    Args:
        size: the view's side.
        threads: of its team.
        crop: the crop's side.
        radius: of the blur.
        step: columns of a strip of the blur.
    """
    _, most = taps(crop, size)
    stride, pitch, wide = most | 1, quads(size) * QUAD, quads(size)
    across, strip = quads(radius) * QUAD, min(step, size)
    scale = crop / size

    def start(y: int) -> int:
        return max(0, int(scale * (y + 0.5) - max(scale, 1.0) + 0.5))

    tile = min(size, 24)
    bands = -(-int(tile * scale + 3) // 4)
    return {
        "rows: taps": measured(threads, bands, size, 8, lambda r, x: 16 * x),
        "rows: weight": measured(threads, bands, size, 4, lambda r, x: 4 * stride * x),
        "rows: store": measured(
            threads, bands, size, 4, lambda r, x: 4 * (12 * r * pitch + x)
        ),
        "columns: taps": measured(threads, tile, wide, 8, lambda y, q: 16 * y),
        "columns: weight": measured(threads, tile, wide, 4, lambda y, q: 4 * stride * y),
        "columns: four sums": measured(
            threads, tile, wide, 16, lambda y, q: 4 * (3 * start(y) * pitch + QUAD * q)
        ),
        "columns: store": measured(threads, tile, wide, 4, lambda y, q: y * size + QUAD * q),
        "sweep: load and store": measured(
            threads, 1, size * size // QUAD, 4, lambda _, n: QUAD * n
        ),
        "blur, rows: load": measured(
            threads, size, quads(strip), 4, lambda y, q: y * size + QUAD * q + across
        ),
        # The compiler makes four stores of a quad's four floats.
        "blur, rows: store": measured(
            threads, size, quads(strip), 4, lambda y, q: 16 * (y * quads(strip) + q)
        ),
        "blur, columns: load": measured(
            threads, quads(size), quads(strip), 16,
            lambda b, q: 16 * (QUAD * b * quads(strip) + q),
        ),
        "blur, columns: store": measured(
            threads, quads(size), quads(strip), 4, lambda b, q: QUAD * b * size + QUAD * q
        ),
        "store: load": measured(threads, 1, size * size // 8, 8, lambda _, n: 8 * n),
    }  # fmt: skip

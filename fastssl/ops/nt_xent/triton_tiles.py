"""Tile sizes of NT-Xent's Triton kernels, and how work is cut into programs.

NT-Xent's own are those that the model of benchmarks/machine_code/ predicts the least time for, of
all that benchmarks/results/nt_xent_sweep.json lists; benchmarks/nt_xent_tiles.py times the best on
a GPU.
"""

import functools
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tile:
    """One kernel's tile: rows x columns, `depth` summed at a time; warps and pipeline stages.

    `resident` is how many programs a processor holds at once, by registers and shared memory
    (NT-Xent's: of the form with a bound, where a kernel has two);
    `registers`, if not 0, is the most that the compiler may give a thread.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    resident: int = 1
    registers: int = 0

    def arguments(self, depth_block: bool = True) -> dict[str, int]:
        """As the kernels take it."""
        sizes = {"BLOCK_M": self.rows, "BLOCK_N": self.columns}
        if depth_block:
            sizes["BLOCK_K"] = self.depth
        if self.registers:
            sizes["maxnreg"] = self.registers
        return {**sizes, "num_warps": self.warps, "num_stages": self.stages}


@dataclass(frozen=True)
class Tiles:
    """The tiles of one operand kind and depth.

    `triangle` is NT-Xent's forward kernel where a bound is known, `forward` every other. `backward`
    keeps the gradient in registers; where it is None, `weights` and `product` are the two that go
    through memory.
    """

    forward: Tile
    backward: Tile | None = None
    weights: Tile | None = None
    product: Tile | None = None
    triangle: Tile | None = None


#: Rows are padded to a multiple of every tile's sides.
ROW_UNIT = 256

#: By compute capability, parts (1: bfloat16 or float16 as they are; 2: float32 as two float16) and
#: padded depth, 512 standing for all beyond 256: where the contrastive family's choice starts. If
#: two programs share a processor, one's exponentials overlap the other's products.
_TILES: dict[tuple[int, int, int], Tiles] = {
    (90, 1, 16): Tiles(Tile(128, 64, 16, 8, 3, 2), Tile(128, 64, 16, 8, 3)),
    (90, 1, 32): Tiles(Tile(128, 64, 32, 8, 3, 2), Tile(128, 64, 32, 8, 3)),
    (90, 1, 64): Tiles(Tile(128, 64, 64, 8, 3, 2), Tile(128, 64, 64, 8, 3)),
    (90, 1, 128): Tiles(Tile(128, 64, 128, 8, 3, 2), Tile(128, 128, 128, 8, 2)),
    (90, 1, 256): Tiles(Tile(128, 64, 256, 8, 2), Tile(128, 64, 256, 8, 2)),
    (90, 1, 512): Tiles(
        Tile(128, 256, 64, 8, 3),
        weights=Tile(128, 128, 64, 8, 3),
        product=Tile(128, 256, 64, 8, 3),
    ),
    (90, 2, 16): Tiles(Tile(128, 64, 16, 8, 3, 2), Tile(128, 64, 16, 8, 3)),
    (90, 2, 32): Tiles(Tile(128, 64, 32, 8, 3, 2), Tile(128, 64, 32, 8, 3)),
    (90, 2, 64): Tiles(Tile(128, 64, 64, 8, 3, 2), Tile(128, 64, 64, 8, 3)),
    (90, 2, 128): Tiles(Tile(128, 64, 128, 8, 2), Tile(128, 64, 128, 8, 2)),
    (90, 2, 512): Tiles(
        Tile(128, 128, 64, 8, 2),
        weights=Tile(128, 128, 64, 8, 2),
        product=Tile(128, 128, 64, 8, 2),
    ),
    (80, 1, 16): Tiles(Tile(128, 64, 16, 8, 3, 2), Tile(128, 64, 16, 8, 2)),
    (80, 1, 32): Tiles(Tile(128, 64, 32, 8, 3, 2), Tile(128, 64, 32, 8, 2)),
    (80, 1, 64): Tiles(Tile(128, 64, 64, 8, 3, 2), Tile(128, 64, 64, 8, 2)),
    (80, 1, 128): Tiles(Tile(128, 64, 128, 8, 3, 2), Tile(64, 64, 128, 4, 2, 2)),
    (80, 1, 256): Tiles(Tile(128, 64, 256, 8, 2), Tile(64, 32, 256, 4, 2)),
    (80, 1, 512): Tiles(
        Tile(128, 128, 64, 8, 3),
        weights=Tile(128, 64, 64, 8, 3),
        product=Tile(128, 128, 64, 8, 3),
    ),
    (80, 2, 16): Tiles(Tile(128, 64, 16, 8, 2), Tile(64, 64, 16, 4, 2)),
    (80, 2, 32): Tiles(Tile(128, 64, 32, 8, 2), Tile(64, 64, 32, 4, 2)),
    (80, 2, 64): Tiles(Tile(128, 64, 64, 8, 2), Tile(64, 32, 64, 4, 2)),
    (80, 2, 128): Tiles(Tile(128, 64, 128, 8, 2), Tile(64, 32, 128, 4, 2, 2)),
    (80, 2, 512): Tiles(
        Tile(128, 64, 32, 8, 2),
        weights=Tile(128, 64, 32, 8, 2),
        product=Tile(64, 128, 32, 8, 2),
    ),
}


#: NT-Xent's own, by the same keys; 64 stands for all up to 64.
_OWN: dict[tuple[int, int, int], dict[str, Tile]] = {
    (90, 1, 64): {
        "triangle": Tile(64, 64, 64, 4, 3, 4, 128),
        "forward": Tile(64, 128, 64, 4, 3, 3, 168),
        "backward": Tile(64, 64, 64, 4, 3, 3, 168),
    },
    (90, 1, 128): {
        "triangle": Tile(64, 128, 128, 4, 3, 2),
        "backward": Tile(64, 64, 128, 4, 2, 3, 168),
    },
    (90, 1, 256): {
        "triangle": Tile(64, 128, 256, 8, 3),
        "forward": Tile(128, 64, 256, 8, 3),
        "backward": Tile(128, 64, 256, 8, 3),
    },
    (90, 1, 512): {"triangle": Tile(128, 128, 64, 8, 3)},
    (90, 2, 64): {
        "triangle": Tile(64, 64, 64, 4, 3, 3),
        "backward": Tile(64, 64, 64, 4, 3, 3, 168),
    },
    (90, 2, 128): {
        "triangle": Tile(64, 128, 128, 4, 3),
        "forward": Tile(128, 64, 128, 8, 3),
        "backward": Tile(128, 64, 128, 8, 3),
    },
    (90, 2, 512): {
        "triangle": Tile(128, 128, 64, 8, 3),
        "forward": Tile(128, 128, 64, 8, 3),
        "weights": Tile(128, 128, 64, 8, 3),
        "product": Tile(128, 128, 64, 8, 3),
    },
    (80, 1, 64): {
        "triangle": Tile(64, 64, 64, 4, 2, 4, 128),
        "forward": Tile(128, 32, 64, 4, 3, 3, 168),
        "backward": Tile(128, 32, 64, 4, 2, 2),
    },
    (80, 1, 128): {
        "triangle": Tile(64, 64, 128, 4, 2, 4, 128),
        "forward": Tile(128, 32, 128, 4, 3, 3, 168),
        "backward": Tile(64, 64, 128, 4, 2, 3),
    },
    (80, 1, 256): {
        "triangle": Tile(64, 64, 256, 4, 2, 2),
        "forward": Tile(128, 64, 256, 8, 3),
        "backward": Tile(64, 64, 256, 4, 2, 2),
    },
    (80, 1, 512): {
        "triangle": Tile(64, 128, 64, 4, 3, 2),
        "weights": Tile(128, 128, 64, 8, 3),
        "product": Tile(128, 256, 64, 8, 3),
    },
    (80, 2, 64): {
        "triangle": Tile(64, 64, 64, 4, 2, 3),
        "forward": Tile(128, 32, 64, 4, 3, 3, 168),
        "backward": Tile(128, 32, 64, 4, 2, 2),
    },
    (80, 2, 128): {
        "triangle": Tile(64, 64, 128, 4, 2, 2),
        "forward": Tile(128, 64, 128, 8, 3),
    },
    (80, 2, 512): {"triangle": Tile(64, 128, 64, 4, 3)},
}


def tiles_for(architecture: int, parts: int, depth: int) -> Tiles:
    """The tiles for compute capability 80 or 90, 1 or 2 parts and a padded depth."""
    found = _TILES.get((architecture, parts, depth))
    return found or _TILES[architecture, parts, 512]


def own_tiles(architecture: int, parts: int, depth: int) -> Tiles:
    """NT-Xent's tiles: `tiles_for` with what was chosen for its own kernels."""
    key = architecture, parts, max(64, depth)
    found = _OWN.get(key) or _OWN[architecture, parts, 512]
    if depth < 64:
        found = {name: replace(tile, depth=depth) for name, tile in found.items()}
    return replace(tiles_for(architecture, parts, depth), **found)


def padded_depth(depth: int) -> int:
    """Columns of a packed row: a power of two up to 256, then a multiple of the products' tiles."""
    if depth > 256:
        return -(-depth // 256) * 256
    return max(16, 1 << (depth - 1).bit_length())


def split_columns(
    blocks: int, rows: int, tile: Tile, processors: int, whole_rows: bool = False
) -> tuple[int, int]:
    """How many programs share a block of rows, and the columns each takes.

    Enough programs for every processor, whole waves of them where possible, and at least two tiles
    of columns each. `whole_rows`: what they add up are rows as long as the operands', not numbers.
    """
    across = -(-rows // tile.columns)
    places = processors * tile.resident
    most = max(1, min(-(-2 * places // blocks), across // 2))
    # A part more is written and read again, which takes about as long as so many tiles.
    part = 0.0
    if whole_rows:
        most = max(most, min(4, across // 64))
        part = 1 + 3 * rows / (tile.rows * tile.columns * tile.resident)

    def idle(splits: int) -> float:
        per = -(-across // splits)
        waves = -(-blocks * splits // places)
        return waves * (per + 1) + splits * part  # a program's start costs about a tile

    splits = min(range(1, most + 1), key=idle)
    per = -(-across // splits)
    return -(-across // per), per * tile.columns


#: The most partial sums that a row of the triangular forward has.
MOST_PARTS = 160


@functools.lru_cache(maxsize=256)
def share_triangle(rows: int, tile: Tile, processors: int) -> tuple[int, int]:
    """Groups of columns' blocks and bands of rows' blocks: one program for each pair.

    What takes the program with most to do the least time; of equals, the fewest programs.
    """
    across = -(-rows // tile.columns)
    places = processors * tile.resident

    def time(bands: int) -> tuple[float, int]:
        groups = min(across, max(1, places // bands), MOST_PARTS - bands)
        waves = -(-groups * bands // places)
        adding = (groups + bands) * rows / 2**20  # the parts, in tiles' time
        return waves * most_tiles(rows, tile, groups, bands) + adding, groups * bands

    bands = [1 << i for i in range(7) if 1 << i <= -(-rows // tile.rows)]
    best = min(bands, key=time)
    return min(across, max(1, places // best), MOST_PARTS - best), best


def most_tiles(rows: int, tile: Tile, groups: int, bands: int, start: int = 2) -> int:
    """Tiles of the program that has most, each block of columns counting as `start` more."""
    across = -(-rows // tile.columns)
    tiles = [0] * groups
    for at in range(across):
        turn, place = divmod(at, groups)
        above = -(-min((across - at) * tile.columns, rows) // tile.rows)
        tiles[place if turn % 2 == 0 else groups - 1 - place] += -(-above // bands) + start
    return max(tiles)


def chunk_rows(tiles: Tiles, depth: int, padded: int, processors: int) -> int:
    """Rows whose weights are kept at a time: one wave of the product's programs."""
    weigh, multiply = tiles.weights, tiles.product
    across = -(-depth // multiply.columns)
    whole = max(1, weigh.rows // multiply.rows)  # blocks that a tile of weights covers
    step = -(-max(1, processors // across) // whole) * whole
    return min(padded, step * multiply.rows)

"""Tile sizes of NT-Xent's Triton kernels, and how work is cut into programs.

Sizes were chosen from ahead-of-time compilation for sm_80 and sm_90: no spilled register where one
is avoidable, shared memory within both; benchmarks/nt_xent_resources.py prints the resources.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One kernel's tile: rows x columns, `depth` summed at a time; warps and pipeline stages.

    `resident` is how many programs a processor holds at once, by registers and shared memory.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    resident: int = 1

    def arguments(self, depth_block: bool = True) -> dict[str, int]:
        """As the kernels take it."""
        sizes = {"BLOCK_M": self.rows, "BLOCK_N": self.columns}
        if depth_block:
            sizes["BLOCK_K"] = self.depth
        return {**sizes, "num_warps": self.warps, "num_stages": self.stages}


@dataclass(frozen=True)
class Tiles:
    """The tiles of one operand kind and depth.

    `backward` is the kernel that keeps the gradient in registers; where it is None, `weights` and
    `product` are the two that go through memory.
    """

    forward: Tile
    backward: Tile | None = None
    weights: Tile | None = None
    product: Tile | None = None


#: Rows are padded to a multiple of every tile's sides.
ROW_UNIT = 256

#: By compute capability, parts (1: bfloat16 or float16 as they are; 2: float32 as two float16) and
#: padded depth, 512 standing for all beyond 256. Where two programs share a processor, one's
#: exponentials overlap the other's products.
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
    (80, 2, 128): Tiles(Tile(128, 64, 128, 8, 2), Tile(64, 32, 128, 8, 2)),
    (80, 2, 512): Tiles(
        Tile(128, 64, 32, 8, 2),
        weights=Tile(128, 64, 32, 8, 2),
        product=Tile(64, 128, 32, 8, 2),
    ),
}


def tiles_for(architecture: int, parts: int, depth: int) -> Tiles:
    """The tiles for compute capability 80 or 90, 1 or 2 parts and a padded depth."""
    found = _TILES.get((architecture, parts, depth))
    return found or _TILES[architecture, parts, 512]


def padded_depth(depth: int) -> int:
    """Columns of a packed row: a power of two up to 256, then a multiple of the products' tiles."""
    if depth > 256:
        return -(-depth // 256) * 256
    return max(16, 1 << (depth - 1).bit_length())


def split_columns(blocks: int, rows: int, tile: Tile, processors: int) -> tuple[int, int]:
    """How many programs share a block of rows, and the columns each takes.

    Enough programs for every processor, whole waves of them where possible, and at least two tiles
    of columns each.
    """
    across = -(-rows // tile.columns)
    places = processors * tile.resident
    most = max(1, min(-(-2 * places // blocks), across // 2))

    def idle(splits: int) -> float:
        per = -(-across // splits)
        waves = -(-blocks * splits // places)
        return waves * (per + 1)  # a program's start costs about a tile

    splits = min(range(1, most + 1), key=idle)
    per = -(-across // splits)
    return -(-across // per), per * tile.columns


def chunk_rows(tiles: Tiles, depth: int, padded: int, processors: int) -> int:
    """Rows whose weights are kept at a time: one wave of the product's programs."""
    weigh, multiply = tiles.weights, tiles.product
    across = -(-depth // multiply.columns)
    whole = max(1, weigh.rows // multiply.rows)  # blocks that a tile of weights covers
    step = -(-max(1, processors // across) // whole) * whole
    return min(padded, step * multiply.rows)

"""Tile sizes of the family's Triton kernels: NT-Xent's, but where a policy needs more registers.

Chosen from ahead-of-time compilation alone, as those are; benchmarks/nt_xent_resources.py prints
the resources.
"""

from dataclasses import replace

from fastssl.ops.contrast.pairs import SIGMOID, SOFTMAX
from fastssl.ops.nt_xent.triton_tiles import Tile, Tiles, tiles_for

#: By compute capability, parts and padded depth: tiles of the kernel that keeps the gradient in
#: registers where rows and columns have statistics, where labels or windows are compared, and where
#: both is so and exponentials are not bounded.
_BACKWARD: dict[tuple[int, int, int], tuple[Tile, Tile, Tile]] = {
    (90, 1, 64): (Tile(128, 64, 64, 8, 3), Tile(128, 64, 64, 8, 3), Tile(128, 32, 64, 8, 3)),
    (90, 1, 128): (
        Tile(128, 64, 128, 8, 2),
        Tile(128, 64, 128, 8, 2),
        Tile(128, 32, 128, 8, 2),
    ),
    (80, 1, 128): (
        Tile(64, 64, 128, 4, 2, 2),
        Tile(64, 32, 128, 4, 2, 2),
        Tile(64, 32, 128, 4, 2, 2),
    ),
}


def family_tiles(
    architecture: int, parts: int, depth: int, kind: int, both: bool, bounded: bool, window: bool
) -> Tiles:
    """The tiles for compute capability 80 or 90, 1 or 2 parts, a padded depth and a policy.

    `kind` is sum_pairs' own; `both`: rows and columns have statistics.
    """
    tiles = tiles_for(architecture, parts, depth)
    heavy = window or kind not in (SOFTMAX, SIGMOID)
    if heavy:
        tiles = replace(tiles, forward=replace(tiles.forward, resident=1))
    wider = _BACKWARD.get((architecture, parts, depth))
    if wider and (heavy or both):
        tiles = replace(tiles, backward=wider[0 if not heavy else 1 if bounded else 2])
    return tiles

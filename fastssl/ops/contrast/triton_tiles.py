"""Tile sizes of the family's Triton kernels: NT-Xent's first ones, but where a policy wants others.

Those at D = 128 and beyond 256 were chosen from benchmarks/results/contrast_sweep.json, times that
the model of benchmarks/machine_code/ predicts: one tile for several losses, not the best of each.
multiply_turned spills with some of them, up to 168 bytes a thread. The others avoid it.
"""

from dataclasses import replace

from fastssl.ops.contrast.pairs import SIGMOID, SOFTMAX
from fastssl.ops.nt_xent.triton_tiles import Tile, Tiles, tiles_for

#: By compute capability, parts and padded depth, 512 standing for all beyond 256: for every policy;
#: where columns have statistics, softplus or not; and where labels or windows are compared.
_ALL: dict[tuple[int, int, int], dict[str, Tile]] = {
    (80, 1, 128): {"forward": Tile(128, 32, 128, 4, 3, 3)},
    (80, 1, 512): {"forward": Tile(128, 128, 64, 4, 3, 2), "product": Tile(256, 128, 64, 8, 3)},
}
_OTHER: dict[tuple[int, int, int], dict[str, Tile]] = {
    (90, 1, 128): {"backward": Tile(64, 64, 128, 4, 3, 2)},
    (80, 1, 128): {"backward": Tile(64, 64, 128, 4, 3, 2)},
    (80, 1, 512): {"weights": Tile(128, 128, 64, 8, 3)},
}
_SIGMOID: dict[tuple[int, int, int], dict[str, Tile]] = {
    (90, 1, 128): {"backward": Tile(64, 32, 128, 4, 2, 4)},
    (90, 1, 512): {"weights": Tile(256, 128, 64, 8, 3)},
    (80, 1, 128): {"backward": Tile(64, 64, 128, 4, 3, 2)},
    (80, 1, 512): {"weights": Tile(64, 128, 64, 4, 3)},
}
_HEAVY: dict[tuple[int, int, int], dict[str, Tile]] = {
    (90, 1, 64): {"backward": Tile(128, 32, 64, 8, 3)},
    (90, 1, 128): {"backward": Tile(64, 32, 128, 4, 3, 2)},
    (90, 1, 256): {"backward": Tile(128, 32, 256, 8, 2)},
    (90, 1, 512): {"forward": Tile(128, 128, 64, 8, 3), "weights": Tile(128, 64, 64, 8, 3)},
    (90, 2, 128): {"backward": Tile(128, 32, 128, 8, 2)},
    (80, 1, 128): {"backward": Tile(64, 32, 128, 4, 2, 2)},
    (80, 1, 512): {"forward": Tile(64, 128, 64, 4, 3), "weights": Tile(128, 128, 64, 8, 3)},
}


def family_tiles(
    architecture: int, parts: int, depth: int, kind: int, other: bool, window: bool
) -> Tiles:
    """The tiles for compute capability 80 or 90, 1 or 2 parts, a padded depth and a policy.

    `kind` is sum_pairs' own; `other`: columns have statistics.
    """
    key = architecture, parts, depth if depth <= 256 else 512
    tiles = replace(tiles_for(architecture, parts, depth), **_ALL.get(key, {}))
    if window or kind not in (SOFTMAX, SIGMOID):
        tiles = replace(tiles, **_HEAVY.get(key, {}))
        return replace(tiles, forward=replace(tiles.forward, resident=1))
    if kind == SIGMOID:
        return replace(tiles, **_SIGMOID.get(key, {}))
    return replace(tiles, **_OTHER.get(key, {})) if other else tiles

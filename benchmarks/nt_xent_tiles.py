"""Times other tiles of NT-Xent's Triton kernels on this GPU: `python -m benchmarks.nt_xent_tiles`.

The launcher's table was chosen from compiled resources alone; this says what a GPU thinks of it.
Every tile's results are compared with those of the launcher's own.
"""

import argparse
import json
import sys

import torch

from benchmarks.gpu_check import TEMPERATURE, difference, views, with_gradients
from benchmarks.gpu_measure import milliseconds
from fastssl.ops.nt_xent import nt_xent, triton, triton_tiles
from fastssl.ops.nt_xent.triton_tiles import Tile, Tiles

#: Rows, columns, warps, stages, resident programs; the depth is the problem's.
CANDIDATES = {
    "forward": [
        (128, 64, 8, 3, 2), (128, 64, 8, 2, 2), (128, 128, 8, 2, 1), (128, 128, 8, 3, 1),
        (128, 128, 4, 2, 2), (64, 128, 4, 2, 2), (128, 256, 8, 2, 1),
    ],
    "backward": [
        (128, 128, 8, 2, 1), (128, 128, 8, 3, 1), (128, 64, 8, 3, 1), (128, 64, 8, 2, 1),
        (64, 64, 4, 3, 2), (64, 64, 4, 2, 2), (64, 128, 4, 2, 2), (128, 64, 4, 3, 2),
    ],
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--depth", type=int, default=128, help="at most 256, float32 128")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no NVIDIA GPU: nothing to measure", file=sys.stderr)
        return 1
    z0, z1 = views(arguments.rows, arguments.depth, arguments.dtype)
    run = with_gradients(nt_xent)
    expected = run(z0, z1)
    depth = triton_tiles.padded_depth(arguments.depth)
    own = triton_tiles.tiles_for(90, 2 if arguments.dtype == "float32" else 1, depth)
    if own.backward is None:
        parser.error(f"--depth: {depth} goes through memory")
    for kernel, candidates in CANDIDATES.items():
        for rows, columns, warps, stages, resident in candidates:
            tile = Tile(rows, columns, depth, warps, stages, resident)
            tiles = {"forward": own.forward, "backward": own.backward, kernel: tile}
            triton.tiles_for = lambda *_, tiles=tiles: Tiles(**tiles)
            entry = {"kernel": kernel, "tile": [rows, columns, warps, stages, resident]}
            try:
                assert difference(run(z0, z1), expected) < 1e-2
                both = milliseconds(lambda: run(z0, z1), budget=1)[0]
                forward = milliseconds(
                    lambda: nt_xent(z0.detach(), z1.detach(), TEMPERATURE), budget=0.5
                )[0]
                entry |= {"ms": round(both, 3), "forward_ms": round(forward, 3)}
            except Exception as error:  # a tile that does not fit shall not cost the rest
                entry["error"] = f"{type(error).__name__}: {str(error)[:200]}"
            print(json.dumps(entry), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

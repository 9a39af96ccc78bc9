"""Times other tiles of NT-Xent's Triton kernels on this GPU: `python -m benchmarks.nt_xent_tiles`.

The launcher's table was chosen from predictions, which benchmarks/results/nt_xent_sweep.json lists;
this says what a GPU thinks of the best of them. Every tile's results are compared with those of the
launcher's own.
"""

import argparse
import json
import sys
from dataclasses import replace
from unittest import mock

import torch

from benchmarks.gpu_measure import difference, milliseconds
from benchmarks.gpu_nt_xent import TEMPERATURE, views, with_gradients
from benchmarks.machine_code.sweep import best, load, tile_of
from fastssl.ops.nt_xent import nt_xent, triton
from fastssl.ops.nt_xent.triton_tiles import Tiles, own_tiles, padded_depth


def tuning_set(architecture: int, parts: int, depth: int, count: int) -> list[tuple[str, dict]]:
    """The candidates of each kernel that are worth a measurement, best first."""
    found: dict[str, list[dict]] = {}
    for line in load():
        if (line["arch"], line["parts"], line["depth"]) == (architecture, parts, depth):
            found.setdefault(line["kernel"], []).append(line)
    return [(name, line) for name, lines in found.items() for line in best(lines, count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--depth", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--count", type=int, default=4, help="tiles of each kernel")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no NVIDIA GPU: nothing to measure", file=sys.stderr)
        return 1
    z0, z1 = views(arguments.rows, arguments.depth, arguments.dtype)
    architecture = triton.architecture_of(z0)
    parts, depth = 2 if arguments.dtype == "float32" else 1, padded_depth(arguments.depth)
    own, run = own_tiles(architecture, parts, depth), with_gradients(nt_xent)
    expected = run(z0, z1)

    def measured(name: str, tiles: Tiles) -> dict:
        # Without a bound the other forward kernel runs; a tensor as temperature has none.
        t = torch.tensor(TEMPERATURE, device=z0.device) if name == "forward" else TEMPERATURE
        with mock.patch.object(triton, "own_tiles", lambda *_: tiles):
            off = difference(run(z0, z1), expected)
            assert off < 1e-2, f"differs by {off:.2g}"
            both = milliseconds(lambda: run(z0, z1), budget=1)[0]
            forward = milliseconds(lambda: nt_xent(z0.detach(), z1.detach(), t), budget=0.5)[0]
        return {"ms": round(both, 3), "forward_ms": round(forward, 3)}

    tried = [(name, own, {"tile": "the launcher's"}) for name in ("triangle", "forward")]
    for name, line in tuning_set(architecture, parts, depth, arguments.count):
        shown = {"tile": line["tile"], "clocks": line["clocks"]}
        tried.append((name, replace(own, **{name: tile_of(line)}), shown))
    for name, tiles, shown in tried:
        entry = {"kernel": name, **shown}
        try:
            entry |= measured(name, tiles)
        except Exception as error:  # a tile that does not fit shall not cost the rest
            entry["error"] = f"{type(error).__name__}: {str(error)[:200]}"
        print(json.dumps(entry), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

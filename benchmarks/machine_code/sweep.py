"""Tiles of NT-Xent's matrix kernels, compiled and predicted.

`python -m benchmarks.machine_code.sweep` compiles every candidate ahead of time and simulates its
main loop (`simulate.steady`) with as many programs as a multiprocessor holds.
benchmarks/results/nt_xent_sweep.json keeps them all, one on a line; what is there already for the
same version of Triton and the same kernel is not compiled again.
"""

import argparse
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import triton

from benchmarks.machine_code import launches_nt_xent
from benchmarks.machine_code.cards import CARDS
from benchmarks.machine_code.flow import Path as Way
from benchmarks.machine_code.launched import Compiled
from benchmarks.machine_code.predict import Kernel
from benchmarks.machine_code.simulate import steady
from benchmarks.machine_code.units import TENSOR
from fastssl.ops.nt_xent import triton as launcher
from fastssl.ops.nt_xent import triton_backward, triton_forward, triton_triangle
from fastssl.ops.nt_xent.triton_tiles import Tile, own_tiles

RESULTS = Path(__file__).parents[1] / "results" / "nt_xent_sweep.json"
KERNELS = {
    "triangle": triton_triangle.sum_triangle,
    "forward": triton_forward.sum_exponentials,
    "backward": triton_backward.accumulate_gradient,
    "weights": triton_backward.write_gradient_weights,
    "product": triton_backward.multiply_weights,
}
_CARDS = {90: CARDS["H200"], 80: CARDS["A100"]}
_ROWS = 65536
#: 1 part is bfloat16; float16 has the same instructions at the same rates. 2 parts are float32.
DEPTHS = (64, 128, 256, 512, 768)
#: Rows, columns, warps, stages, most registers; whole rows on the chip.
_WHOLE = {
    ("triangle", 90): [
        (64, 128, 4, 3, 0), (64, 128, 4, 3, 168), (64, 128, 8, 3, 128), (128, 128, 8, 3, 0),
        (64, 64, 4, 3, 128), (64, 128, 4, 2, 0), (64, 128, 8, 3, 0), (64, 64, 4, 3, 0),
    ],
    ("triangle", 80): [
        (64, 128, 4, 2, 0), (64, 64, 4, 2, 128), (128, 64, 8, 2, 128), (64, 128, 8, 2, 128),
        (64, 64, 4, 2, 0),
    ],
    ("forward", 90): [
        (128, 64, 8, 3, 0), (128, 64, 8, 2, 0), (128, 128, 8, 3, 0), (64, 128, 4, 3, 168),
        (128, 64, 4, 3, 168),
    ],
    ("forward", 80): [
        (128, 64, 8, 3, 0), (64, 64, 4, 2, 128), (128, 32, 4, 3, 168),
    ],
    ("backward", 90): [
        (64, 64, 4, 3, 168), (64, 64, 4, 2, 168), (128, 64, 8, 3, 0), (128, 64, 8, 3, 128),
        (128, 128, 8, 3, 0), (128, 32, 4, 3, 0), (64, 32, 4, 3, 168),
    ],
    ("backward", 80): [
        (64, 64, 4, 2, 0), (64, 32, 4, 2, 0), (128, 32, 4, 2, 0), (128, 64, 8, 2, 0),
    ],
}  # fmt: skip
#: Rows, columns, columns summed at a time, warps, stages: rows are read in chunks.
_CHUNKED = {
    "triangle": [
        (128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (64, 128, 64, 4, 3), (128, 64, 32, 8, 2),
    ],
    "forward": [(128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 64, 32, 8, 2)],
    "weights": [
        (128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (128, 128, 64, 4, 3), (128, 64, 32, 8, 2),
    ],
    "product": [(128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (64, 128, 32, 8, 2)],
}  # fmt: skip


def candidates(name: str, architecture: int, parts: int, depth: int) -> list[Tile]:
    """What is tried for a kernel: tiles whose operands fit into shared memory."""
    found = []
    if depth <= 256:
        tried = _WHOLE.get((name, architecture), [])
        found = [Tile(m, n, depth, w, s, registers=r) for m, n, w, s, r in tried]
    if depth > 256 or (depth == 256 and (parts == 2 or name == "triangle")):
        found += [Tile(*tile) for tile in _CHUNKED.get(name, [])]

    def fits(tile: Tile) -> bool:
        whole = tile.depth == depth
        moving = tile.columns if name == "forward" or name == "backward" else tile.rows
        moving = moving if whole else tile.rows + tile.columns
        still = tile.rows + tile.columns - moving
        values = still * tile.depth + moving * tile.depth * tile.stages
        return 2 * parts * values <= _CARDS[architecture].shared_of_program

    def holds(tile: Tile) -> bool:  # the gradient's part of the registers
        return name != "backward" or tile.rows * depth // (32 * tile.warps) <= 128

    return [tile for tile in found if fits(tile) and holds(tile)]


def compiled_as(name: str, tile: Tile, architecture: int, parts: int, depth: int) -> Compiled:
    """A kernel with a tile, as the launcher has it compiled; `forward` is for a learned number."""
    dtype = "float32" if parts == 2 else "bfloat16"
    call = launches_nt_xent.call(_ROWS, depth, dtype, learned=name == "forward")
    tiles = replace(own_tiles(architecture, parts, depth), **{name: tile})
    with mock.patch.object(launcher, "own_tiles", lambda *_: tiles):
        launched = call.launched(_CARDS[architecture])
    wanted = KERNELS[name].__name__
    return next(x for x in launched if x.name == wanted).compiled(architecture)


def _has(kernel: Kernel, loop, names: tuple[str, ...]) -> bool:
    return any(i.name in names for i in Way(kernel.flow, {}).body(loop))


def clocks(name: str, tile: Tile, kernel: Kernel, architecture: int, depth: int):
    """(clocks that a multiprocessor takes for 1,000 elements of A or S, programs, the limiter)."""
    card = _CARDS[architecture]
    resident = kernel.resident(card)
    matrix = [x for x in kernel.flow.all_loops() if not x.inner and _has(kernel, x, TENSOR)]
    loop, trips = (matrix[0] if matrix else None), {}  # loops for exceptions come after
    elements = tile.rows * tile.columns
    if name == "product":
        elements = tile.rows * tile.depth * tile.columns / depth
    elif loop and tile.depth < depth and not _has(kernel, loop, ("MUFU",)):
        # A loop over chunks of rows that the compiler has not unrolled into that over tiles.
        trips = {loop.header: -(-depth // tile.depth)}
        loop = kernel.around(loop)
    if loop is None or name == "weights":  # one tile is all that a program does
        body = Way(kernel.flow, trips).trace()
    else:
        body = Way(kernel.flow, trips).body(loop)
    each = steady(lambda n: body * n, card, resident, kernel.warps, True)[1]
    return 1000 * each.clocks / (resident * elements), resident, each.limiter


def evaluate(name: str, tile: Tile, architecture: int, parts: int, depth: int) -> dict:
    """One line of the results."""
    entry = {
        "kernel": name, "arch": architecture, "parts": parts, "depth": depth,
        "tile": [tile.rows, tile.columns, tile.depth, tile.warps, tile.stages, tile.registers],
    }  # fmt: skip
    try:
        compiled = compiled_as(name, tile, architecture, parts, depth)
        needs = compiled.needs
        entry |= {"registers": needs.registers, "spills": needs.stack, "shared": needs.shared}
        if needs.shared > _CARDS[architecture].shared_of_program:
            return {**entry, "error": "shared memory"}
        cost, resident, limiter = clocks(name, tile, compiled.kernel, architecture, depth)
        return {**entry, "resident": resident, "clocks": round(cost, 1), "limiter": limiter}
    except Exception as error:  # a tile that cannot be compiled shall not cost the rest
        return {**entry, "error": f"{type(error).__name__}: {str(error)[:80]}"}


def best(entries: list[dict], count: int = 3) -> list[dict]:
    """The fastest candidates of one kernel without a spill; with the least, where all spill."""
    ran = [x for x in entries if "clocks" in x]
    least = min((x["spills"] for x in ran), default=0)
    return sorted((x for x in ran if x["spills"] == least), key=lambda x: x["clocks"])[:count]


def tile_of(entry: dict) -> Tile:
    """The tile of a line."""
    rows, columns, depth, warps, stages, registers = entry["tile"]
    return Tile(rows, columns, depth, warps, stages, entry.get("resident", 1), registers)


def load(path: Path = RESULTS) -> list[dict]:
    """The lines of the last sweep."""
    return json.loads(path.read_text())["candidates"] if path.exists() else []


def _sources() -> dict[str, str]:
    return {name: kernel.cache_key[:16] for name, kernel in KERNELS.items()}


def _key(entry: dict) -> tuple:
    return *(entry[k] for k in ("kernel", "arch", "parts", "depth")), tuple(entry["tile"])


def _write(entries: list[dict]) -> None:
    head = {
        "triton": triton.__version__,
        "sources": _sources(),
        "clocks": "of a multiprocessor for 1,000 elements of S or A",
    }
    text = json.dumps(head, indent=1)[:-2] + ',\n "candidates": [\n  '
    lines = ",\n  ".join(json.dumps(x) for x in sorted(entries, key=_key))
    RESULTS.write_text(text + lines + "\n ]\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[90, 80], choices=[80, 90])
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--depth", type=int, nargs="+", default=DEPTHS, choices=DEPTHS)
    parser.add_argument("--kernel", nargs="+", default=list(KERNELS), choices=list(KERNELS))
    parser.add_argument("--show", action="store_true", help="print the best, compile nothing")
    arguments = parser.parse_args()
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    same = {
        name
        for name, source in _sources().items()
        if arguments.show
        or (old.get("triton"), old.get("sources", {}).get(name)) == (triton.__version__, source)
    }
    entries = {_key(x): x for x in old.get("candidates", []) if x["kernel"] in same}
    for arch, parts, depth, name in itertools.product(
        arguments.arch, arguments.parts, arguments.depth, arguments.kernel
    ):
        found = []
        for tile in candidates(name, arch, parts, depth):
            key = name, arch, parts, depth, (
                tile.rows, tile.columns, tile.depth, tile.warps, tile.stages, tile.registers
            )  # fmt: skip
            if key not in entries and not arguments.show:
                entries[key] = evaluate(name, tile, arch, parts, depth)
                _write(list(entries.values()))
            found += [entries[key]] if key in entries else []
        for x in best(found):
            print(json.dumps(x), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Tiles of the contrastive family's matrix kernels, each predicted from its machine code.

`python -m benchmarks.machine_code.sweep_contrast` writes benchmarks/results/contrast_sweep.json,
one candidate a line; `fastssl/ops/contrast/triton_tiles.py` has the best. It needs no GPU and some
minutes. `--loss NAME --depth D` does less and prints alone.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

from benchmarks.machine_code import calls, launches_contrast
from benchmarks.machine_code.cards import A100, H200, Card
from fastssl.ops.contrast import triton
from fastssl.ops.nt_xent.triton_tiles import Tile, Tiles

RESULTS = Path(__file__).parents[1] / "results" / "contrast_sweep.json"
ROWS = 32768
KERNELS = {
    "forward": ("sum_pairs",), "backward": ("accumulate_pairs",),
    "weights": ("write_pair_weights", "write_shares"),
    "product": ("multiply_weights", "multiply_turned"),
}  # fmt: skip
#: Rows, columns, warps, stages, up to the padded depth where weights go through memory, and beyond,
#: where a step's depth is 64.
CANDIDATES = {
    "forward": [
        (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (128, 128, 8, 2), (128, 128, 8, 3),
        (64, 64, 4, 3), (64, 128, 4, 3), (128, 32, 4, 3),
    ],
    "backward": [
        (128, 32, 8, 2), (128, 32, 8, 3), (128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2),
        (64, 64, 4, 3), (64, 32, 4, 2), (64, 32, 4, 3), (128, 128, 8, 3),
    ],
}  # fmt: skip
DEEP = {
    "forward": [
        (128, 64, 8, 3), (128, 128, 8, 3), (128, 256, 8, 3), (256, 128, 8, 3), (128, 128, 4, 3),
        (64, 128, 4, 3),
    ],
    "weights": [
        (128, 64, 8, 3), (128, 128, 8, 3), (128, 256, 8, 3), (128, 128, 4, 3), (64, 128, 4, 3),
    ],
    "product": [(128, 128, 8, 3), (128, 256, 8, 3), (256, 128, 8, 3), (64, 128, 4, 3)],
}  # fmt: skip
#: What is swept: losses that differ in their policy.
SWEPT = [(loss, 128) for loss in ("info_nce", "clip", "siglip", "sup_con")]
SWEPT += [(loss, 768) for loss in ("info_nce", "clip", "siglip", "sup_con")]


def tiles_with(kernel: str, tile: Tile, card: Card):
    """`family_tiles` with another tile of one kernel."""
    chosen = triton.family_tiles

    def found(*arguments) -> Tiles:
        return dataclasses.replace(chosen(*arguments), **{kernel: tile})

    return mock.patch.object(triton, "family_tiles", found)


def candidate(
    loss: str, depth: int, card: Card, kernel: str, sizes: tuple, resident: int = 1
) -> dict | None:
    """What the model says of a tile; nothing where the loss does not launch the kernel.

    How many programs a processor holds is known once the kernel is compiled, and decides the grid:
    a tile of which it holds several is predicted again.
    """
    rows, columns, warps, stages = sizes
    tile = Tile(rows, columns, depth if depth <= 256 else 64, warps, stages, resident)
    call = launches_contrast.call(loss, ROWS, depth)
    with tiles_with(kernel, tile, card):
        launched = [x for x in call.launched(card) if x.name in KERNELS[kernel]]
    if not launched:
        return None
    row = {"loss": loss, "depth": depth, "card": card.name, "kernel": kernel, "tile": list(sizes)}
    try:
        made = [calls.launch_record(call, card, x) for x in launched]
    except Exception as error:  # a tile that does not compile is a finding, too
        return {**row, "error": f"{type(error).__name__}: {error}"[:120]}
    held = min(x["occupancy_warps"] for x in made) // warps
    if held > resident and kernel in ("forward", "backward"):
        return candidate(loss, depth, card, kernel, sizes, held)
    shared = max(x["shared_bytes"] for x in made)
    if shared > card.shared_of_program:
        return {**row, "error": f"needs {shared} bytes of shared memory"}
    return {
        **row,
        "predicted_us": round(sum(x["predicted_us"] for x in made), 1),
        "limiter": made[0]["limiter"],
        "registers": max(x["registers"] for x in made),
        "spills": max(x["spills"] for x in made),
        "shared_bytes": shared,
        "resident": max(1, held),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loss", help="only this")
    parser.add_argument("--depth", type=int, help="only this")
    arguments = parser.parse_args()
    some = arguments.loss or arguments.depth
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRITON_CACHE_DIR", cache)
        for loss, depth in SWEPT:
            if arguments.loss not in (None, loss) or arguments.depth not in (None, depth):
                continue
            for card in (H200, A100):
                tried = CANDIDATES if depth <= 256 else DEEP
                for kernel, sizes in ((k, s) for k, all_ in tried.items() for s in all_):
                    if (found := candidate(loss, depth, card, kernel, sizes)) is not None:
                        rows.append(found)
                        print(json.dumps(found), flush=True)
    if not some:
        lines = ",\n".join(" " + json.dumps(row) for row in rows)
        RESULTS.write_text(f"[\n{lines}\n]\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

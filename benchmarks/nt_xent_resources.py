"""What NT-Xent's Triton kernels need on GPUs that are not here: the tables of docs/nt_xent_gpu.md.

`python -m benchmarks.nt_xent_resources` compiles ahead of time and prints; `--update` writes the
tables into the page, where those of other Triton versions stay; `--check` fails if they differ.
"""

import argparse
import math
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "nt_xent_gpu.md"
DEPTHS = (64, 128, 256, 768)
#: H200: dense bfloat16 products, device memory, exponentials (16 per clock and processor).
PRODUCTS, MEMORY, EXPONENTIALS = 790e12, 4.3e12, 16 * 132 * 1.75e9


def resource_table() -> list[str]:
    """One row per kernel: registers, spilled bytes per thread, shared memory, for both chips."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "ops")]
    import torch
    from aot import resources
    from nt_xent_aot import compile_for, kernels_for, tile_for

    lines = [
        "| inputs | D | kernel | sm_90 tile | bounded | safe | KiB | sm_80 tile | bounded | safe "
        "| KiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dtype in (torch.bfloat16, torch.float32):
        for depth in DEPTHS:
            names = [kernels_for(arch, dtype, depth) for arch in (90, 80)]
            for name in dict.fromkeys(sum(names, [])):
                cells = [str(dtype).removeprefix("torch."), str(depth), name]
                for arch in (90, 80):
                    tile = tile_for(name, arch, dtype, depth)
                    # The last product has no exponential: both forms are one kernel.
                    both = (True,) if name == "product" else (True, False)
                    found = [resources(compile_for(name, arch, dtype, depth, b)) for b in both]
                    cells.append(f"{tile.rows} x {tile.columns}, {tile.warps} w, {tile.stages} st")
                    needs = [f"{r.registers} / {r.stack}" for r in found]
                    cells += needs if len(needs) == 2 else needs + ["same"]
                    cells.append(f"{max(r.shared for r in found) / 1024:.0f}")
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}" if seconds >= 1e-5 else f"{seconds * 1e6:.1f}"


def floor_table() -> list[str]:
    """FLOP, exponentials and bytes of each pass at D = 128 in bfloat16, and the time they take."""
    lines = [
        "| 2N | pass | GFLOP | us | G exponentials | us | MB | us | all at once, us "
        "| one after the other, us |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    depth, size = 128, 2
    for rows in (8192, 65536):
        area = rows * depth
        # Inputs read and packed rows written and read; in the backward pass also the float32 sums
        # written and read, the packed rows again, and the gradients.
        passes = {
            "forward": (2 * rows * area, rows**2, 3 * size * area),
            "backward": (4 * rows * area, rows**2, (5 * size + 8) * area),
        }
        passes["both"] = tuple(map(sum, zip(*passes.values(), strict=True)))
        least = 0.0
        for name, (flop, exponentials, moved) in passes.items():
            times = [flop / PRODUCTS, exponentials / EXPONENTIALS, moved / MEMORY]
            together = least if name == "both" else max(times)
            least += together
            lines.append(
                f"| {rows:,} | {name} | {flop / 1e9:,.0f} | {_microseconds(times[0])} "
                f"| {exponentials / 1e9:.3g} | {_microseconds(times[1])} | {moved / 1e6:,.0f} "
                f"| {_microseconds(times[2])} | {_microseconds(together)} "
                f"| {_microseconds(math.fsum(times))} |"
            )
    return lines


def with_section(text: str, key: str, lines: list[str]) -> str:
    """`text` with what stands between the markers of `key` replaced."""
    begin, end = f"<!-- {key} -->", f"<!-- end {key} -->"
    block = "\n".join([begin, "", *lines, "", end])
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        return text.rstrip() + "\n\n" + block + "\n"
    return pattern.sub(lambda _: block, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the tables into the page")
    parser.add_argument("--check", action="store_true", help="fail if the page differs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        import triton

        sections = {
            "floors": floor_table(),
            f"resources, triton {triton.__version__}": [
                f"Triton {triton.__version__}:",
                "",
                *resource_table(),
            ],
        }
    for lines in sections.values():
        print("\n".join(lines) + "\n")
    before = text = PAGE.read_text()
    for key, lines in sections.items():
        text = with_section(text, key, lines)
    if arguments.update:
        PAGE.write_text(text)
    return int(arguments.check and text != before)


if __name__ == "__main__":
    sys.exit(main())

"""What Triton's matrix kernels need on GPUs that are not here: tables of docs/nt_xent_gpu.md and,
for the contrastive family, of docs/contrast_gpu.md.

`python -m benchmarks.nt_xent_resources` compiles ahead of time and prints; `--update` writes the
tables into the pages, where those of other Triton versions stay; `--check` fails if they differ.
"""

import argparse
import math
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {name: ROOT / "docs" / f"{name}_gpu.md" for name in ("nt_xent", "contrast")}
DEPTHS = (64, 128, 256, 768)
#: H200: dense bfloat16 products, device memory, exponentials (16 per clock and processor).
PRODUCTS, MEMORY, EXPONENTIALS = 790e12, 4.3e12, 16 * 132 * 1.75e9


def resource_table() -> list[str]:
    """One row per kernel: registers, spilled bytes per thread, shared memory, for both chips."""
    import torch

    from benchmarks.machine_code.compiled import resources
    from benchmarks.machine_code.nt_xent import compile_for, kernels_for, tile_for

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
                    cells += _needs(tile, found)
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _needs(tile, found) -> list[str]:
    """One chip's cells: the tile; registers and spills of both forms, or of the only one; KiB."""
    shown = f"{tile.rows} x {tile.columns}, {tile.warps} w, {tile.stages} st"
    needs = [f"{r.registers} / {r.stack}" for r in found]
    shared = max(r.shared for r in found) / 1024
    needs = needs if len(needs) == 2 else [*needs, "same"]
    return [shown, *needs, f"{shared:.0f}"]


def family_table() -> list[str]:
    """The same for the policies of the contrastive family: all at D = 128, two elsewhere."""
    import torch

    from benchmarks.machine_code.compiled import resources
    from benchmarks.machine_code.contrast import POLICIES, compile_for, forms, kernels_for, tile_for

    lines = [
        "| policy | inputs | D | kernel | sm_90 tile | bounded | safe | KiB | sm_80 tile | bounded "
        "| safe | KiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = [(policy, torch.bfloat16, 128) for policy in POLICIES]
    for policy in ("info_nce, both ways", "sup_con"):
        rows += [(policy, torch.bfloat16, depth) for depth in (64, 256, 768)]
        rows.append((policy, torch.float32, 128))
    for policy, dtype, depth in rows:
        names = [kernels_for(policy, arch, dtype, depth) for arch in (90, 80)]
        for name in dict.fromkeys(sum(names, [])):
            cells = [policy, str(dtype).removeprefix("torch."), str(depth), name]
            for arch in (90, 80):
                case = (policy, name, arch, dtype, depth)
                found = [resources(compile_for(*case, b)) for b in forms(policy, name)]
                cells += _needs(tile_for(*case), found)
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}" if seconds >= 1e-5 else f"{seconds * 1e6:.1f}"


def _floor_lines(first: str, rows) -> list[str]:
    """FLOP, exponentials and bytes of passes, and the time they take; `both` adds up the others."""
    lines = [
        f"| {first} | pass | GFLOP | us | G exponentials | us | MB | us | all at once, us "
        "| one after the other, us |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, passes in rows:
        passes["both"] = tuple(map(sum, zip(*passes.values(), strict=True)))
        least = 0.0
        for name, (flop, exponentials, moved) in passes.items():
            times = [flop / PRODUCTS, exponentials / EXPONENTIALS, moved / MEMORY]
            together = least if name == "both" else max(times)
            least += together
            lines.append(
                f"| {key} | {name} | {flop / 1e9:,.0f} | {_microseconds(times[0])} "
                f"| {exponentials / 1e9:.3g} | {_microseconds(times[1])} | {moved / 1e6:,.0f} "
                f"| {_microseconds(times[2])} | {_microseconds(together)} "
                f"| {_microseconds(math.fsum(times))} |"
            )
    return lines


def floor_table() -> list[str]:
    """NT-Xent at D = 128 in bfloat16."""
    depth, size, found = 128, 2, []
    for rows in (8192, 65536):
        area = rows * depth
        # Inputs read and packed rows written and read; in the backward pass also the float32 sums
        # written and read, the packed rows again, and the gradients.
        passes = {
            "forward": (2 * rows * area, rows**2, 3 * size * area),
            "backward": (4 * rows * area, rows**2, (5 * size + 8) * area),
        }
        found.append((f"{rows:,}", passes))
    return _floor_lines("2N", found)


def family_floor_table() -> list[str]:
    """Losses of B rows against B at D = 512 in bfloat16, with a scale that is learned."""
    depth, size, rows, found = 512, 2, 32768, []
    # Products of all pairs and exponentials of each, forward and backward; matrices; gradients of
    # them. SigLIP's sigmoid is an exponential and a reciprocal, which the same units make.
    work = {
        "info_nce, both ways; clip": (2, 2, 4, 4, 2, 2),
        "siglip": (1, 1, 4, 4, 2, 2),
        "queue": (1, 1, 2, 1, 2, 1),
        "sup_con": (1, 1, 2, 2, 1, 1),
    }
    area, pairs = rows * depth, rows * rows
    for name, (
        products,
        exponentials,
        again,
        again_exponentials,
        matrices,
        gradients,
    ) in work.items():
        # Rows as in NT-Xent; for each gradient the weights of all pairs are written and read.
        moved = matrices * 3 * size * area
        back = (
            2 * gradients * size * pairs + (matrices * 3 * size + gradients * (2 * size + 8)) * area
        )
        passes = {
            "forward": (products * 2 * pairs * depth, exponentials * pairs, moved),
            "backward": (again * 2 * pairs * depth, again_exponentials * pairs, back),
        }
        found.append((name, passes))
    return _floor_lines("loss", found)


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

        resources = f"resources, triton {triton.__version__}"
        head = [f"Triton {triton.__version__}:", ""]
        sections = {
            "nt_xent": {"floors": floor_table(), resources: [*head, *resource_table()]},
            "contrast": {"floors": family_floor_table(), resources: [*head, *family_table()]},
        }
    differs = False
    for page, made in sections.items():
        before = text = PAGES[page].read_text()
        for key, lines in made.items():
            print("\n".join(lines) + "\n")
            text = with_section(text, key, lines)
        differs |= text != before
        if arguments.update:
            PAGES[page].write_text(text)
    return int(arguments.check and differs)


if __name__ == "__main__":
    sys.exit(main())

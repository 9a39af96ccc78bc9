"""Measures drop-ins beside the libraries they stand in for, and writes the table of compatibility.

    python -m benchmarks.compat_report                     everything, about ten minutes
    python -m benchmarks.compat_report --quick             the smallest of each, writes nothing
    python -m benchmarks.compat_report --only open_clip    lines whose name has this in it

Same inputs through theirs and ours, forward and backward, float32: the differences of value and
gradients, milliseconds (medians of runs in turn) and the memory that a step adds at its peak.
Results go to benchmarks/results, the table to docs/compatibility.md. The libraries are those of the
extra `compat`; one that does not import is skipped, and said so.
"""

import argparse
import csv
import importlib
import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks import compat_peers, measure, report
from benchmarks.patch_report import line
from fastssl._library import _C

OP = "compat"


def step(function, leaves):
    """The loss and the gradients of the leaves."""
    for leaf in leaves:
        leaf.grad = None
    loss = function(*leaves)
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves]


def differences(pair) -> tuple[float, float]:
    """Of the value and of the gradients, relative to the largest; raises unless it is rounding."""
    theirs, ours = (step(f, pair.leaves) for f in (pair.theirs, pair.ours))
    value = measure.assert_parity(ours[:1], theirs[:1], torch.float32)
    return value, measure.assert_parity(ours[1], theirs[1], torch.float32)


def timed(pair, seconds: float) -> list[list[float]]:
    """Milliseconds of theirs and of ours, in turn, for so long and at least 3 times."""
    found = [[], []]
    end = time.perf_counter() + seconds
    while len(found[0]) < 3 or (time.perf_counter() < end and len(found[0]) < 200):
        for function, times in zip((pair.theirs, pair.ours), found, strict=True):
            start = time.perf_counter()
            step(function, pair.leaves)
            times.append((time.perf_counter() - start) * 1e3)
    return found


def memory(function, leaves) -> float | None:
    """MiB that a step adds at its peak, gradients included; the median of three."""
    for leaf in leaves:
        leaf.grad = None
    found = [measure.peak_memory(lambda: step(function, leaves)) for _ in range(3)]
    return None if None in found else statistics.median(found)


def measured(case, seconds: float) -> list[dict]:
    """Two rows of results: theirs, and ours with the differences."""
    pair = case.make()
    value, gradient = differences(pair)
    times = timed(pair, seconds)
    capability = _C.cpu_capability() if _C else "none"
    rows = []
    for impl, function, ms in zip((case.peer, "fastssl"), pair[:2], times, strict=True):
        quartiles = statistics.quantiles(ms, n=4)
        row = dict.fromkeys(report.COLUMNS) | {
            "op": OP, "case": case.name, "size": case.rows, "dtype": "float32", "impl": impl,
            "ms": statistics.median(ms), "ms_iqr": quartiles[2] - quartiles[0], "rounds": len(ms),
            "peak_mib": memory(function, pair.leaves), "threads": torch.get_num_threads(),
            "capability": capability,
        }  # fmt: skip
        rows.append(row)
    rows[1] |= {"parity": gradient, "note": f"value {value:.2g}"}
    return rows


def megabytes(value) -> str:
    """MiB, or "-" where there is no value."""
    if value in (None, ""):
        return "-"
    return f"{float(value):,.0f} MiB" if float(value) >= 10 else f"{float(value):.1f} MiB"


def by_case(rows: list[dict]):
    """(case, row of theirs, row of ours) in the table's order, for those that were measured."""
    for case in compat_peers.cases():
        mine = {row["impl"] == "fastssl": row for row in rows if row["case"] == case.name}
        if len(mine) == 2:
            yield case, mine[False], mine[True]


def tables(rows: list[dict]) -> dict[str, str]:
    """Markdown by marker."""
    head = ["compared with", "loss", "size", "theirs, ms", "**fastssl**", "faster by"]
    head += ["memory, theirs", "fastssl", "difference of the value", "of gradients"]
    lines = [line(*head), "| --- | --- | --- |" + " ---: |" * (len(head) - 3)]
    for case, theirs, ours in by_case(rows):
        peer = theirs["impl"].replace("open_clip_torch", "open_clip")
        times = [float(row["ms"]) for row in (theirs, ours)]
        loss, comma, more = case.loss.partition(",")
        cells = [peer, f"`{loss}`{comma}{more}", case.size]
        cells += [report.milliseconds(times[0]), f"**{report.milliseconds(times[1])}**"]
        cells.append(f"{times[0] / times[1]:.1f}x")
        cells += [megabytes(row["peak_mib"]) for row in (theirs, ours)]
        cells += [ours["note"].removeprefix("value "), f"{float(ours['parity']):.1g}"]
        lines.append(line(*cells))
    return {OP: "\n".join(lines)}


def draw(rows: list[dict], plt, path: Path) -> None:
    """Bars: how many times faster, and by how many times less memory."""
    names, faster, smaller = [], [], []
    for case, theirs, ours in by_case(rows):
        names.append(case.name)
        faster.append(float(theirs["ms"]) / float(ours["ms"]))
        peaks = [row["peak_mib"] for row in (theirs, ours)]
        known = all(x not in (None, "") for x in peaks)
        smaller.append(max(float(peaks[0]), 0.1) / max(float(peaks[1]), 0.1) if known else 1.0)
    figure, axis = plt.subplots(figsize=(9, 0.35 * len(names) + 1), layout="constrained")
    for k, (label, values) in enumerate((("speed", faster), ("memory", smaller))):
        places = [i + 0.4 * k - 0.2 for i in range(len(names))]
        axis.barh(places, [v - 1 for v in values], 0.38, left=1, color=f"C{k}", label=label)
    axis.axvline(1, color="black", linewidth=1.5)
    axis.set(xscale="log", xlabel="theirs, as a multiple of fastssl's", yticks=range(len(names)))
    axis.set_yticklabels(names, fontsize=7)
    axis.invert_yaxis()
    axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def machine() -> str:
    """The name of this machine's files in benchmarks/results."""
    import cpuinfo

    capability = _C.cpu_capability() if _C else "none"
    extra = {"capability": capability, "threads": torch.get_num_threads()}
    info = {"cpu": cpuinfo.get_cpu_info(), "machine": "cpu"}
    return report.machine_name({"machine_info": info, "benchmarks": [{"extra_info": extra}]})


def write(rows: list[dict]) -> None:
    """Replace these cases in the results, and draw table and picture anew."""
    path = report.RESULTS / f"{machine()}.csv"
    cases = {row["case"] for row in rows}
    kept = []
    if path.exists():
        with path.open() as file:
            kept = [r for r in csv.DictReader(file) if r["op"] != OP or r["case"] not in cases]
    rows = kept + rows
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, report.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )
    mine = [row for row in rows if row["op"] == OP]
    report.insert(report.ROOT / "docs" / "compatibility.md", OP, tables(mine)[OP])
    draw(mine, report.pyplot(), path.with_name(f"{path.stem}-{OP}.svg"))
    print(f"\nwritten: {path.relative_to(report.ROOT)}, docs/compatibility.md")


def smallest(cases: list) -> list:
    """The first case of each library and loss."""
    return list({(case.library, case.loss): case for case in reversed(cases)}.values())[::-1]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smallest sizes; write nothing")
    parser.add_argument("--only", default="", metavar="NAME", help="a part of a line's name")
    parser.add_argument("--seconds", type=float, default=5.0, help="for the runs of a line")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.add_argument(
        "--first", metavar="MODULE", help="import this before all, as what mends an installation"
    )
    args = parser.parse_args()
    if args.first:
        importlib.import_module(args.first)
    torch.set_num_threads(args.threads)
    cases = [c for c in compat_peers.cases() if args.only.lower() in c.name.lower()]
    if not cases:
        parser.error(f"--only: got {args.only!r}, no line has this in its name")
    rows, failed = [], []
    for case in smallest(cases) if args.quick else cases:
        try:
            found = measured(case, 0.2 if args.quick else args.seconds)
        except measure.Missing as error:
            print(f"{case.name}: skipped, {error}", flush=True)
            continue
        except AssertionError as error:
            failed.append(case.name)
            print(f"{case.name}: {error}", flush=True)
            continue
        theirs, ours = found
        print(
            f"{case.name}: {theirs['ms']:.2f} ms, fastssl {ours['ms']:.2f} ms; "
            f"{megabytes(theirs['peak_mib'])}, {megabytes(ours['peak_mib'])}; "
            f"{ours['note']}, gradients {ours['parity']:.1g}",
            flush=True,
        )
        rows += found
    print("\n" + tables(rows)[OP])
    if rows and not args.quick:
        write(rows)
    if failed:
        print(f"\nresults differ, nothing is reported of: {'; '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

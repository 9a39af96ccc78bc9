"""Turns pytest-benchmark's JSON into results/<machine>.csv, the README's table and a picture.

    python -m benchmarks.report out/bench.json

Every benchmark names its rows itself (benchmarks.measure.run). An operator is shown in milliseconds
by size, unless `benchmarks/<op>_report.py` brings tables and a picture of its own.
"""

import argparse
import csv
import importlib
import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = [
    "op",
    "case",
    "size",
    "dtype",
    "impl",
    "ms",
    "ms_iqr",
    "rounds",
    "floor_ms",
    "peak_mib",
    "parity",
    "threads",
    "capability",
    "views",
    "note",
]
CAPABILITIES = ("none", "base", "avx2", "wide", "avx512")
PEERS = ("textbook", "lightly", "eager", "compiled")


def machine_name(content: dict) -> str:
    """A file name for the processor, its best instruction set and the threads used."""
    info, extra = content["machine_info"], [b["extra_info"] for b in content["benchmarks"]]
    capability = max((e["capability"] for e in extra), key=CAPABILITIES.index)
    words = [info["cpu"].get("brand_raw") or info["machine"], capability, str(extra[0]["threads"])]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def rows_of(content: dict) -> list[dict]:
    """One row for each benchmark, times in milliseconds."""
    rows = []
    for entry in content["benchmarks"]:
        stats, extra = entry["stats"], entry["extra_info"]
        rows.append(
            {column: extra.get(column) for column in COLUMNS}
            | {"ms": stats["median"] * 1e3, "ms_iqr": stats["iqr"] * 1e3, "rounds": stats["rounds"]}
        )
    return rows


def merge(path: Path, rows: list[dict]) -> list[dict]:
    """The new rows, and those of operators that this run did not measure."""
    measured = {row["op"] for row in rows}
    if path.exists():
        with path.open() as file:
            rows = [r for r in csv.DictReader(file) if r["op"] not in measured] + rows
    return rows


def milliseconds(value) -> str:
    """Three digits, or "-" where there is no value."""
    if value in (None, ""):
        return "-"
    ms = float(value)
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def table(rows: list[dict], op: str, dtype: str = "float32") -> str:
    """Markdown: milliseconds by size, fastssl against the peers."""
    rows = [r for r in rows if r["op"] == op and r["dtype"] == dtype]
    peers = [p for p in PEERS if any(r["impl"] == p for r in rows)]
    lines = [
        "| | " + " | ".join(peers) + " | **fastssl** | against the fastest peer | floor | "
        "peak memory, fastest peer | fastssl |",
        "| --- |" + " ---: |" * (len(peers) + 5),
    ]
    for case in dict.fromkeys(r["case"] for r in sorted(rows, key=lambda r: int(r["size"]))):
        by_impl = {r["impl"]: r for r in rows if r["case"] == case}
        ours = by_impl.get("fastssl")
        if ours is None:
            continue
        others = [by_impl[p] for p in peers if p in by_impl]
        best = min(others, key=lambda r: float(r["ms"])) if others else None
        ratio = f"{float(best['ms']) / float(ours['ms']):.1f}x" if best else "-"
        memory = [
            f"{float(r['peak_mib']):,.0f} MiB" if r and r["peak_mib"] not in (None, "") else "-"
            for r in (best, ours)
        ]
        cells = [milliseconds(by_impl[p]["ms"] if p in by_impl else None) for p in peers]
        cells += [f"**{milliseconds(ours['ms'])}**", ratio, milliseconds(ours["floor_ms"]), *memory]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables(rows: list[dict]) -> dict[str, str]:
    """By the marker it is inserted at, a table of one operator's rows."""
    return {rows[0]["op"]: table(rows, rows[0]["op"])}


def report_of(op: str):
    """The module with `tables(rows)` and `draw(rows, plt, path)`: the operator's own, or this."""
    name = f"benchmarks.{op}_report"
    return importlib.import_module(name if importlib.util.find_spec(name) else __name__)


def insert(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers `<!-- name -->` and `<!-- /name -->`."""
    content = path.read_text()
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if pattern.search(content):
        path.write_text(pattern.sub(lambda m: m[1] + text + "\n" + m[2], content))


def pyplot():
    """matplotlib, set to draw the same file for the same figures."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fastssl"
    from matplotlib import pyplot

    return pyplot


def draw(rows: list[dict], plt, path: Path) -> None:
    """Time and peak memory over size, one line for each implementation."""
    rows = [r for r in rows if r["dtype"] == "float32"]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for impl in [p for p in (*PEERS, "fastssl") if any(r["impl"] == p for r in rows)]:
        mine = sorted((r for r in rows if r["impl"] == impl), key=lambda r: int(r["size"]))
        style = {"linewidth": 2.5, "color": "black"} if impl == "fastssl" else {"linewidth": 1.2}
        for axis, column in zip(axes, ("ms", "peak_mib"), strict=True):
            points = [
                (int(r["size"]), float(r[column])) for r in mine if r[column] not in (None, "")
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=impl, **style)
    for axis, title in zip(axes, ("time, ms", "peak memory, MiB"), strict=True):
        axis.set(xscale="log", yscale="log", title=title, xlabel="size")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    args = parser.parse_args()
    content = json.loads(args.json.read_text())
    machine = machine_name(content)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{machine}.csv"
    rows = merge(path, rows_of(content))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows
        )
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for op in dict.fromkeys(r["op"] for r in rows):
        report, mine = report_of(op), [r for r in rows if r["op"] == op]
        for marker, text in report.tables(mine).items():
            print(f"\n{marker}\n\n{text}")
            for page in pages:
                insert(page, marker, text)
        report.draw(mine, pyplot(), RESULTS / f"{machine}-{op}.svg")
    print(f"\nwritten: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

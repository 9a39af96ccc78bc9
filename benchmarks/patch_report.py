"""The tables of masked image modelling: milliseconds by case, against the fastest of each kind."""

from pathlib import Path

from benchmarks.report import milliseconds

KINDS = ("eager", "compiled", "library")


def kind(impl: str) -> str:
    """What an implementation is: "eager", "compiled", "fastssl", or a library."""
    first = impl.split(":")[0].split(",")[0]
    return first if first in (*KINDS, "fastssl") else "library"


def fastest(rows: list[dict], wanted: str) -> dict | None:
    found = [row for row in rows if kind(row["impl"]) == wanted]
    return min(found, key=lambda row: float(row["ms"]), default=None)


def ratio(theirs: dict | None, ours: dict) -> str:
    return "-" if theirs is None else f"{float(theirs['ms']) / float(ours['ms']):.1f}x"


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def tables(rows: list[dict]) -> dict[str, str]:
    """Markdown by marker."""
    head = ["eager", "compiled", "library", "**fastssl**", "against eager", "compiled", "library"]
    head += ["floor", "peak memory, eager", "compiled", "fastssl"]
    lines = [line("", *head), "| --- |" + " ---: |" * len(head)]
    for case, dtype in dict.fromkeys((row["case"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["dtype"]) == (case, dtype)]
        peers = [fastest(mine, wanted) for wanted in KINDS]
        for ours in (row for row in mine if kind(row["impl"]) == "fastssl"):
            name = case + ours["impl"].removeprefix("fastssl").replace(",", ":", 1)
            cells = [name if dtype == "float32" else f"{name}, {dtype}"]
            cells += [milliseconds(row and row["ms"]) for row in peers]
            cells += [f"**{milliseconds(ours['ms'])}**", *(ratio(row, ours) for row in peers)]
            cells.append(milliseconds(ours["floor_ms"]))
            cells += [memory(row) for row in (*peers[:2], ours)]
            lines.append(line(*cells))
    return {"patch": "\n".join(lines)}


def memory(row: dict | None) -> str:
    """MiB that a call adds at its peak, its results included."""
    if row is None or row["peak_mib"] in (None, ""):
        return "-"
    return f"{float(row['peak_mib']):,.0f} MiB"


def draw(rows: list[dict], plt, path: Path) -> None:
    """Bars of the time by case, as multiples of ours."""
    rows = [row for row in rows if row["dtype"] == "float32"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    cases = [
        c for c in cases if any(row["case"] == c and kind(row["impl"]) in KINDS for row in rows)
    ]
    figure, axis = plt.subplots(figsize=(9, 0.7 * len(cases) + 1), layout="constrained")
    for i, case in enumerate(cases):
        mine = [row for row in rows if row["case"] == case]
        ours = fastest(mine, "fastssl")
        for k, wanted in enumerate(KINDS):
            row = fastest(mine, wanted)
            if row is not None:
                times = float(row["ms"]) / float(ours["ms"])
                label = wanted if i == 0 or wanted == "library" else None
                handles = axis.get_legend_handles_labels()[1]
                label = None if label in handles else label
                axis.barh(i + 0.27 * (k - 1), times, 0.25, color=f"C{k}", label=label)
    axis.axvline(1, color="black", linewidth=2.5, label="fastssl")
    axis.set(xscale="log", xlabel="time, as a multiple of fastssl's", yticks=range(len(cases)))
    axis.set_yticklabels(cases)
    axis.invert_yaxis()
    axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)

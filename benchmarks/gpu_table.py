"""The one table that `make gpu-check` ends with: floor, prediction, measurement and peer."""

from collections.abc import Sequence

from benchmarks.gpu_measure import Step
from benchmarks.gpu_order import Predictions
from benchmarks.gpu_results import Codes, Results

#: A time beyond this multiple of its prediction is named below the table.
BEYOND = 1.3
HEAD = ("family", "case", "size", "floor, ms", "predicted, ms", "measured, ms", "in a graph, ms",
        "measured / predicted", "peer, ms", "speed-up", "target")  # fmt: skip


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that mean something."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.{digits}g}"


def best(peers: list[tuple[Step, dict]]) -> tuple[Step, dict] | None:
    """The fastest that has a time."""
    timed = [(step, entry) for step, entry in peers if "ms" in entry and "error" not in entry]
    return min(timed, key=lambda one: one[1]["ms"], default=None)


def ratio(entry: dict, known: dict) -> float | None:
    """Measured over predicted, in a graph where both are."""
    if "graph_ms" in entry and "predicted_ms" in known:
        return entry["graph_ms"] / known.get("graph_ms", known["predicted_ms"])
    if "ms" in entry and "predicted_ms" in known:
        return entry["ms"] / known["predicted_ms"]
    return None


def verdict(step: Step, entry: dict, gpu: str) -> str:
    """What is aimed at, and whether it was reached."""
    target = step.target
    if target is None:
        return ""
    aim = f"{'>=' if target.at_least else '<='} {target.limit:g} {target.unit}"
    if not target.applies(gpu):
        return f"{aim} on {target.card}"
    met = target.met(entry)
    found = "" if target.key == "ms" or met is None else f" ({entry[target.key]:g})"
    return f"{aim}: {'not measured' if met is None else 'met' if met else 'NOT met'}{found}"


def row(step: Step, entry: dict, peer: tuple[Step, dict] | None, known: dict, gpu: str) -> tuple:
    """The cells of one line."""
    over, ours = ratio(entry, known), entry.get("ms")
    failed = "failed" if "error" in entry else None
    against = f"{number(peer[1]['ms'])} ({peer[0].impl})" if peer else "-"
    return (
        step.family,
        step.case,
        ", ".join(f"{key} {value}" for key, value in step.size.items()),
        number(known.get("floor_ms")),
        number(known.get("predicted_ms")),
        failed or number(ours),
        number(entry.get("graph_ms")),
        "-" if over is None else f"{over:.2f}",
        against,
        f"{peer[1]['ms'] / ours:.1f}x" if peer and ours else "-",
        verdict(step, entry, gpu),
    )


def aligned(rows: list[tuple]) -> list[str]:
    """A table in Markdown whose columns stand below each other in a terminal, too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) + " |"
        for r in rows
    ]
    return [lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]]


def report(
    steps: list[Step],
    results: Results,
    codes: Codes,
    predictions: Predictions,
    phases: dict[str, dict],
    failed: Sequence[str] = (),
) -> str:
    """The whole text: phases, the table, and what there is to say about it.

    Args:
        steps: all of them, in the order of the rows.
        results: what is known of them.
        codes: what makes it count.
        predictions: of this card.
        phases: what became of them.
        failed: what failed beside phases and steps.
    """
    stamp = results.stamp
    lines = [f"# {stamp['gpu']}", "", f"torch {stamp['torch']}, Triton {stamp['triton']}."]
    lines += ["", *(f"- {name}: {phase['status']}" for name, phase in phases.items())]
    lines += [f"- {name}: failed" for name in failed]
    entries = {s.name: e for s in steps if (e := results.entry(s, codes(s))) is not None}
    beyond, broken, rows, missing = [], [], [HEAD], 0
    for step in steps:
        entry = entries.get(step.name, {})
        missing += not entry
        if "error" in entry:
            broken.append(f"- {step.name}: {entry['error']}")
        if "missing" in entry:
            broken.append(f"- {step.name}: not here, {entry['missing']}")
        if not step.ours or not (entry or step.target):
            continue
        known = predictions(step)
        peers = [
            (s, entries[s.name])
            for s in steps
            if s.place == step.place and not s.ours and s.name in entries
        ]
        rows.append(row(step, entry, best(peers), known, stamp["gpu"]))
        over = ratio(entry, known)
        if over is not None and over > BEYOND:
            limiter = f", limited by {known['limiter']}" if "limiter" in known else ""
            beyond.append(f"- {step.place}: {over:.2f} times{limiter}")
    lines += ["", *aligned(rows), "", _legend(missing, len(steps))]
    if beyond:
        lines += ["", f"Beyond {BEYOND} times the prediction:", "", *beyond]
    if broken:
        lines += ["", "Without a figure:", "", *broken]
    return "\n".join(lines) + "\n"


def _legend(missing: int, count: int) -> str:
    left = f" {missing} of {count} steps are not measured yet: run it again." if missing else ""
    return (
        "Measured / predicted is that of a CUDA graph where there is one; peer is the fastest of "
        f"the baselines, and the speed-up that of calls outside a graph.{left}"
    )

"""The model's tables in docs/gpu.md."""

import re

from benchmarks.machine_code import published
from benchmarks.machine_code.cards import CARDS, SOURCES
from benchmarks.machine_code.passes import MATRIX
from benchmarks.machine_code.record import FAMILIES

#: Where a family's small kernels are shown, too; elsewhere its matrix kernels alone.
_WHOLE = {
    "nt_xent": ({"rows": 65536, "depth": 128, "dtype": "bfloat16"}, ("nt_xent",)),
    "contrast": ({"rows": 32768, "depth": 128, "dtype": "bfloat16"}, ("info_nce", "sup_con")),
}
_MOST_ROWS = {"nt_xent": 65536, "contrast": 65536}
_CARDS = ("H200", "A100")


def microseconds(value: float) -> str:
    """Three digits, as people read them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size_text(size: dict) -> str:
    """A size as people write it: rows x depth and type, or names and numbers."""
    if {"rows", "depth"} <= size.keys():
        return f"{size['rows']:,} x {size['depth']} {size.get('dtype', '')}".strip()
    return ", ".join(f"{k} {v:,}" if isinstance(v, int) else str(v) for k, v in size.items())


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def calls_table(model: dict, families: tuple[str, ...]) -> list[str]:
    """Calls, each with its time on the cards."""
    head = ["family", "call", "size", "launches"]
    for card in _CARDS:
        head += [f"{card}: floor, us", "predicted", "in a graph"]
    rows: dict[tuple, dict] = {}
    for call in model["calls"]:
        if call["family"] in families:
            key = call["family"], call["case"], size_text(call["size"])
            rows.setdefault(key, {})[call["card"]] = call
    lines = []
    for key, by_card in rows.items():
        shown = next(iter(by_card.values()))
        line = [*key, str(shown["launches"])]
        for card in _CARDS:
            call = by_card.get(card)
            names = ("floor_us", "predicted_us", "graph_us")
            line += [microseconds(call[n]) if call and n in call else "" for n in names]
        lines.append(line)
    return _table(head, lines)


def _is_shown(row: dict) -> bool:
    family = row["family"]
    if row["card"] not in _CARDS:
        return False
    if family not in _WHOLE:
        return True
    size, cases = _WHOLE[family]
    if row["kernel"] not in MATRIX:
        return row["size"] == size and row["case"] in cases
    return row["size"]["rows"] <= _MOST_ROWS[family] and row["size"]["rows"] >= size["rows"]


def launches_table(model: dict, family: str) -> list[str]:
    """A family's launches: times, limits, resources, and instructions of a pass."""
    head = [
        "case", "size", "kernel", "card", "floor, us", "predicted, us", "x floor", "limiter",
        "registers", "stack", "KiB", "warps", "instructions of a warp in a pass", "of an element",
    ]  # fmt: skip
    rows = []
    for x in model["launches"]:
        if x["family"] != family or not _is_shown(x):
            continue
        times = f" ({x['times']} times)" if x.get("times", 1) > 1 else ""
        ratio = x["predicted_us"] / x["floor_us"] if x["floor_us"] else 0.0
        counted, each = (
            ", ".join(f"{kind} {number:g}" for kind, number in x.get(key, {}).items())
            for key in ("per_iteration", "per_element")
        )
        rows.append([
            x["case"], size_text(x["size"]), f"`{x['kernel']}`{times}", x["card"],
            microseconds(x["floor_us"]), microseconds(x["predicted_us"]),
            f"{ratio:.1f}" if 0 < ratio < 20 else "", x["limiter"], str(x["registers"]),
            str(x["spills"]), f"{x['shared_bytes'] / 1024:.0f}", str(x["occupancy_warps"]), counted,
            each,
        ])  # fmt: skip
    return _table(head, rows)


def cards_table() -> list[str]:
    """The cards' rates that the model uses."""

    def row(name, of):
        return [name, *(of(card) for card in CARDS.values())]

    rows = [
        row("multiprocessors", lambda c: str(c.processors)),
        row("clock, GHz", lambda c: f"{c.clock:g}"),
        row("clock under tensor load, GHz", lambda c: f"{c.tensor_clock:g}"),
        row("tensor FLOP a clock", lambda c: f"{c.per_clock['tensor']:,}"),
        row("tensor TFLOP/s at that clock", lambda c: f"{c.tensor_rate / 1e12:.0f}"),
        row("float results a clock", lambda c: str(c.per_clock["float"])),
        row("exponentials a clock", lambda c: str(c.per_clock["special"])),
        row("memory, GB/s", lambda c: f"{c.bandwidth:,}"),
        row("share that a copy reaches", lambda c: f"{c.copy_share:.2f}"),
        row("L2, bytes a clock", lambda c: f"{c.l2_per_clock:,}"),
        row("between launches, us", lambda c: f"{c.gap_us:g}"),
        row("in a graph, us", lambda c: f"{c.graph_gap_us:g}"),
    ]
    sources = [f"* {name}: {text}" for name, text in SOURCES.items()]
    return [*_table(["", *CARDS], rows), "", *sources]


def with_section(text: str, key: str, lines: list[str]) -> str:
    """`text` with what stands between the markers of `key` replaced.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = f"<!-- {key} -->", f"<!-- end {key} -->"
    if begin not in text or end not in text:
        raise ValueError(f"docs/gpu.md has no markers for {key}")
    block = "\n".join([begin, "", *lines, "", end])
    return re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: block, text, flags=re.DOTALL)


def updated(text: str, model: dict) -> str:
    """The page with tables from the model."""
    compiled = f"Triton {model['triton']}, nvcc {model['nvcc'] or 'none'}."
    text = with_section(text, "calls", [*calls_table(model, FAMILIES), "", compiled])
    text = with_section(text, "cards", cards_table())
    known = [row for row in model["launches"] if row["family"] == "known"]
    text = with_section(text, "known", [published.table(known)])
    for family in (name for name in FAMILIES if name != "known"):
        text = with_section(text, f"launches {family}", launches_table(model, family))
    return text

"""The augmentation's tables and picture: views a second, and what a stage costs."""

from pathlib import Path

PEERS = ("kornia", "torchvision, tensors", "torchvision, Pillow", "reference, compiled")


def rate(row: dict | None) -> float | None:
    """Views a second."""
    return None if row is None else float(row["views"]) / float(row["ms"]) * 1e3


def count(value: float | None) -> str:
    """Three digits, or "-" where there is no value."""
    if value is None:
        return "-"
    digits = max(0, len(str(int(value))) - 3)
    return f"{round(value, -digits):,.0f}"


def line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def find(rows: list[dict], case: str, impl: str, dtype: str = "float32") -> dict | None:
    wanted = (case, impl, dtype)
    return next((r for r in rows if (r["case"], r["impl"], r["dtype"]) == wanted), None)


def cases_of(rows: list[dict], impl: str) -> list[str]:
    return list(dict.fromkeys(r["case"] for r in rows if r["impl"] == impl))


def tables(rows: list[dict]) -> dict[str, str]:
    """Markdown by marker."""
    made = {"augment": recipes(rows), "augment_stages": stages(rows)}
    return {marker: text for marker, text in made.items() if text}


def recipes(rows: list[dict]) -> str:
    """Views a second of whole recipes; below, how many of a peer's levels are not ours."""
    cases = cases_of(rows, "fastssl")
    peers = [p for p in PEERS if any(find(rows, case, p) for case in cases)]
    head = [*peers, "**fastssl**", "against the fastest peer"]
    head += ["fastssl, `out=`", "fastssl, bfloat16", "of a copy's rate"]
    lines = [line("", *head), "| --- |" + " ---: |" * len(head)]
    for case in cases:
        ours, half = find(rows, case, "fastssl"), find(rows, case, "fastssl", "bfloat16")
        theirs = [rate(find(rows, case, p)) for p in peers]
        best = max((r for r in theirs if r), default=None)
        ratio = f"{rate(ours) / best:.1f}x" if best else "-"
        copied = f"{float(ours['floor_ms']) / float(ours['ms']):.0%}"
        cells = [*map(count, theirs), f"**{count(rate(ours))}**", ratio]
        cells += [count(rate(find(rows, case, "fastssl, out="))), count(rate(half)), copied]
        lines.append(line(case, *cells))
    same = [agreement([find(rows, case, p) for case in cases]) for p in peers]
    return "\n".join([*lines, line("levels other than ours", *same, "", "", "", "", "")])


def agreement(rows: list[dict | None]) -> str:
    parts = [r["parity"] for r in rows if r]
    if any(part in (None, "") for part in parts):
        return "other definitions"
    worst = max(map(float, parts))
    return f"{worst:.3%}" if worst else "none"


def stages(rows: list[dict]) -> str:
    """What an operation costs after a bare crop, and its share of the recipe, by leaving it out."""
    cases = cases_of(rows, "fastssl all")
    if not cases:
        return ""
    head = []
    for case in cases:
        head += [f"{case}: crop and this, views/s", "us a view", "share of the recipe"]
    lines = [line("", *head), "| --- |" + " ---: |" * len(head)]
    names = [r["impl"] for r in rows if r["impl"].startswith("fastssl crop + ")]
    names = [name.removeprefix("fastssl crop + ") for name in dict.fromkeys(names)]
    for name in ["crop", *names, "normalize"]:
        cells = []
        for case in cases:
            cells += stage(rows, case, name)
        lines.append(line(name, *cells))
    return "\n".join(lines)


def stage(rows: list[dict], case: str, name: str) -> list[str]:
    full, crop = find(rows, case, "fastssl all"), find(rows, case, "fastssl crop")

    def each(row: dict) -> float:  # microseconds a view
        return 1e6 / rate(row)

    if name == "crop":
        levels = find(rows, case, "fastssl crop", "uint8")
        each_crop = each(levels or crop)
        return [count(1e6 / each_crop), f"{each_crop:.1f}", f"{each_crop / each(full):.0%}"]
    if name == "normalize":
        alone, less = crop, find(rows, case, "fastssl without normalize", "uint8")
        crop = find(rows, case, "fastssl crop", "uint8")
    else:
        alone = find(rows, case, f"fastssl crop + {name}")
        less = find(rows, case, f"fastssl without {name}")
    share = f"{1 - each(less) / each(full):.0%}" if less else "-"
    if not alone or not crop:
        return ["-", "-", share]
    return [count(rate(alone)), f"{each(alone) - each(crop):.1f}", share]


def draw(rows: list[dict], plt, path: Path) -> None:
    """Views a second of every recipe, a bar for each way to make them."""
    cases = cases_of(rows, "fastssl")
    names = [p for p in (*PEERS, "fastssl") if any(find(rows, case, p) for case in cases)]
    figure, axes = plt.subplots(1, len(cases), figsize=(12, 2.6), layout="constrained")
    for axis, case in zip(axes if len(cases) > 1 else [axes], cases, strict=True):
        rates = [rate(find(rows, case, name)) or 0 for name in names]
        colors = ["black" if name == "fastssl" else "C0" for name in names]
        bars = axis.barh(names, rates, color=colors)
        axis.bar_label(bars, [count(r or None) for r in rates], padding=3)
        axis.set(title=f"{case}: views a second", xlim=(0, 1.25 * max(rates)))
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    for axis in figure.axes[1:]:
        axis.set_yticklabels([])
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)

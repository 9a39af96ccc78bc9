"""What a GPU will take for every kernel, predicted from machine code: docs/gpu.md explains.

`python -m benchmarks.gpu_model` compiles ahead of time and prints the calls' table; `--update`
writes benchmarks/results/gpu_model.json and the tables of docs/gpu.md. No GPU is needed. `--family
NAME` does one family and keeps what is known of the others, if it is of the same compilers.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.machine_code import families, pages
from benchmarks.machine_code.cards import CARDS
from benchmarks.machine_code.record import FAMILIES

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "benchmarks" / "results" / "gpu_model.json"
PAGE = ROOT / "docs" / "gpu.md"


def read() -> dict:
    """The model's figures as they are checked in; empty lists where there are none."""
    if not MODEL.exists():
        return {"launches": [], "calls": []}
    return json.loads(MODEL.read_text())


def refusal(model: dict, chosen: list[str], page: bool) -> str:
    """Why the file cannot be used: it is missing, or what is kept of it is of other compilers."""
    if page:
        return "" if "triton" in model else f"{MODEL} is missing: --update makes it"
    kept = {row["family"] for row in model["launches"]} - set(chosen)
    present = families.versions()
    recorded = {name: model.get(name) for name in present}
    if not kept or recorded == present:
        return ""
    return f"{', '.join(sorted(kept))} are of {recorded}, not {present}: all must be done again"


def text_of(model: dict) -> str:
    """The file: one record a line, so that a change shows as such."""
    head = {k: v for k, v in model.items() if k not in ("launches", "calls")}
    lines = [json.dumps(head, indent=1)[:-2] + ","]
    for key in ("launches", "calls"):
        rows = ",\n".join("  " + json.dumps(row) for row in model[key])
        lines.append(f' "{key}": [\n{rows}\n ]' + ("," if key == "launches" else ""))
    return "\n".join([*lines, "}"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--update", action="store_true", help="write the file and the page's tables"
    )
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only this; repeatable")
    parser.add_argument("--page", action="store_true", help="write the page's tables from the file")
    arguments = parser.parse_args()
    model, chosen = read(), arguments.family or FAMILIES
    if problem := refusal(model, chosen, arguments.page):
        parser.error(problem)
    if not arguments.page:
        with tempfile.TemporaryDirectory() as cache:
            os.environ.setdefault("TRITON_CACHE_DIR", cache)
            for family in chosen:
                for key, rows in families.predicted(family).items():
                    kept = [row for row in model[key] if row["family"] != family]
                    model[key] = sorted(
                        [*kept, *rows], key=lambda row: FAMILIES.index(row["family"])
                    )
        model = {
            **families.versions(),
            "cards": {name: card.product for name, card in CARDS.items()},
            "launches": model["launches"],
            "calls": model["calls"],
        }
    if arguments.update and not arguments.page:
        MODEL.write_text(text_of(model))
    if arguments.update or arguments.page:
        PAGE.write_text(pages.updated(PAGE.read_text(), model))
    print("\n".join(pages.calls_table(model, FAMILIES)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

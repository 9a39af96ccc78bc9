"""The contrastive family's table, and a picture of its cases, which are of different losses."""

from benchmarks import report
from benchmarks.patch_report import draw

__all__ = ["draw", "tables"]


def tables(rows: list[dict]) -> dict[str, str]:
    """Milliseconds by case, fastssl against the peers."""
    return {"contrast": report.table(rows, "contrast")}

"""The model's records of every family, and what they were compiled with."""

import importlib
import re
import shutil
import subprocess

from benchmarks.machine_code import calls, launches_contrast, launches_nt_xent
from benchmarks.machine_code.cards import CARDS

#: Families whose launches are caught from their launchers.
CAUGHT = {"nt_xent": launches_nt_xent, "contrast": launches_contrast}
#: Modules that describe the others.
_MODULES = {"augment": "augment", "patch": "patch", "known": "published"}
#: The cards whose figures are kept; H100 and H200 differ in memory alone.
SHOWN = ("A100", "H100", "H200")
#: One of each architecture, whose launches are kept, too.
LAUNCHES = ("A100", "H200")


def versions() -> dict[str, str]:
    """The compilers: figures hold for them alone."""
    import triton

    return {"triton": triton.__version__, "nvcc": nvcc_version()}


def nvcc_version() -> str:
    """As "13.0"; empty where there is none."""
    if shutil.which("nvcc") is None:
        return ""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else ""


def predicted(family: str) -> dict[str, list[dict]]:
    """A family's "launches" and "calls" on every card."""
    found: dict[str, list[dict]] = {"launches": [], "calls": []}
    for name in SHOWN:
        card = CARDS[name]
        if family in CAUGHT:
            for call in CAUGHT[family].calls():
                launches, whole = calls.records(call, card)
                if name in LAUNCHES:
                    found["launches"] += launches
                found["calls"].append(whole)
        else:
            module = importlib.import_module(f"benchmarks.machine_code.{_MODULES[family]}")
            found["launches"] += module.launches(card)
            if hasattr(module, "calls"):
                found["calls"] += module.calls(card)
    return found

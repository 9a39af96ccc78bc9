"""Where only a part of the extra "train" is installed, tests of the trainers are skipped."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from train_extras import MODULES, missing

ROOT = Path(__file__).parents[1]
HIDES = """
import importlib.abc, importlib.util, sys
real = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name.partition(".")[0] in {hidden!r} else real(name, package)
importlib.util.find_spec = find_spec
class No(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, No())
"""


def test_all_packages_of_the_extra_are_looked_for():
    tomllib = pytest.importorskip("tomllib")
    if reason := missing():
        pytest.skip(reason)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"]["train"]
    wanted = {re.match(r"[\w-]+", name)[0].lower() for name in wanted}
    packages = importlib.metadata.packages_distributions()
    found = {name.lower() for module in MODULES for name in packages[module]}
    assert wanted <= found and len(wanted) == len(MODULES)


@pytest.mark.parametrize("hidden", [("yaml",), ("rich", "tokenizers")])
def test_a_part_of_the_packages_skips_with_a_reason_and_is_no_error(tmp_path, hidden):
    if reason := missing():
        pytest.skip(reason)
    (tmp_path / "hides.py").write_text(HIDES.format(hidden=hidden))
    files = ["tests/train/test_config.py", "tests/train/methods/test_distillation.py"]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "hides", "-rs", "-p", "no:cacheprovider", *files],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 5, found.stdout + found.stderr  # no tests ran
    assert f"not installed: {', '.join(hidden)}" in found.stdout
    assert "2 skipped" in found.stdout and "error" not in found.stdout

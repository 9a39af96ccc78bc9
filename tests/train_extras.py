"""Which packages of the extra "train" are not here; where one is missing its tests are skipped."""

from importlib.util import find_spec

#: Modules of the packages that pyproject.toml lists.
MODULES = ("lightning_fabric", "matplotlib", "PIL", "pyarrow", "yaml", "rich", "sklearn",
           "tensorboardX", "tokenizers", "typer")  # fmt: skip


def missing() -> str:
    """Why tests of the trainers are skipped; empty where nothing is missing."""
    absent = [name for name in MODULES if find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""

"""Reference trainers: from pictures to a verdict, through fastssl's public functions only.

    from fastssl.train import pretrain

    run = pretrain("simclr", data="digits", epochs=40, seed=0)
    run.backbone  # the encoder, trained
    run.rows      # what its features are worth, beside an untrained encoder's
    run.out       # configuration, metrics, checkpoints, weights, pictures

A method is one file in `fastssl.train.methods`; the loop, data and evaluation are shared.
"""

from importlib.util import find_spec

_missing = [
    package
    for package in (
        "lightning_fabric",
        "matplotlib",
        "pyarrow",
        "rich",
        "sklearn",
        "tensorboardX",
        "tokenizers",
        "typer",
        "yaml",
    )
    if find_spec(package) is None
]
if _missing:
    raise ModuleNotFoundError(
        f"the trainers need packages that are not installed ({', '.join(_missing)}): "
        f"install fastssl with its extra 'train', pip install '.[train]'",
        name=_missing[0],
    )

from fastssl.train.config import Config  # noqa: E402
from fastssl.train.errors import UsageError  # noqa: E402
from fastssl.train.method import Method  # noqa: E402
from fastssl.train.run import Run, pretrain  # noqa: E402
from fastssl.train.saved import Saved, open_run  # noqa: E402

__all__ = ["Config", "Method", "Run", "Saved", "UsageError", "open_run", "pretrain"]

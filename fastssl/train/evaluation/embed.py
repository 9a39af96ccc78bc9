"""A run's features in files that other programs read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastssl.train.errors import UsageError
from fastssl.train.evaluation.features import extract
from fastssl.train.files import replacing

if TYPE_CHECKING:
    from fastssl.train.saved import Saved


def embed(
    saved: "Saved", path: Path | None = None, device: torch.device | str = "cpu"
) -> tuple[Path, Path]:
    """Writes the trained encoder's features of all samples to features.npz and features.parquet.

    Both have a row for each sample, those to train on first: "sample_id", its place in its split,
    int64; "split", "train" or "test"; "label", int64, -1 for none; and "features", float32 [D], in
    Parquet a list of fixed size. The names of the classes are in the npz as "classes", in Parquet
    as JSON in the schema's metadata. Each file is written in one piece or not at all.

    Args:
        saved: the run.
        path: folder to write to, made if it is missing; None for the run's own.
        device: where to compute.

    Returns:
        The paths of both files.

    Raises:
        UsageError: the path is no folder or cannot be written to, or a feature is not finite.
    """
    path = saved.folder.path if path is None else Path(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"out: {path} is not a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out: cannot make {path}: {error.strerror}") from error
    data = saved.data
    features = extract(saved.model.backbone, data, device)
    splits = {"train": data.train, "test": data.test}
    columns = {
        "sample_id": np.concatenate([np.arange(len(of)) for of in splits.values()]),
        "split": np.repeat(list(splits), [len(of) for of in splits.values()]),
        "label": np.concatenate([of.labels.numpy() for of in splits.values()]),
        "features": np.concatenate([features.train, features.test]),
    }
    archive, table = path / "features.npz", path / "features.parquet"
    with replacing(archive) as temporary, temporary.open("wb") as file:
        np.savez(file, **columns, classes=np.array(data.classes, dtype=np.str_))
    with replacing(table) as temporary:
        _write_parquet(temporary, columns, data.classes)
    return archive, table


def _write_parquet(path: Path, columns: dict[str, np.ndarray], classes: tuple[str, ...]) -> None:
    import pyarrow
    from pyarrow import parquet

    features = columns["features"]
    arrays = {name: pyarrow.array(values) for name, values in columns.items() if values.ndim == 1}
    arrays["features"] = pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(features.reshape(-1)), features.shape[1]
    )
    made = pyarrow.table(arrays)
    made = made.replace_schema_metadata({"classes": json.dumps(classes)})
    parquet.write_table(made, path)

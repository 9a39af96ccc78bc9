"""The examples run as their documentation says."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def photographs(folder, sizes):
    image = pytest.importorskip("PIL.Image")
    for i, (height, width) in enumerate(sizes):
        levels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
        path = folder / f"part{i % 2}" / f"{i}.{('jpg', 'JPEG')[i % 2]}"
        path.parent.mkdir(exist_ok=True)
        image.fromarray(levels.numpy()).save(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_augment_folder(tmp_path, workers):
    photographs(tmp_path, [(40, 60), (64, 64), (33, 17), (120, 90), (50, 51)])
    (tmp_path / "notes.txt").write_text("no image")
    options = ("--size", 32, "--batch-size", 2, "--epochs", 2, "--workers", workers)
    picture = tmp_path / "views.png"
    done = run("augment_folder.py", tmp_path, *options, "--device", "cpu", "--picture", picture)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("epoch 0: 10 views (3, 32, 32) on cpu")
    assert second.startswith("epoch 1: 10 views")
    assert picture.stat().st_size > 0


def test_augment_folder_without_images(tmp_path):
    done = run("augment_folder.py", tmp_path)
    assert done.returncode != 0
    assert f"no JPEGs in {tmp_path}" in done.stderr


def test_ijepa_digits():
    pytest.importorskip("sklearn")
    done = run("ijepa_digits.py", "--steps", 3)
    assert done.returncode == 0, done.stderr
    steps, scores = done.stdout.split("test accuracy, %")
    assert steps.startswith("step 1/3  loss 0.") and "step 3/3  loss 0." in steps
    table = [line.rsplit(maxsplit=2) for line in scores.splitlines()[1:]]
    assert [line[0] for line in table] == [
        "1 per class",
        "5 per class",
        "10 per class",
        "all labels",
    ]
    assert all(10 < float(score) <= 100 for line in table for score in line[1:])


def test_pictures_to_map(tmp_path):
    pytest.importorskip("sklearn")
    done = run("pictures_to_map.py", "--epochs", 1, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "| logistic | 5 |" in done.stdout and "360 test pictures, 64 features" in done.stdout
    assert "have a nearest neighbour of their own class" in done.stdout
    assert (tmp_path / "run" / "map.png").read_bytes().startswith(b"\x89PNG")

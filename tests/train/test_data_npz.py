import re
import zipfile

import numpy as np
import pytest
import torch

from fastssl.train import UsageError, data


def levels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path, **arrays):
    np.savez(path / "made.npz", **arrays)
    return path / "made.npz"


def load(path):
    return data.load(f"npz:{path}")


def test_medmnist_has_labels_of_two_dimensions_and_a_split_for_validation(tmp_path):
    arrays = {}
    for name, count in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{name}_images"] = levels(count, 28, 28, 3)
        arrays[f"{name}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    made = load(save(tmp_path, **arrays))
    expected = torch.from_numpy(arrays["train_images"]).permute(0, 3, 1, 2)
    assert torch.equal(made.train.inputs, expected) and made.train.inputs.is_contiguous()
    assert made.test.inputs.shape == (3, 3, 28, 28) and made.test.labels.tolist() == [0, 1, 0]
    assert made.train.labels.dtype == torch.int64 and made.train.labels.tolist() == [0, 1] * 3
    assert made.name == "made" and made.classes == ("0", "1")
    for name in ("test_images", "test_labels"):
        del arrays[name]
    assert len(load(save(tmp_path, **arrays)).test) == 2


def test_keras_has_grey_images_without_channels(tmp_path):
    x, y = levels(7, 28, 30), np.array([5, 7, 5, 7, 5, -1, 7])
    made = load(save(tmp_path, x_train=x[:5], y_train=y[:5], x_test=x[5:], y_test=y[5:]))
    assert made.train.inputs.shape == (5, 1, 28, 30) and made.channels == 1
    assert torch.equal(made.test.inputs[:, 0], torch.from_numpy(x[5:]))
    assert made.classes == ("5", "7") and made.train.labels.tolist() == [0, 1, 0, 1, 0]
    assert made.test.labels.tolist() == [-1, 1]


def test_without_names_every_fifth_of_a_class_is_for_testing(tmp_path):
    images = levels(20, 3, 8, 8)
    made = load(save(tmp_path, images=images, labels=np.repeat([0, 1], 10)))
    assert torch.equal(made.test.inputs, torch.from_numpy(images[[4, 9, 14, 19]]))
    assert made.test.labels.tolist() == [0, 0, 1, 1] and len(made.train) == 16
    made = load(save(tmp_path, images=images, other=np.array([{}], object)))
    assert made.classes == () and (made.train.labels == -1).all() and len(made.test) == 4


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": levels(5, 8, 8)}, "holds pictures; must hold train_images and test_images"),
        ({"images": np.zeros((5, 8, 8))}, "images has dtype float64, must be uint8"),
        ({"images": levels(5, 8, 8, 4)}, r"images has shape \[5, 8, 8, 4\], must be"),
        ({"images": levels(5, 8)}, r"images has shape \[5, 8\], must be"),
        ({"images": levels(5, 0, 8)}, r"images has shape \[5, 0, 8\], its images are empty"),
        ({"images": levels(4, 8, 8)}, "has 4 images to train on and 0 to test on"),
        (
            {"images": levels(5, 8, 8), "labels": np.zeros(4, int)},
            r"labels has shape \[4\], must be one number for each of the 5 images",
        ),
        ({"images": levels(5, 8, 8), "labels": np.zeros((5, 14), int)}, "must be one number"),
        ({"images": levels(5, 8, 8), "labels": np.zeros(5)}, "labels has dtype float64, must be"),
        (
            {"x_train": levels(5, 8, 8), "x_test": levels(5, 8, 8, 3)},
            r"images to train on are \(1, 8, 8\) .* test on \(3, 8, 8\), must be the same",
        ),
        ({"images": np.array([{}], object)}, "not a numpy archive .* allow_pickle=False"),
    ],
)
def test_foreign_arrays_are_errors_that_name_the_file(tmp_path, arrays, message):
    path = save(tmp_path, **arrays)
    with pytest.raises(UsageError, match=f"^{re.escape(str(path))}: .*{message}"):
        load(path)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_missing_foreign_and_damaged_files(tmp_path, write):
    path = tmp_path / "made.npz"
    with pytest.raises(UsageError, match=r"made.npz: cannot be read \(No such file"):
        load(path)
    write(path, images=levels(10, 8, 8), labels=np.zeros(10, int))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[300] ^= 255
    for content in (b"", b"\x93NUMPY", whole[:40], whole[: len(whole) // 2], whole[:-1], flipped):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"made.npz: not a numpy archive \(.npz\), or damaged"):
            load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"no array")
    with pytest.raises(UsageError, match="made.npz: not a numpy archive .* images is no array"):
        load(path)

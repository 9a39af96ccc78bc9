import builtins
import os
import pickle

import numpy as np
import pytest
import torch

from fastssl.train import UsageError, data
from fastssl.train.data import cifar

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
#: A batch of no images as Python 2 and numpy 1 wrote the canonical files: byte strings, protocol 2.
CANONICAL = (
    b"\x80\x02}(U\x0bbatch_labelU\x01xU\x06labels](K\x02K\x00eU\x04datacnumpy.core.multiarray\n"
    b"_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\n"
    b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
    + (6144).to_bytes(4, "little") + bytes(range(256)) * 24 + b"tbu."
)  # fmt: skip


def write(root, protocol=4, count=3):
    folder = root / cifar.CIFAR10_FOLDER
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, count, 3072), dtype=np.uint8)
    for name, part in zip(BATCHES, pixels, strict=True):
        batch = {b"labels": [int(i) for i in range(count)], b"data": part, b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    names = {b"label_names": [f"kind{i}".encode() for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol))
    return folder, pixels


def test_digits_split_is_fixed_and_stratified():
    digits = data.load("digits")
    assert digits.train.inputs.shape == (1437, 1, 32, 32) and len(digits.test.labels) == 360
    assert digits.train.inputs.dtype == torch.uint8 and digits.train.inputs.max() == 255
    assert digits.train.labels[:8].tolist() == data.load("digits").train.labels[:8].tolist()
    assert digits.test.labels.bincount().min() >= 35
    assert len(data.load("digits", limit=7).train.inputs) == 7


def write_cifar100(root, protocol=4, **changes):
    folder = root / cifar.CIFAR100_FOLDER
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3072), dtype=np.uint8)
    for name, part in zip(("train", "test"), pixels, strict=True):
        batch = {b"fine_labels": [0, 99, 7], b"coarse_labels": [0, 19, 3], b"data": part}
        batch |= {key.encode(): value for key, value in changes.items()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    names = {b"fine_label_names": [b"fine%d" % i for i in range(100)], b"coarse_label_names": []}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol))
    return folder, pixels


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar100_is_read_with_its_fine_classes(tmp_path, protocol):
    _, pixels = write_cifar100(tmp_path, protocol)
    loaded = data.load("cifar100", tmp_path)
    assert torch.equal(loaded.train.inputs, torch.from_numpy(pixels[0]).view(3, 3, 32, 32))
    assert torch.equal(loaded.test.inputs, torch.from_numpy(pixels[1]).view(3, 3, 32, 32))
    assert loaded.train.labels.tolist() == [0, 99, 7] and loaded.name == "cifar100"
    assert len(loaded.classes) == 100 and loaded.classes[99] == "fine99"


def test_cifar100_is_as_careful_as_cifar10(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match="^root: data='cifar100' needs the folder that holds cifar"
    ):
        data.load("cifar100")
    with pytest.raises(UsageError, match="^root: .* holds no folder cifar-100-python"):
        data.load("cifar100", tmp_path)
    write_cifar100(tmp_path, fine_labels=[0, 100, 7])
    with pytest.raises(UsageError, match="train: fine_labels must be whole numbers from 0 to 99"):
        data.load("cifar100", tmp_path)
    folder, _ = write_cifar100(tmp_path, data=Attack(os.system, "touch hacked"))
    with pytest.raises(UsageError, match="train: not a CIFAR file.*system.*refused"):
        data.load("cifar100", tmp_path)
    assert not (tmp_path / "hacked").exists()
    (folder / "meta").write_bytes(pickle.dumps({b"label_names": []}, 4))
    with pytest.raises(UsageError, match="meta: holds no list fine_label_names"):
        data.load("cifar100", tmp_path)
    (folder / "meta").unlink()
    with pytest.raises(UsageError, match="meta: cannot be read"):
        data.load("cifar100", tmp_path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar10_is_read(tmp_path, protocol):
    _, pixels = write(tmp_path, protocol)
    loaded = data.load("cifar10", tmp_path)
    expected = torch.from_numpy(pixels).view(18, 3, 32, 32)
    assert torch.equal(torch.cat([loaded.train.inputs, loaded.test.inputs]), expected)
    assert loaded.train.labels.tolist() == [0, 1, 2] * 5 and loaded.channels == 3
    assert loaded.classes[9] == "kind9"
    loaded.train.inputs.zero_()


def test_the_dialect_of_the_canonical_files_is_read(tmp_path):
    folder, _ = write(tmp_path)
    (folder / "test_batch").write_bytes(CANONICAL)
    test = data.load("cifar10", tmp_path).test
    assert test.labels.tolist() == [2, 0]
    assert test.inputs.flatten()[:300].tolist() == [i % 256 for i in range(300)]


class Attack:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("attack", "refused"),
    [
        (Attack(os.system, "touch hacked"), "system"),
        (Attack(builtins.eval, "open('hacked', 'w')"), "builtins.eval"),
        (Attack(getattr, {}, "clear"), "builtins.getattr"),
        (Attack(np.load, "hacked"), "load"),
    ],
    ids=["system", "eval", "getattr", "numpy"],
)
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, attack, refused):
    monkeypatch.chdir(tmp_path)
    folder, _ = write(tmp_path)
    batch = {b"labels": [], b"data": attack}
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch, 4))
    with pytest.raises(UsageError, match=f"data_batch_2: not a CIFAR file.*{refused}.*refused"):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "holds list, not a dict"),
        ({b"labels": [0]}, "data must be a uint8 array"),
        ({b"labels": [0], b"data": np.zeros((1, 3071), np.uint8)}, "data must be a uint8 array"),
        ({b"labels": [0], b"data": np.zeros((1, 3072))}, "not uint8"),
        ({b"labels": [0], b"data": np.array([[os]], object)}, "not a CIFAR file|refused"),
        ({b"labels": [0, 1], b"data": np.zeros((1, 3072), np.uint8)}, "a list of 1 numbers"),
        ({b"labels": [10], b"data": np.zeros((1, 3072), np.uint8)}, "from 0 to 9"),
        ({b"labels": ["cat"], b"data": np.zeros((1, 3072), np.uint8)}, "from 0 to 9"),
    ],
)
def test_a_foreign_pickle_is_an_error_that_names_the_file(tmp_path, batch, message):
    folder, _ = write(tmp_path)
    path = folder / "test_batch"
    try:
        path.write_bytes(pickle.dumps(batch, 4))
    except TypeError:
        path.write_bytes(b"cos\nsystem\n.")
    with pytest.raises(UsageError, match=f"test_batch: .*({message})"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x02M\x00\x0c\x86", b"K\x03M\x00\x0c\x86", r"6144 bytes of an array \(3, 3072\)"),
        (CANONICAL[CANONICAL.index(b"(K\x01K\x02M") :], b"u.", "data must be a uint8 array"),
    ],
    ids=["another shape", "without content"],
)
def test_a_damaged_array_is_an_error_that_names_the_file(tmp_path, old, new, message):
    folder, _ = write(tmp_path)
    (folder / "test_batch").write_bytes(CANONICAL.replace(old, new))
    with pytest.raises(UsageError, match=f"test_batch: .*{message}"):
        data.load("cifar10", tmp_path)


def test_missing_and_truncated_files(tmp_path):
    with pytest.raises(UsageError, match="^root: data='cifar10' needs the folder"):
        data.load("cifar10")
    with pytest.raises(UsageError, match="^root: .* holds no folder cifar-10-batches-py"):
        data.load("cifar10", tmp_path)
    folder, _ = write(tmp_path)
    whole = (folder / "data_batch_4").read_bytes()
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        (folder / "data_batch_4").write_bytes(whole[:length])
        with pytest.raises(UsageError, match="data_batch_4: not a CIFAR file, or damaged"):
            data.load("cifar10", tmp_path)
    (folder / "data_batch_4").unlink()
    with pytest.raises(UsageError, match="data_batch_4: cannot be read"):
        data.load("cifar10", tmp_path)

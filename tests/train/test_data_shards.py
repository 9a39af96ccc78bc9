import io
import json
import pickle
import tarfile

import pytest
import torch
from torch.utils.data import DataLoader

from fastssl.train import UsageError, data
from fastssl.train.data import lazy
from fastssl.train.data.shards import expand

Image = pytest.importorskip("PIL.Image")


def picture(colour, kind="PNG", size=(20, 12)):
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, kind)
    return content.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))


def write_samples(path, first, count, classes=2):
    """A shard of samples whose colour tells their number."""
    members = []
    for i in range(first, first + count):
        members += [(f"a/{i:04d}.cls", str(i % classes).encode()), (f"a/{i:04d}.png", colour(i))]
    write(path, members)


def colour(i):
    return picture((i, 0, 0))


def load(pattern, side=8, **keywords):
    return data.load(f"wds:{pattern}", image_size=side, **keywords)


def numbers(images):
    return images[:, 0, 4, 4].tolist()


def test_braces_stand_for_choices_and_padded_numbers():
    assert expand("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand("{b,a}/{1..2}") == ["b/1", "b/2", "a/1", "a/2"]
    assert expand("{9..012}") == ["009", "010", "011", "012"]
    assert expand("{0..10}") == [str(number) for number in range(11)]
    assert expand("{2..0}") == ["2", "1", "0"] and expand("{x}{}") == ["{x}{}"]
    for pattern in ("{0..99999999999}", "{0..999}{0..999}"):
        with pytest.raises(UsageError, match="^data: .* stands for more than 100,000 shards"):
            expand(pattern)


def test_shards_are_read_in_order_and_those_beside_them_are_for_testing(tmp_path):
    write_samples(tmp_path / "train-000000.tar", 0, 4)
    write_samples(tmp_path / "train-000001.tar", 4, 3)
    write_samples(tmp_path / "val-000000.tar", 50, 2)
    made = load(tmp_path / "train-{000000..000001}.tar")
    assert made.name == tmp_path.name and made.classes == ("0", "1") and made.kind == "images"
    images = made.train.inputs
    assert images.shape == (7, 3, 8, 8) and images.dtype == torch.uint8 and made.channels == 3
    assert numbers(images[:]) == [0, 1, 2, 3, 4, 5, 6]
    assert numbers(images[torch.tensor([5, 0, 5, -1])]) == [5, 0, 5, 6]
    assert images[2].shape == (3, 8, 8) and images[3:3].shape == (0, 3, 8, 8)
    assert made.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert numbers(made.test.inputs[:]) == [50, 51]
    assert numbers(load(tmp_path / "train-*.tar", limit=2).train.inputs[:]) == [0, 1]
    with pytest.raises(IndexError):
        images[torch.tensor([7])]
    assert images.unreadable() == []


def test_every_fifth_of_a_class_is_for_testing(tmp_path):
    write_samples(tmp_path / "all.tar", 0, 10)
    made = load(tmp_path / "all.tar")
    assert numbers(made.test.inputs[:]) == [8, 9] and made.test.labels.tolist() == [0, 1]
    assert numbers(made.train.inputs[:]) == list(range(8))


def test_samples_are_what_shares_a_name_up_to_the_first_dot(tmp_path):
    members = [
        ("./x/1.jpg", picture((9, 9, 9), "JPEG")),
        ("./x/1.json", b'{"label": 4, "text": "a"}'),
        ("./x/2.seg.png", b"a mask, not the image"),
        ("./x/2.JPEG", picture((9, 9, 9), "JPEG")),
        ("./x/2.json", b'{"label": 1}'),
        ("./x/2.cls", b"7\n"),
        ("./y/2.webp", picture((9, 9, 9), "WEBP")),
        ("./y/2.json", b"[]"),
        ("./x/._2.jpg", b"hidden"),
        ("./x/" + 120 * "long" + ".png", picture((9, 9, 9))),
        ("./x/3.cls", b"5"),
    ]
    write(tmp_path / "train.tar", members)
    write(tmp_path / "test.tar", members[:2])
    made = load(tmp_path / "train.tar")
    assert made.classes == ("4", "7") and made.train.labels.tolist() == [0, 1, -1, -1]
    assert (made.train.inputs[:].int() - 9).abs().max() <= 2


def test_images_are_brought_to_size_as_those_of_a_folder(tmp_path):
    wide = Image.new("RGB", (96, 32), (255, 0, 0))
    wide.paste((0, 0, 255), (32, 0, 64, 32))
    (tmp_path / "folder").mkdir()
    members = []
    for i in range(5):
        wide.save(tmp_path / "folder" / f"{i}.jpg")
        members.append((f"{i}.jpg", (tmp_path / "folder" / f"{i}.jpg").read_bytes()))
    write(tmp_path / "wide.tar", members)
    in_memory = data.load(f"folder:{tmp_path / 'folder'}", image_size=16).train.inputs
    assert torch.equal(load(tmp_path / "wide.tar", 16).train.inputs[:], in_memory)


def test_an_unreadable_image_is_replaced_by_the_next_of_its_label(tmp_path, capsys):
    members = []
    for i in range(8):
        content = colour(i)
        broken = {2: b"no image", 5: b"", 7: content[: len(content) // 2]}
        members += [(f"{i}.png", broken.get(i, content)), (f"{i}.cls", str(i % 2).encode())]
    write(tmp_path / "train.tar", members)
    write_samples(tmp_path / "test.tar", 0, 2)
    images = load(tmp_path / "train.tar").train.inputs
    expected = [0, 1, 4, 3, 4, 1, 6, 1]
    assert numbers(images[:]) == expected and numbers(images[2:6]) == expected[2:6]
    names = images.unreadable()
    assert names == [f"{tmp_path / 'train.tar'}: {i}.png" for i in (2, 5, 7)]
    said = capsys.readouterr().out
    assert said.count("cannot be read and is replaced") == 3 and names[0] in said
    assert len(images.first(3).unreadable()) == 1
    write(tmp_path / "train.tar", [(f"{i}.png", b"no image") for i in range(3)])
    with pytest.raises(UsageError, match="^data: .*train.tar: 1.png and those that could replace"):
        load(tmp_path / "train.tar").train.inputs[1:2]


def test_workers_read_the_same_and_tell_what_they_could_not(tmp_path):
    write_samples(tmp_path / "train-0.tar", 0, 6)
    write(tmp_path / "train-1.tar", [("6.png", b"no image"), ("6.cls", b"0")])
    write_samples(tmp_path / "test-0.tar", 0, 2)
    images = load(tmp_path / "train-{0..1}.tar").train.inputs
    # The first process has the shards open when its workers begin.
    assert numbers(images[:2]) == [0, 1]
    ids = [torch.tensor([5, 6, 0]), torch.tensor([1, 2]), torch.tensor([3, 4])]
    batches = list(DataLoader(images, sampler=ids, batch_size=None, num_workers=2))
    assert images.unreadable() == [f"{tmp_path / 'train-1.tar'}: 6.png"]
    assert all(torch.equal(batch, images[of]) for batch, of in zip(batches, ids, strict=True))
    assert numbers(torch.cat(batches)) == [5, 0, 0, 1, 2, 3, 4]


def test_threads_and_a_limit_of_open_files_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "OPEN", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for i in range(4):
        write_samples(tmp_path / f"train-{i}.tar", 5 * i, 5)
    write_samples(tmp_path / "test-0.tar", 0, 2)
    images = load(tmp_path / "train-{0..3}.tar").train.inputs
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert numbers(images[order]) == order.tolist()
    copied = pickle.loads(pickle.dumps(images))
    assert torch.equal(copied[order], images[order])
    assert copied.fingerprint() == images.fingerprint() != images.first(19).fingerprint()


def test_a_shard_that_is_cut_short_or_foreign_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "train.tar"
    write_samples(tmp_path / "test.tar", 0, 2)
    write_samples(path, 0, 3)
    whole = path.read_bytes()
    with tarfile.open(path) as shard:
        members = shard.getmembers()
    end = members[-1].offset_data + 512
    damaged = bytearray(whole)
    damaged[members[2].offset] ^= 255
    cut = [whole[:n] for n in (0, 100, members[1].offset_data + 5, members[4].offset, end)]
    for content in (*cut, damaged, b"no tar" * 200, b"\x1f\x8b" + whole):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="^data: .*train.tar is not an uncompressed tar file"):
            load(path)
    path.write_bytes(whole)
    images = load(path).train.inputs
    path.write_bytes(whole[: members[-1].offset_data])
    with pytest.raises(UsageError, match="^data: .*train.tar has become shorter since"):
        images[:]
    path.unlink()
    with pytest.raises(UsageError, match=r"^data: .*train.tar cannot be read \(No such file"):
        pickle.loads(pickle.dumps(images))[:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.cls", b"dog", "1.cls holds no label"),
        ("1.cls", b"-2", "1.cls holds the label -2, must be a whole number from -1"),
        ("1.cls", b"9" * 30, "1.cls holds the label 9999"),
        ("1.json", b"{", "1.json holds no label"),
        ("1.json", json.dumps({"label": "dog"}).encode(), "1.json holds the label 'dog'"),
        ("1.json", json.dumps({"label": True}).encode(), "1.json holds the label True"),
    ],
)
def test_a_label_that_is_no_number_is_an_error(tmp_path, name, content, message):
    write(tmp_path / "all.tar", [("1.png", colour(1)), (name, content)])
    with pytest.raises(UsageError, match=f"^data: .*all.tar: {message}"):
        load(tmp_path / "all.tar")


def test_missing_shards_and_too_few_samples(tmp_path):
    write_samples(tmp_path / "train-0.tar", 0, 4)
    for pattern in ("train-{0..1}.tar", "train-1.tar", "other-*.tar", ""):
        with pytest.raises(UsageError, match="^data: .* is missing, or not a file"):
            load(tmp_path / pattern)
    with pytest.raises(UsageError, match="^data: .* has 4 images to train on and 0 to test on"):
        load(tmp_path / "train-0.tar")

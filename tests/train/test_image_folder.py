import pytest
import torch

from fastssl.train import UsageError, data, pretrain
from fastssl.train.data import image_folder

Image = pytest.importorskip("PIL.Image")


def save(path, size=(40, 30), colour=(200, 30, 60), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def load(path, **keywords):
    return data.load(f"folder:{path}", **keywords)


def colours(split):
    return [tuple(image[:, 8, 8].tolist()) for image in split.inputs]


def test_classes_are_the_folders(tmp_path):
    for i in range(10):
        save(tmp_path / "zebra" / f"{i}.png", (20 + i, 33), (i, 0, 0))
        save(tmp_path / "ape" / "deep" / f"{i}.PNG", (50, 21 + i), (i, 1, 0))
    save(tmp_path / "ape" / "x9.bmp", (16, 16), (99, 1, 0))
    (tmp_path / "ape" / "notes.txt").write_text("no image")
    made = load(tmp_path, image_size=16)
    assert made.name == tmp_path.name and made.classes == ("ape", "zebra") and made.channels == 3
    assert made.train.inputs.shape == (17, 3, 16, 16) and made.train.inputs.dtype == torch.uint8
    assert colours(made.test) == [(4, 1, 0), (4, 0, 0), (9, 1, 0), (9, 0, 0)]
    assert made.test.labels.tolist() == [0, 1, 0, 1]
    assert made.train.labels[:6].tolist() == [0, 1, 0, 1, 0, 1]
    assert colours(made.train)[-1] == (99, 1, 0)
    assert load(tmp_path, limit=3).train.labels.tolist() == [0, 1, 0]


def test_the_shorter_side_is_fitted_and_the_middle_kept(tmp_path):
    wide = Image.new("RGB", (96, 32), (255, 0, 0))
    wide.paste((0, 0, 255), (32, 0, 64, 32))
    for i in range(5):
        wide.save(tmp_path / f"{i}.png")
    made = load(tmp_path, image_size=32)
    expected = torch.tensor([0, 0, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert torch.equal(made.train.inputs, expected.expand(4, 3, 32, 32))


def test_cameras_may_have_been_turned_and_images_gray(tmp_path):
    turned = Image.new("RGB", (32, 32), (255, 255, 255))
    turned.paste((0, 0, 0), (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for i in range(4):
        turned.save(tmp_path / f"{i}.png", exif=exif)
    Image.new("L", (32, 32), 7).save(tmp_path / "4.png")
    made = load(tmp_path)
    assert (made.train.inputs[:, :, :14] == 255).all() and (made.train.inputs[:, :, 18:] == 0).all()
    assert (made.test.inputs == 7).all()


def test_large_photographs_are_brought_down_in_one_tone(tmp_path):
    for i in range(5):
        save(tmp_path / f"{i}.jpg", (900, 700), (10, 120, 240), quality=95)
    made = load(tmp_path)
    assert made.train.inputs.shape == (4, 3, 32, 32)
    target = torch.tensor([10, 120, 240]).view(3, 1, 1)
    assert (made.train.inputs.int() - target).abs().max() <= 4


def test_unreadable_files_are_reported_and_left_out(tmp_path, capsys):
    for i in range(9):
        save(tmp_path / f"{i}.jpg")
    for i in range(4):
        (tmp_path / f"a{i}.jpg").write_bytes(b"no image")
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "0.jpg").write_bytes(whole[: len(whole) // 2])
    made = load(tmp_path)
    assert len(made.train.inputs) + len(made.test.inputs) == 8 and made.left_out == 5
    line = capsys.readouterr().out
    assert line.startswith("data: left out 5 that cannot be read: ") and "and 2 more" in line
    assert str(tmp_path / "0.jpg") in line and line.count("\n") == 1


def test_images_that_do_not_fit_are_read_when_they_are_needed(tmp_path, monkeypatch, capsys):
    for i in range(12):
        save(tmp_path / "a" / f"{i:02d}.png", (20 + i, 33), (i, 0, 0))
        save(tmp_path / "b" / f"{i:02d}.jpg", (50, 21 + i), (i, 99, 0))
    (tmp_path / "a" / "00.png").write_bytes(b"no image")
    Image.new("F", (32, 32), 0.5).save(tmp_path / "b" / "12.tif")
    in_memory = load(tmp_path, image_size=16)
    monkeypatch.setattr(image_folder, "LARGEST", 25 * 3 * 16**2)
    assert isinstance(load(tmp_path, image_size=16).train.inputs, torch.Tensor)
    monkeypatch.setattr(image_folder, "LARGEST", 25 * 3 * 16**2 - 1)
    lazily = load(tmp_path, image_size=16)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[2] and lines[0].startswith("data: left out 2 that cannot be read: ")
    for name in ("train", "test"):
        read, expected = getattr(lazily, name), getattr(in_memory, name)
        assert not isinstance(read.inputs, torch.Tensor) and len(read.inputs) == len(expected)
        assert torch.equal(read.inputs[:], expected.inputs)
        assert torch.equal(read.labels, expected.labels)
    # Only its header was read: that it is damaged is seen now.
    whole = (tmp_path / "b" / "03.jpg").read_bytes()
    (tmp_path / "b" / "03.jpg").write_bytes(whole[: len(whole) // 2])
    changed = (lazily.train.inputs[:] != in_memory.train.inputs).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [7] and lazily.train.labels[7] == 1
    assert lazily.train.inputs.unreadable() == [str(tmp_path / "b" / "03.jpg")]


@pytest.mark.parametrize("name", ["test", "val"])
def test_splits_may_be_folders(tmp_path, name):
    for split, count in (("train", 6), (name, 2)):
        for kind in ("a", "b"):
            for i in range(count):
                save(tmp_path / split / kind / f"{i}.png", colour=(i, 0, 0))
    made = load(tmp_path)
    assert made.classes == ("a", "b")
    assert len(made.train.inputs) == 12 and len(made.test.inputs) == 4
    save(tmp_path / name / "c" / "0.png")
    with pytest.raises(UsageError, match="^data: .*hold different classes"):
        load(tmp_path)


@pytest.mark.parametrize("nested", [(), ("only",)])
def test_without_classes_there_is_no_table_but_a_picture(tmp_path, capsys, nested):
    for i in range(60):
        save(tmp_path.joinpath("photos", *nested, f"{i}.png"), colour=(4 * i, 255 - 4 * i, 90))
    run = pretrain(
        "mae", data=f"folder:{tmp_path / 'photos'}", image_size=16, out=tmp_path / "run", width=16,
        decoder_width=16, decoder_depth=1, batch_size=16, epochs=1, accelerator="cpu",
    )  # fmt: skip
    assert run.rows == []
    assert "photos has no two classes, so features are drawn but not measured" in (
        capsys.readouterr().out
    )
    assert {"report.png", "reconstructions.png"} <= {path.name for path in run.out.iterdir()}


def test_errors_name_the_argument(tmp_path):
    with pytest.raises(UsageError, match="^data: .*/none is not a folder"):
        load(tmp_path / "none")
    with pytest.raises(UsageError, match="^data: .* has 0 images to train on and 0 to test on"):
        load(tmp_path)
    for i in range(4):
        save(tmp_path / f"{i}.png")
    with pytest.raises(UsageError, match="^data: .* has 4 images to train on and 0 to test on"):
        load(tmp_path)


def test_hidden_files_and_classes_without_images_are_none(tmp_path):
    """What an archive from a Mac, or a notebook, leaves beside the photographs."""
    for i in range(10):
        save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "__MACOSX" / "photos").mkdir(parents=True, exist_ok=True)
        (tmp_path / "__MACOSX" / "photos" / f"._{i}.png").write_bytes(b"no image")
        save(tmp_path / "photos" / ".ipynb_checkpoints" / f"{i}.png")
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{i}.png").write_bytes(b"no image")
    made = load(tmp_path)
    assert made.classes == () and len(made.train.inputs) == 8 and len(made.test.inputs) == 2


def test_levels_of_sixteen_bits_keep_their_upper_half(tmp_path):
    ramp = torch.arange(65536, dtype=torch.int32).view(256, 256).numpy().astype("uint16")
    for i in range(9):
        Image.fromarray(ramp).save(tmp_path / f"{i}.png")
    Image.new("F", (32, 32), 0.5).save(tmp_path / "9.tif")
    made = load(tmp_path, image_size=256)
    assert len(made.train.inputs) == 8 and len(made.test.inputs) == 1
    assert torch.equal(made.train.inputs[0, 0, :, 0], torch.arange(256, dtype=torch.uint8))


def test_resuming_on_other_images_is_refused(tmp_path):
    def train(**keywords):
        options = {"data": f"folder:{tmp_path / 'data'}", "image_size": 8, "patch_size": 4}
        options |= {"width": 8, "decoder_width": 8, "batch_size": 4, "evaluate": False}
        return pretrain("mae", out=tmp_path / "run", **options, **keywords)

    for i in range(10):
        save(tmp_path / "data" / f"{i}.png", colour=(i, 0, 0))
    train(epochs=1)
    save(tmp_path / "data" / "0.png", colour=(99, 0, 0))
    with pytest.raises(UsageError, match="^resume: .* was trained on other"):
        train(epochs=1, resume=True)

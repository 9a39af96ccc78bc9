"""Pictures are drawn from made-up numbers: what they say is in their axes, not in their pixels."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastssl.train import Config, Method, UsageError, method, pictures
from fastssl.train.data import Data, Split
from fastssl.train.evaluation import Row, Score, tables
from fastssl.train.folder import RunFolder
from fastssl.train.pictures.accuracy import accuracies
from fastssl.train.pictures.curves import curves
from fastssl.train.pictures.labels import in_order
from fastssl.train.pictures.maps import some, tsne
from fastssl.train.pictures.samples import neighbours, views
from fastssl.train.saved import Saved
from fastssl.train.views import MEAN, STD, to_float

CPU = torch.device("cpu")


def image_data(count=12, channels=3, classes=("cat", "dog"), side=8):
    images = torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)
    split = Split(images, torch.arange(count) % max(1, len(classes)))
    return Data("toys", classes, split, split)


def metrics(steps=60, online=()):
    return [
        {
            "event": "step",
            "step": i + 1,
            "epoch": 1,
            "lr": 0.1,
            "loss": 1 / (i + 1),
            "accuracy": 0.5,
        }
        | {"images_per_second": 9.0}
        for i in range(steps)
    ] + [{"event": "online", "step": i, "epoch": i} | dict(online) for i in (1, 2) if online]


def titles(figure):
    return [axis.get_title() for axis in figure.axes]


def test_curves_show_what_was_logged():
    assert titles(curves(metrics())) == ["loss", "learning rate", "accuracy"]
    figure = curves(metrics(online={"knn": 0.5, "rank_me": 3.0, "deviation": 0.1}))
    assert len(figure.axes) == 6 and titles(figure)[3].startswith("online kNN accuracy")
    raw, smooth = figure.axes[0].lines
    assert raw.get_ydata()[0] == 1 and smooth.get_ydata()[30] == pytest.approx(
        (1 / 30 + 1 / 31) / 2
    )
    assert list(figure.axes[3].lines[0].get_ydata()) == [50, 50]
    # Data without classes has no kNN accuracy.
    assert len(curves(metrics(online={"rank_me": 3.0, "deviation": 0.1})).axes) == 5
    assert len(curves(metrics(steps=1)).axes[0].lines) == 1
    assert curves([]) is None


def rows():
    return [
        Row(probe, labels, Score(0.3, 0.02), Score(0.6, 0.04))
        for probe in ("knn-20", "linear")
        for labels in ("all", "10", "1%", "5")
    ]


def test_accuracies_have_a_panel_for_each_probe():
    figure = accuracies(rows())
    assert [title.partition(":")[0] for title in titles(figure)] == ["knn-20", "linear"]
    ticks = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert ticks == ["5", "10", "1%", "all"] == in_order(["all", "1%", "10", "5", "5"])
    before, after = (bars.get_segments()[0] for bars in figure.axes[0].collections)
    assert before[:, 1] == pytest.approx([28, 32]) and after[:, 1] == pytest.approx([56, 64])
    assert accuracies([]) is None


def test_maps_colour_known_classes_only():
    features = {"untrained": np.random.rand(9, 4), "pretrained": np.random.rand(9, 4)}
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, -1])
    figure = tsne(features, labels, ("cat", "dog"), seed=0, metrics=metrics(3))
    assert titles(figure)[0] == "loss" and len(figure.axes) == 3
    assert figure.axes[1].get_legend_handles_labels()[1] == ["cat", "dog"]
    points = [len(part.get_offsets()) for part in figure.axes[2].collections]
    assert points == [1, 4, 4]
    many = tuple(f"class {i}" for i in range(20))
    for classes in ((), many):
        assert not tsne({"one": np.random.rand(1, 4)}, np.zeros(1, int), classes, 0).legends


def test_a_collapsed_encoder_has_a_map_too():
    figure = tsne({"one": np.full((9, 4), 0.7)}, np.zeros(9, int), ("cat", "dog"), seed=0)
    assert not figure.axes[0].collections[1].get_offsets().any()


def test_a_choice_of_samples_is_all_or_random():
    assert some(5, 9).tolist() == [0, 1, 2, 3, 4]
    chosen = some(1000, 10, seed=1)
    assert len(chosen.unique()) == 10 and chosen.tolist() == some(1000, 10, seed=1).tolist()
    assert chosen.max() > 100 and (chosen.diff() > 0).all()


def test_grid_keeps_proportions_and_takes_rows_of_any_size():
    wide, small = torch.rand(2, 3, 4, 8), torch.rand(5, 1, 3, 3)
    figure = pictures.grid({"wide": wide, "small": small}, "title " * 40)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["wide", "small"]
    left, right, bottom, top = axis.images[0].get_extent()
    assert (right - left) == pytest.approx(2 * (bottom - top)) and len(axis.images) == 7


class Toy(nn.Module):
    """Views of every shape that methods make: images, pairs, tiles, and what is no image."""

    name = "toy"

    def views(self, images, sample_ids, step):
        assert step == 0 and images.dtype == torch.uint8
        x = to_float(images)
        turned = torch.cat([x, x.flip(3)])
        tiles = (
            x.unflatten(2, (2, -1)).unflatten(4, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        )
        return [images, turned, tiles, sample_ids, x.mean((2, 3)), None]


def test_views_are_shown_in_their_colours_and_tiles_as_a_puzzle():
    data = image_data(count=3)
    figure = views(Toy(), data, CPU, seed=0)
    (axis,) = figure.axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ["image", "view 1", "view 2", "view 3", "view 4"]
    shown = [image.get_array() for image in axis.images[::3]]
    first = data.train.inputs[0].permute(1, 2, 0).numpy() / 255
    for same in shown[:3]:
        np.testing.assert_allclose(same, first, atol=1e-6)
    np.testing.assert_allclose(shown[3], first[:, ::-1], atol=1e-6)
    # Four tiles of 4 x 4 with a white line of one pixel between them.
    assert shown[4].shape == (9, 9, 3) and (shown[4][4] == 1).all()
    np.testing.assert_allclose(shown[4][5:, :4], first[4:, :4], atol=1e-6)


def test_views_without_images_are_not_drawn():
    toy = Toy()
    toy.views = lambda images, sample_ids, step: [sample_ids]
    assert views(toy, image_data(3), CPU, 0) is None


@pytest.mark.parametrize("classes", [("cat", "dog"), ()])
def test_neighbours_are_the_nearest_by_cosine(classes):
    data = image_data(count=12, classes=classes)
    ids = torch.arange(12)
    angles = ids * 0.1
    # Longer vectors are not nearer.
    features = torch.stack([angles.cos(), angles.sin()], 1) * (1 + ids[:, None])
    figure = neighbours(data, (ids, features), (ids[:1], features[:1]), seed=0)
    (axis,) = figure.axes
    for nearest, image in enumerate(axis.images[1:]):
        expected = data.train.inputs[nearest].permute(1, 2, 0).numpy() / 255
        np.testing.assert_allclose(image.get_array(), expected, atol=1e-6)
    colours = [patch.get_edgecolor() for patch in axis.patches]
    assert len(colours) == (5 if classes else 0)
    if classes:
        assert colours[0] == colours[2] != colours[1]
        assert [text.get_text() for text in axis.texts][:3] == ["cat", "cat", "dog"]
        # An image without a label is neither of the same class nor of another.
        unlabelled = replace(data.test, labels=torch.full_like(data.test.labels, -1))
        data = replace(data, test=unlabelled, train=unlabelled)
        figure = neighbours(data, (ids, features), (ids[:1], features[:1]), seed=0)
        assert not figure.axes[0].patches


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setattr(method, "_methods", dict(method._methods))

    class Drawn(Method):
        name = "drawn"

        def __init__(self, config, data):
            super().__init__(config, data)
            self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

        def views(self, images, sample_ids, step):
            return [to_float(images)]

        def forward(self, view):
            return {"loss": self.backbone(view).mean()}

        def pictures(self, data, device):
            assert not torch.is_grad_enabled() and not self.training
            return {"own": pictures.grid({"mean": torch.full((1, 1, 2, 2), MEAN * STD)}, "own")}

    folder = RunFolder(tmp_path)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics(3)))
    data = image_data()
    model = Drawn(Config(), data)
    return Saved(folder, model.config, data, model, nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))


def test_draw_writes_every_picture_whole(saved):
    folder = saved.folder
    folder.results.write_text(json.dumps(tables.as_json(rows())))
    drawn = pictures.draw(saved, CPU)
    assert [path.stem for path in drawn] == [*pictures.NAMES, "own"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert {path.suffix for path in folder.path.iterdir()} == {".png", ".json", ".jsonl"}


def test_draw_says_which_results_are_damaged(saved):
    saved.folder.results.write_text('{"rows": [')
    saved.folder.metrics.unlink()
    with pytest.raises(UsageError, match="results.json holds no results, or is damaged"):
        pictures.draw(saved, CPU)


def test_texts_have_a_map_but_no_views(saved):
    ids = torch.randint(0, 9, (8, 192))
    split = Split(ids, torch.full((8,), -1))
    texts = Data("texts", (), split, split)
    # Token ids are given to the encoder as they are.
    encoder = nn.Embedding(9, 4)
    bag = nn.Sequential(encoder, nn.Flatten())
    saved.model.backbone = bag
    drawn = pictures.draw(Saved(saved.folder, saved.config, texts, saved.model, bag), CPU)
    assert [path.stem for path in drawn] == ["curves", "tsne", "own"]


def test_report_takes_features_of_all_test_samples(tmp_path):
    maps = {"untrained": np.random.rand(12, 4), "pretrained": np.random.rand(12, 4)}
    path = Path(tmp_path) / "report.png"
    pictures.report(path, metrics(3), image_data(), maps, 0)
    assert path.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1

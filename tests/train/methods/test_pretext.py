"""Jigsaw, rotation, relative patch, patch order: what they ask, and what they are told."""

import itertools

import pytest
import torch
from torch import nn

from fastssl import masking
from fastssl.train import UsageError, pretrain, saved
from fastssl.train.data import Data, Split
from fastssl.train.methods import find

TINY = {"limit": 160, "batch_size": 64, "epochs": 2, "accelerator": "cpu", "evaluate": False}
#: Of each method: keywords for tests, and how many answers its question has with them.
PUZZLES = {
    "jigsaw": ({"width": 4, "hidden": 8, "permutations": 20}, 20),
    "rotation": ({"width": 4}, 4),
    "relative-patch": ({"width": 4, "hidden": 8}, 8),
    "patch-order": ({"width": 16}, 64),
}
GENERATIVE = {
    "autoencoder": {"width": 4, "decoder_width": 4, "noise": 0.25},
    "gan": {"width": 4, "generator_width": 4, "noise_size": 8},
}
IDS = torch.tensor([7, 0, 1 << 40, 3])


def some_data(channels=1, sides=(32, 32), count=4):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, *sides)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    split = Split(images, torch.full((count,), -1))
    return Data("noise", (), split, split)


def build(name, data=None, **keywords):
    torch.manual_seed(0)
    method = find(name)
    data = data or some_data()
    return method(method.Config(**PUZZLES[name][0] | keywords), data), data.train.inputs


def seen(views):
    """The tensors of a step's views."""
    parts = ([v.ids_shuffle, v.mask] if isinstance(v, masking.MaskPlan) else [v] for v in views)
    return [*itertools.chain(*parts)]


@pytest.mark.parametrize("name", PUZZLES)
def test_views_are_a_function_of_seed_step_and_id(name):
    model, images = build(name)
    whole = seen(model.views(images, IDS, 3))
    assert all(map(torch.equal, whole, seen(model.views(images, IDS, 3))))
    assert not all(map(torch.equal, whole, seen(model.views(images, IDS, 4))))
    # Rotation has four of each image, in turn.
    turns = 4 if name == "rotation" else 1
    half = seen(model.views(images[2:], IDS[2:], 3))
    for part, of in zip(half, whole, strict=True):
        of = of.unflatten(0, (turns, -1))[:, 2:].flatten(0, 1)
        # Numbers of a tile may be added up in another order.
        torch.testing.assert_close(part, of, rtol=1e-6, atol=1e-6)


def test_turning_back_gives_the_view():
    model, images = build("rotation")
    turned, labels = model.views(images, IDS, 0)
    assert turned.shape == (16, 1, 32, 32)
    assert torch.equal(labels, torch.arange(4).repeat_interleave(4))
    back = [view.rot90(-int(label), (-2, -1)) for view, label in zip(turned, labels, strict=True)]
    assert torch.equal(torch.stack(back).unflatten(0, (4, 4)), turned[:4].expand(4, -1, -1, -1, -1))


def test_the_label_of_a_jigsaw_undoes_it():
    model, images = build("jigsaw", tile=1.0, normalise=False)
    tiles, labels = model.views(images, IDS, 0)
    # 32 is no multiple of 3: the view has 33 pixels.
    assert tiles.shape == (4, 9, 1, 11, 11)
    inverse = model.permutations[labels].argsort(1)
    ordered = tiles[torch.arange(4)[:, None], inverse]
    image = ordered.unflatten(1, (3, 3)).permute(0, 3, 1, 4, 2, 5).reshape(4, 1, 33, 33)
    (view,) = model.augment(images, sample_ids=IDS, step=0)
    assert torch.equal(image, view)


def test_tiles_of_a_jigsaw_do_not_tell_their_place_by_light():
    model, images = build("jigsaw")
    images = images // 2 + torch.arange(0, 128, 4, dtype=torch.uint8)
    tiles, _ = model.views(images, IDS, 0)
    # Nine of eleven pixels, 64 of 75.
    assert tiles.shape == (4, 9, 1, 9, 9)
    assert tiles.mean((2, 3, 4)).abs().max() < 1e-5
    torch.testing.assert_close(tiles.std((2, 3, 4)), torch.ones(4, 9), atol=0.05, rtol=0)
    blank = model.normalised(torch.full((1, 9, 1, 9, 9), -2.0))
    assert blank.abs().max() == 0


def test_the_neighbour_lies_where_its_label_says():
    # One colour for each ninth of the image, so that a tile knows its own.
    places = torch.arange(9, dtype=torch.uint8).view(3, 3).repeat_interleave(12, 0)
    images = (20 * places.repeat_interleave(12, 1)).expand(64, 1, -1, -1).contiguous()
    model, _ = build("relative-patch", some_data(sides=(36, 36)), gap=4, jitter=1)
    model.augment.forward = lambda images, **_: [images]
    centre, neighbour, labels = model.views(images, torch.arange(64), 0)
    assert centre.shape[2:] == (8, 8) and set(labels.tolist()) == set(range(8))
    middle = [tile[..., 3:5, 3:5].unique().item() // 20 for tile in neighbour]
    assert middle == [label + (label >= 4) for label in labels.tolist()]
    assert centre[..., 3:5, 3:5].unique().tolist() == [80]


def test_places_of_patches_are_told_by_their_pixels_alone():
    model, images = build("patch-order")
    model = model.eval()
    view, plan = model.views(images, IDS, 0)
    logits, labels = model.answer(view, plan)
    assert plan.keep == 32 and torch.equal(labels, plan.ids_keep)
    # Patch k of the plan put at place k: the same patches at other places, in the same order.
    patches = masking.patchify(view, 4)
    moved = patches.gather(1, plan.ids_shuffle.unsqueeze(2).expand_as(patches))
    view = masking.unpatchify(moved, 4, plan.grid)
    straight = masking.MaskPlan.from_order(torch.arange(64).expand(4, -1).contiguous(), 32, (8, 8))
    torch.testing.assert_close(model.answer(view, straight)[0], logits)
    assert model.backbone.pos_embed.abs().max() == 0


@pytest.mark.parametrize("name", PUZZLES)
def test_every_parameter_learns(name):
    model, images = build(name)
    logs = model(*model.views(images, IDS, 0))
    assert logs.keys() == {"loss", "accuracy"}
    logs["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_accuracy_of_a_task_is_counted_over_all_test_images():
    model, _ = build("rotation", some_data(count=5), batch_size=2)
    model.classifier = nn.Linear(model.backbone.features, 4)
    nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([0.0, 0.0, 1.0, 0.0])
    with torch.no_grad():
        task = model.eval().task(some_data(count=5), torch.device("cpu"))
    assert (task.question, task.accuracy, task.chance) == ("which rotation", 0.25, 0.25)


@pytest.mark.parametrize("name", [*PUZZLES, *GENERATIVE])
def test_resuming_ends_where_an_unbroken_run_does(name, tmp_path, monkeypatch):
    options = TINY | (PUZZLES[name][0] if name in PUZZLES else GENERATIVE[name])
    whole = saved.open_run(pretrain(name, out=tmp_path / "whole", **options).out)
    method, calls = find(name), itertools.count(1)

    def killed(self, progress):
        if next(calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(method, "after_step", killed)
        pretrain(name, out=tmp_path / "killed", **options)
    resumed = saved.open_run(pretrain(name, out=tmp_path / "killed", resume=True, **options).out)
    first, second = (dict(run.model.named_parameters()) for run in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = (dict(run.model.named_buffers()) for run in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)
    if name not in PUZZLES:
        return
    with torch.no_grad():
        task = whole.model.task(whole.data, torch.device("cpu"))
        figures = whole.model.pictures(whole.data, torch.device("cpu"))
    assert 0 <= task.accuracy <= 1 and task.chance == 1 / PUZZLES[name][1]
    assert [*figures] == (["puzzles"] if name in ("jigsaw", "patch-order") else [])


@pytest.mark.parametrize(
    ("name", "sides", "keywords", "message"),
    [
        ("rotation", (32, 16), {}, "^data: noise has images of 32 x 16, rotation wants squares"),
        ("jigsaw", (8, 8), {}, "^backbone: 'small' cannot take tiles of 3 x 3 pixels"),
        ("jigsaw", (32, 32), {"permutations": 1}, "^permutations: got 1, must be at least 2"),
        ("jigsaw", (32, 32), {"tile": 1.5}, "^tile: got 1.5, must be at most 1"),
        ("jigsaw", (32, 32), {"backbone": "vit-tiny"}, "^backbone: got 'vit-tiny', must be one of"),
        ("relative-patch", (32, 32), {"gap": 15}, "^gap: got 15, with jitter 1 images of 32"),
        ("relative-patch", (32, 32), {"gap": 10}, "^backbone: 'small' cannot take tiles of 3 x 3"),
        ("relative-patch", (32, 32), {"jitter": 2}, "^jitter: got 2, must be at most half of gap"),
        ("patch-order", (32, 32), {"mask_ratio": 0.99}, "^mask_ratio: got 0.99, leaves fewer than"),
        ("patch-order", (32, 32), {"patch_size": 5}, "^patch_size: got 5, must divide the images"),
    ],
)
def test_errors(name, sides, keywords, message):
    with pytest.raises(UsageError, match=message):
        build(name, some_data(sides=sides), **keywords)

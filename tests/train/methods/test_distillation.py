"""BYOL, SimSiam, DINO and the supervised baseline; and what they share with MoCo."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from distillation_cases import HEADS, IMAGES, build, disturb, gradients
from torch.nn import functional as F

from fastssl.train import UsageError, pretrain
from fastssl.train.methods import find
from fastssl.train.saved import open_run
from fastssl.train.spread import spread
from fastssl.train.views import to_float

#: Methods with a teacher: keywords, and whether its momentum rises.
TEACHERS = [
    ("byol", {}, True),
    ("dino", {}, True),
    ("moco", {"version": "v2"}, False),
    ("moco", {"version": "v3"}, True),
]
RUNS = [*((name, {}) for name in HEADS), ("moco", {"version": "v3"})]
TINY = {
    "limit": 160, "batch_size": 64, "width": 4, "epochs": 2, "accelerator": "cpu",
    "evaluate": False,
}  # fmt: skip


def squared_distance(p, target):
    return (F.normalize(p, dim=1) - F.normalize(target, dim=1)).square().sum(1).mean()


def test_byol_predicts_what_its_teacher_says_of_the_other_view():
    model, (v0, v1) = build("byol")
    disturb(model.student())
    with torch.no_grad():
        t0, t1 = model.teacher(v0), model.teacher(v1)
    p0, p1 = (model.predictor(model.projector(model.backbone(view))) for view in (v0, v1))
    expected = squared_distance(p0, t1) + squared_distance(p1, t0)
    loss = model(v0, v1)["loss"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model, loss), gradients(model, expected))


def test_simsiam_has_no_gradient_through_projections():
    model, (v0, v1) = build("simsiam")
    z0, z1 = (model.projector(model.backbone(view)) for view in (v0, v1))
    constants = z0.detach().clone(), z1.detach().clone()
    pairs = zip((model.predictor(z0), model.predictor(z1)), reversed(constants), strict=True)
    # -cosine is half the squared distance of unit vectors, minus 1.
    expected = sum(squared_distance(p, z) / 2 - 1 for p, z in pairs) / 2
    logs = model(v0, v1)
    torch.testing.assert_close(logs["loss"], expected)
    torch.testing.assert_close(logs["agreement"], -logs["loss"])
    torch.testing.assert_close(gradients(model, logs["loss"]), gradients(model, expected))


def test_dino_compares_all_pairs_of_different_crops():
    model, views = build("dino", center_momentum=0.8)
    disturb(model.student())
    center = torch.randn(10, dtype=torch.float64)
    model.center.copy_(center)
    with torch.no_grad():
        seen = model.teacher(torch.cat(views[:2])).chunk(2)
    # Batch norm is over crops of one size together, in the head over all crops.
    features = [model.backbone(torch.cat(same)) for same in (views[:2], views[2:])]
    answers = model.head(torch.cat(features)).chunk(4)
    terms = []
    for t, output in enumerate(seen):
        q = ((output - center) / 0.04).softmax(1)
        for s, answer in enumerate(answers):
            if s != t:
                terms.append(-(q * (answer / 0.1).log_softmax(1)).sum(1).mean())
    assert len(terms) == 6
    expected = sum(terms) / 6
    logs = model(*views)
    torch.testing.assert_close(logs["loss"], expected)
    torch.testing.assert_close(gradients(model, logs["loss"]), gradients(model, expected))
    moved = 0.8 * center + 0.2 * torch.cat(seen).mean(0)
    torch.testing.assert_close(model.center, moved)
    assert 0 <= logs["teacher_entropy"] <= math.log(10)


def test_dino_outputs_are_cosines():
    model, views = build("dino", local_crops=0)
    features = model.backbone(views[0])
    outputs = model.head(features)
    rows = F.normalize(model.head.last, dim=1)
    torch.testing.assert_close(outputs, F.normalize(model.head.mlp(features), dim=1) @ rows.T)
    assert len(views) == 2 and model(*views)["loss"].isfinite()


def test_dino_keeps_its_last_layer_for_an_epoch():
    model, views = build("dino", frozen_epochs=2)  # 3 steps each
    images = torch.zeros(IMAGES, 3, 16, 24, dtype=torch.uint8)
    for step, frozen in ((0, True), (5, True), (6, False)):
        model.zero_grad()
        model.views(images, torch.arange(IMAGES), step)
        model.step(model, views, lambda loss: loss.backward())
        assert (model.head.last.grad is None) == frozen
        assert model.head.mlp[0].weight.grad is not None


@pytest.mark.parametrize(
    ("options", "local"),
    [({}, (8, 12)), ({"backbone": "resnet18"}, (8, 12)), ({"backbone": "vit-micro"}, (16, 24))],
)
def test_dino_makes_local_crops_as_small_as_the_encoder_takes(options, local):
    model, views = build("dino", **options)
    assert [tuple(view.shape[2:]) for view in views] == [(16, 24)] * 2 + [local] * 2
    scales = [recipe.scale for recipe in model.augment.recipes]
    split = model.config.global_scale
    assert scales == [(split, 1.0)] * 2 + [(model.config.local_scale, split)] * 2
    assert model(*views)["loss"].isfinite()


def test_supervised_learns_from_the_labels_that_there_are():
    model, (images, labels) = build("supervised", labels=(0, 1, -1, 2, 2, -1))
    assert labels.tolist() == [0, 1, -1, 2, 2, -1]
    known = labels >= 0
    logits = model.head(model.backbone(images))[known]
    expected = -logits.log_softmax(1)[range(4), labels[known]].mean()
    logs = model(images, labels)
    torch.testing.assert_close(logs["loss"], expected)
    right = (logits.argmax(1) == labels[known]).double().mean()
    torch.testing.assert_close(logs["accuracy"], right, check_dtype=False)
    none = model(images, torch.full((IMAGES,), -1))
    assert none["loss"] == 0


def test_supervised_answers_for_the_test_images(tmp_path):
    saved = open_run(pretrain("supervised", out=tmp_path, **TINY | {"epochs": 1}).out)
    model, data = saved.model, saved.data
    with torch.no_grad():
        task = model.task(data, torch.device("cpu"))
        answers = model.head(model.backbone(to_float(data.test.inputs))).argmax(1)
    assert task.question == "which class" and task.chance == 0.1
    assert task.accuracy == pytest.approx((answers == data.test.labels).double().mean().item())
    unlabelled = replace(data.test, labels=torch.full_like(data.test.labels, -1))
    assert model.task(replace(data, test=unlabelled), torch.device("cpu")) is None
    with pytest.raises(UsageError, match="^data: digits has no classes"):
        find("supervised")(saved.config, replace(data, classes=()))


@pytest.mark.parametrize(("name", "options", "rises"), TEACHERS)
def test_the_teacher_follows_by_the_formula_and_gets_no_gradient(name, options, rises):
    model, views = build(name, momentum=0.9, **options)
    student = list(model.student().parameters())
    teacher = list(model.teacher.parameters())
    assert all(torch.equal(*pair) for pair in zip(teacher, student, strict=True))
    disturb(model.student())
    before = [parameter.clone() for parameter in teacher]
    model(*views)["loss"].backward()
    trained = {id(p) for group in model.optimizer().param_groups for p in group["params"]}
    assert all(p.grad is None and id(p) not in trained for p in teacher)
    model.after_step(0.25)
    m = 1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2 if rises else 0.9
    for new, old, own in zip(teacher, before, student, strict=True):
        torch.testing.assert_close(new, m * old + (1 - m) * own)
    model.after_step(1.0)
    followed = [m * old + (1 - m) * own for old, own in zip(before, student, strict=True)]
    last = zip(teacher, followed, student, strict=True)
    for new, old, own in last:
        torch.testing.assert_close(new, old if rises else 0.9 * old + 0.1 * own)


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_the_loss_reaches_every_parameter_that_is_trained(name, options):
    model, views = build(name, **options)
    assert all(g is not None for g in gradients(model, model(*views)["loss"]).values())


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_resuming_ends_where_an_unbroken_run_does(tmp_path, monkeypatch, name, options):
    options = TINY | HEADS[name] | options
    whole, broken = (tmp_path / part for part in ("whole", "broken"))
    pretrain(name, out=whole, **options)
    calls = itertools.count(1)
    method = find(name)
    after_step = method.after_step

    def killed(*args):
        if next(calls) == 3:
            raise Killed
        after_step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(method, "after_step", killed)
        with pytest.raises(Killed):
            pretrain(name, out=broken, **options)
    pretrain(name, out=broken, resume=True, **options)
    first, second = (open_run(out).model.state_dict() for out in (whole, broken))
    assert first.keys() == second.keys()
    # Of extra states, such as the augmentation's seed, too.
    assert all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


def test_spread_tells_a_collapse():
    torch.manual_seed(0)
    rows = torch.randn(512, 64)
    assert spread(rows) == pytest.approx(1, abs=0.05)
    assert spread(rows * torch.rand(512, 1)) == pytest.approx(1, abs=0.05)
    assert spread(rows[:1].expand(16, 64)) == pytest.approx(0, abs=1e-6)


def test_errors_name_the_argument():
    with pytest.raises(UsageError, match=r"^local_scale: got 0.6, must be at most global_scale"):
        pretrain("dino", local_scale=0.6, global_scale=0.5)
    with pytest.raises(UsageError, match="^teacher_temperature: got 0.0, must be above 0"):
        pretrain("dino", teacher_temperature=0.0)
    with pytest.raises(UsageError, match="^momentum: got 1.0, must be below 1"):
        pretrain("byol", momentum=1.0)
    with pytest.raises(UsageError, match="^label_smoothing: got 1.0, must be below 1"):
        pretrain("supervised", label_smoothing=1.0)

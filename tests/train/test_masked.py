"""MAE and SimMIM: what their networks see, what they minimise, what their runs leave."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fastssl import cli, masking
from fastssl.train import UsageError, pictures, pretrain
from fastssl.train.data import Data, Split
from fastssl.train.masked import reconstruct
from fastssl.train.methods import find
from fastssl.train.views import to_float
from fastssl.train.vit import VisionTransformer

METHODS = ["mae", "simmim"]
TINY = {"limit": 160, "batch_size": 64, "width": 16, "epochs": 2, "accelerator": "cpu"}
OWN = {"mae": {"decoder_width": 16, "decoder_depth": 1}, "simmim": {}}


def build(name, channels=3, image=(16, 24), **keywords):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, channels, *image), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.zeros(6, dtype=torch.int64))
    method = find(name)
    config = method.Config(width=16, **OWN[name] | keywords)
    return method(config, Data("noise", (), split, split)).eval(), images


def losses(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]


def repaint(images, plan, patch, removed):
    """The images with other levels in their removed patches, or in the kept ones."""
    patches = masking.patchify(images, patch)
    chosen = plan.mask if removed else ~plan.mask
    return masking.unpatchify(
        torch.where(chosen.unsqueeze(-1), 255 - patches, patches), patch, plan.grid
    )


@pytest.mark.parametrize("name", METHODS)
def test_removed_pixels_are_not_seen(name):
    model, images = build(name)
    plan = model.plan(torch.arange(6), 3)
    with torch.no_grad():
        seen = model.predict(images, plan)
        assert torch.equal(model.predict(repaint(images, plan, 4, True), plan), seen)
        assert not torch.allclose(model.predict(repaint(images, plan, 4, False), plan), seen)


def test_the_encoder_of_mae_computes_on_visible_patches_alone():
    model, images = build("mae", mask_ratio=0.75)
    shapes = []
    model.backbone.blocks[0].register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape))
    model.decoder.register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape))
    plan = model.plan(torch.arange(6), 0)
    model.predict(images, plan)
    assert shapes == [(6, 6, 16), (6, 24, 16)]


def test_visible_tokens_are_those_of_the_whole_image():
    model, images = build("mae")
    plan = model.plan(torch.arange(6), 0)
    whole = model.backbone.patch_embed["proj"](to_float(images)).flatten(2).transpose(1, 2)
    expected = whole.gather(1, plan.ids_keep.unsqueeze(-1).expand(-1, -1, 16))
    torch.testing.assert_close(model.visible(images, plan), expected)


@pytest.mark.parametrize(("name", "norm_pix"), [("mae", True), ("mae", False), ("simmim", False)])
def test_the_loss_is_the_formula(name, norm_pix):
    model, images = build(name, **({"norm_pix": norm_pix} if name == "mae" else {}))
    plan = model.plan(torch.arange(6), 0)
    loss = model(images, plan)["loss"]
    target = masking.patchify(to_float(images), 4)
    if norm_pix:
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
    error = model.predict(images, plan) - target
    error = error.square() if name == "mae" else error.abs()
    torch.testing.assert_close(loss, error.mean(-1)[plan.mask].mean())


@pytest.mark.parametrize(("name", "keep"), [("mae", 6), ("simmim", 8)])
def test_plans_follow_seed_step_and_sample(name, keep):
    model, _ = build(name)
    ids = torch.tensor([5, 900, 17])
    plan = model.plan(ids, 4)
    assert plan.keep == keep and plan.grid == (4, 6)
    assert torch.equal(model.plan(ids[1:2], 4).mask[0], plan.mask[1])
    assert not torch.equal(model.plan(ids, 5).mask, plan.mask)
    assert not torch.equal(build(name, seed=1)[0].plan(ids, 4).mask, plan.mask)


def test_simmim_removes_whole_cells():
    model, _ = build("simmim", cell=2)
    cells = model.plan(torch.arange(50), 0).mask.view(50, 2, 2, 3, 2)
    assert (cells.amax((2, 4)) == cells.float().amin((2, 4)).bool()).all()


@pytest.mark.parametrize("name", METHODS)
def test_views_are_levels_and_a_plan(name):
    model, images = build(name)
    levels, plan = model.views(images, torch.arange(6), 7)
    assert levels.dtype == torch.uint8 and levels.shape == images.shape
    assert torch.equal(plan.mask, model.plan(torch.arange(6), 7).mask)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_prediction_is_a_perfect_picture(norm_pix):
    model, images = build("mae")
    plan = model.plan(torch.arange(6), 0)
    target = masking.patchify(to_float(images), 4)
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    rows = reconstruct(images, target, plan, 4, norm_pix)
    assert list(rows) == ["input", "masked", "reconstruction"]
    torch.testing.assert_close(rows["input"], images / 255)
    torch.testing.assert_close(rows["reconstruction"], rows["input"])
    gray = masking.patchify(rows["masked"], 4)
    assert (gray[plan.mask] == 0.5).all() and not (gray[~plan.mask] == 0.5).any()


def test_visible_patches_are_shown_as_they_are():
    model, images = build("mae")
    plan = model.plan(torch.arange(6), 0)
    rows = reconstruct(images, torch.full((6, 24, 48), 9.0), plan, 4, False)
    made, given = (masking.patchify(rows[k], 4) for k in ("reconstruction", "input"))
    assert torch.equal(made[~plan.mask], given[~plan.mask]) and (made[plan.mask] == 1).all()


@pytest.fixture(scope="module", params=METHODS)
def run(request, tmp_path_factory):
    name = request.param
    with pytest.MonkeyPatch.context() as patch:
        # t-SNE takes seconds, and other tests see to it.
        patch.setattr(pictures, "report", lambda path, *_: path.touch())
        made = pretrain(name, out=tmp_path_factory.mktemp(name), **TINY, **OWN[name])
    return name, made


def test_a_run_leaves_table_picture_and_weights(run):
    name, made = run
    logistic = [row.labels for row in made.rows if row.probe == "logistic"]
    assert logistic == ["1", "5", "10", "all"]
    results = json.loads((made.out / "results.json").read_text())
    assert results["pictures"] == ["reconstructions"]
    image = pytest.importorskip("PIL.Image").open(made.out / "reconstructions.png")
    assert image.format == "PNG" and image.width > 1000 and image.height > 350
    steps = losses(made.out)
    assert len(steps) == 4 and steps[-1][1] < steps[0][1]


def test_the_backbone_loads_with_plain_pytorch(run):
    _, made = run
    saved = torch.load(made.out / "exported.pt", weights_only=True)
    fresh = VisionTransformer(1, (32, 32), 4, "vit-micro", 16).eval()
    fresh.load_state_dict(saved)
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    assert torch.equal(fresh(to_float(images)), made.backbone(to_float(images)))


def test_the_same_seed_gives_the_same_run_also_when_resumed(run, tmp_path, monkeypatch):
    name, made = run
    method, options = find(name), TINY | OWN[name]
    with monkeypatch.context() as patch:

        def killed(self, progress):
            if progress > 0.6:
                raise KeyboardInterrupt

        patch.setattr(method, "after_step", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(name, out=tmp_path / "broken", evaluate=False, **options)
    pretrain(name, out=tmp_path / "broken", resume=True, evaluate=False, **options)
    pretrain(name, out=tmp_path / "other", seed=1, evaluate=False, **options)
    first, broken, other = (
        torch.load(out / "exported.pt", weights_only=True)["norm.weight"]
        for out in (made.out, tmp_path / "broken", tmp_path / "other")
    )
    assert torch.equal(first, broken) and not torch.equal(first, other)
    assert losses(made.out) == losses(tmp_path / "broken")


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_trains(name, tmp_path):
    options = TINY | OWN[name] | {"precision": "bf16-mixed", "epochs": 1}
    pretrain(name, out=tmp_path, evaluate=False, **options)
    assert all(0 < loss < 10 for _, loss in losses(tmp_path))


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("mae", {"patch_size": 5}, "patch_size: got 5, must divide the images, 32 x 32"),
        ("mae", {"patch_size": 1}, "patch_size: got 1, with norm_pix a patch must have two"),
        ("mae", {"decoder_width": 18}, "decoder_width: got 18, must be a multiple of 4 and"),
        ("mae", {"mask_ratio": 0.99}, "mask_ratio: got 0.99, leaves none of 64 patches"),
        ("simmim", {"mask_ratio": 0.99}, "mask_ratio: got 0.99, leaves none of 64 patches"),
        ("simmim", {"cell": 3}, "cell: got 3, must divide 8 x 8 patches"),
    ],
)
def test_errors_name_the_argument_and_leave_no_folder(tmp_path, name, keywords, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        pretrain(name, out=tmp_path / "run", **TINY | OWN[name] | keywords)
    assert not (tmp_path / "run").exists()


def test_an_overwritten_run_leaves_no_stale_picture(run, tmp_path):
    name, _ = run
    (tmp_path / "results.json").write_text('{"pictures": ["reconstructions", "../escape"]}')
    for file in ("reconstructions.png", "mine.png"):
        (tmp_path / file).write_text("old")
    (tmp_path.parent / "escape.png").write_text("not of this run")
    options = TINY | OWN[name] | {"epochs": 1, "evaluate": False}
    pretrain(name, out=tmp_path, overwrite=True, **options)
    assert not (tmp_path / "reconstructions.png").exists() and (tmp_path / "mine.png").exists()
    assert (tmp_path.parent / "escape.png").exists()


@pytest.mark.parametrize("name", METHODS)
def test_help_lists_the_keywords(name):
    made = CliRunner().invoke(cli.app, ["train", name, "--help"], env={"COLUMNS": "160"})
    assert made.exit_code == 0
    for part in ("--mask-ratio", "--patch-size", "vit-micro", "--image-size", "folder:PATH"):
        assert part in made.output

"""`fastssl.augment`: presets, state, replay, packing, tracing."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from augment_cases import noise, one_thread, photo  # noqa: F401 (a fixture)

import fastssl
from fastssl.augment import Augment, PackedImages, Recipe, apply, pack, show
from fastssl.ops.augment import draw

SMALL = {"SwAV": {"local_size": 20}, "DINO": {"local_size": 20}, "DINOv2": {"local_size": 20}}
PRESETS = ["SimCLR", "MoCoV1", "MoCoV2", "MoCoV3", "BYOL", "SimSiam", "VICReg", "SwAV", "DINO"]
PRESETS += ["DINOv2", "MAE", "Weak"]

# views: count, size, scale, interpolation, (jitter p, b, c, s, h), gray, blur, solarize
STRONG, MILD = (0.8, 0.8, 0.8, 0.8, 0.2), (0.8, 0.4, 0.4, 0.4, 0.1)
BYOL = (0.8, 0.4, 0.4, 0.2, 0.1)
NONE = (0, 0, 0, 0, 0)
TABLE = {
    "SimCLR": [(2, 224, (0.08, 1), "bilinear", STRONG, 0.2, 0.5, 0)],
    "MoCoV1": [(2, 224, (0.2, 1), "bilinear", (1, 0.4, 0.4, 0.4, 0.4), 0.2, 0, 0)],
    "MoCoV2": [(2, 224, (0.2, 1), "bilinear", MILD, 0.2, 0.5, 0)],
    "SimSiam": [(2, 224, (0.2, 1), "bilinear", MILD, 0.2, 0.5, 0)],
    "MoCoV3": [
        (1, 224, (0.08, 1), "bilinear", BYOL, 0.2, 1, 0),
        (1, 224, (0.08, 1), "bilinear", BYOL, 0.2, 0.1, 0.2),
    ],
    "BYOL": [
        (1, 224, (0.08, 1), "bilinear", BYOL, 0.2, 1, 0),
        (1, 224, (0.08, 1), "bilinear", BYOL, 0.2, 0.1, 0.2),
    ],
    "VICReg": [(2, 224, (0.08, 1), "bilinear", BYOL, 0.2, 0.5, 0.1)],
    "SwAV": [
        (2, 224, (0.14, 1), "bilinear", STRONG, 0.2, 0.5, 0),
        (6, 96, (0.05, 0.14), "bilinear", STRONG, 0.2, 0.5, 0),
    ],
    "DINO": [
        (1, 224, (0.4, 1), "bicubic", BYOL, 0.2, 1, 0),
        (1, 224, (0.4, 1), "bicubic", BYOL, 0.2, 0.1, 0.2),
        (8, 96, (0.05, 0.4), "bicubic", BYOL, 0.2, 0.5, 0),
    ],
    "DINOv2": [
        (1, 224, (0.32, 1), "bicubic", BYOL, 0.2, 0, 0),
        (1, 224, (0.32, 1), "bicubic", BYOL, 0.2, 0.9, 0.2),
        (8, 96, (0.05, 0.32), "bicubic", BYOL, 0.2, 0.5, 0),
    ],
    "MAE": [(1, 224, (0.2, 1), "bicubic", NONE, 0, 0, 0)],
    "Weak": [(1, 224, (0.08, 1), "bilinear", NONE, 0, 0, 0)],
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_numbers(name):
    aug = getattr(fastssl.augment, name)()
    assert isinstance(aug, Augment)
    assert aug.provenance
    assert repr(aug).startswith(f"{name}(\n")
    wanted = [row[1:] for row in TABLE[name] for _ in range(row[0])]
    for recipe, row in zip(aug.recipes, wanted, strict=True):
        size, scale, interpolation, jitter, gray, blur, solarize = row
        assert (recipe.size, recipe.scale, recipe.interpolation) == (size, scale, interpolation)
        found = (recipe.jitter, recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
        assert found == pytest.approx(jitter)
        assert (recipe.gray, recipe.blur, recipe.solarize) == (gray, blur, solarize)
        assert (recipe.flip, recipe.sigma, recipe.ratio) == (0.5, (0.1, 2.0), (3 / 4, 4 / 3))
        assert recipe.gray_first == (name == "MoCoV1")
        assert recipe.blur_kernel == (9 if name == "DINOv2" else None)


def test_variants_of_presets():
    written = fastssl.augment.DINOv2(variant="as-written")
    assert [r.blur for r in written.recipes[:3]] == [1.0, 0.1, 0.5]
    with pytest.raises(ValueError, match="variant: got 'paper'"):
        fastssl.augment.DINOv2(variant="paper")
    cifar = fastssl.augment.SimCLR(size=32, strength=0.5, blur=False).recipes[0]
    assert cifar.range("brightness") == (0.6, 1.4)
    assert cifar.range("hue") == (-0.1, 0.1)
    assert cifar.blur == 0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run_and_replay(name, impl):
    aug = getattr(fastssl.augment, name)(size=28, impl=impl, seed=3, **SMALL.get(name, {}))
    x = photo(3, 40, 36)
    views, p = aug(x, return_params=True)
    for view, recipe in zip(views, aug.recipes, strict=True):
        assert view.shape == (3, 3, recipe.size, recipe.size)
        assert view.isfinite().all()
    assert all(map(torch.equal, aug(x, params=p), views))
    again, q = aug(x, params=p, return_params=True)
    assert q is p
    assert not all(map(torch.equal, aug(x), views))
    assert all(map(torch.equal, aug(x, step=0), views))


def test_counts_its_calls_and_saves_them():
    x = noise(4, 20, 20)
    aug = fastssl.augment.SimCLR(size=16, seed=9)
    first, second = aug(x), aug(x)
    assert not torch.equal(first[0], second[0])
    assert aug.calls == 2
    stream = io.BytesIO()
    torch.save(aug.state_dict(), stream)
    stream.seek(0)
    twin = fastssl.augment.SimCLR(size=16)
    twin.load_state_dict(torch.load(stream, weights_only=True))
    assert twin.seed == 9
    others = [copy.deepcopy(aug), pickle.loads(pickle.dumps(aug)), aug.double().to("cpu")]
    third = aug(x)
    for other in (twin, *others[:2]):
        assert all(map(torch.equal, other(x), third))
        assert other.calls == 3
    assert aug(x, step=1)[0].equal(second[0])
    assert aug.calls == 3
    assert aug(x, step=torch.tensor(1))[0].equal(second[0])


def test_sample_ids_make_an_image_its_own():
    aug = fastssl.augment.SimCLR(size=16)
    x, ids = noise(6, 20, 20), torch.tensor([10, 11, 12, 13, 14, 15])
    whole = aug(x, sample_ids=ids, step=4)
    part = aug(x[2:5], sample_ids=ids[2:5], step=4)
    assert torch.equal(part[1], whole[1][2:5])


def test_generator_draws_as_torchvision():
    aug = fastssl.augment.SimCLR(size=16)
    x = noise(2, 20, 20)
    a, p = aug(x, generator=torch.Generator().manual_seed(1), return_params=True)
    b = aug(x, generator=torch.Generator().manual_seed(1))
    assert torch.equal(a[0], b[0])
    assert aug.calls == 0
    with pytest.raises(ValueError, match="generator"):
        aug(x, params=p, generator=torch.Generator())


def test_module_takes_what_the_function_takes(impl):
    recipes = [Recipe(16, jitter=1.0, hue=0.2), Recipe((9, 7), blur=1.0, blur_kernel=3)]
    options = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "dtype": torch.bfloat16}
    options |= {"memory_format": torch.channels_last, "semantics": "pil", "impl": impl}
    aug = Augment(recipes, **options)
    images = [photo(1, h, w)[0] for h, w in ((20, 30), (40, 10), (5, 6))]
    out = [torch.empty(3, 3, 16, 16), torch.empty(3, 3, 9, 7)]
    out = [x.bfloat16().to(memory_format=torch.channels_last) for x in out]
    views, p = aug(images, return_params=True, out=out)
    assert all(a is b for a, b in zip(views, out, strict=True))
    wanted = apply(pack(images), p, size=[16, (9, 7)], blur_kernel=[None, 3], **options)
    assert all(map(torch.equal, views, wanted))


def test_packing():
    images = [noise(1, h, w, seed=h)[0] for h, w in ((3, 5), (4, 4), (1, 1))]
    packed = pack(images)
    assert isinstance(packed, PackedImages)
    assert len(packed) == 3
    assert packed.shapes.tolist() == [[0, 3, 5], [45, 4, 4], [93, 1, 1]]
    assert all(torch.equal(packed[i], image) for i, image in enumerate(images))
    assert torch.equal(packed.to("cpu").data, packed.data)
    assert pack([x.double() / 255 for x in images]).data.dtype == torch.float32
    loader = torch.utils.data.DataLoader(images, batch_size=3, collate_fn=pack, num_workers=1)
    (loaded,) = loader
    assert torch.equal(loaded.data, packed.data)


def collate(images):
    ids = torch.arange(len(images))
    return fastssl.augment.SimCLR(size=8)(images, sample_ids=ids, step=0)


def test_inside_the_workers_of_a_loader():
    images = [noise(1, 12 + i, 10, seed=i)[0] for i in range(4)]
    loader = torch.utils.data.DataLoader(images, batch_size=4, collate_fn=collate, num_workers=2)
    (views,) = loader
    assert all(map(torch.equal, views, collate(images)))


def test_pillow_images_and_arrays():
    image = pytest.importorskip("PIL.Image")
    x = noise(1, 3, 7)[0]  # [3, 3, 7], and [3, 7, 3] as Pillow has it
    picture = image.fromarray(x.permute(1, 2, 0).contiguous().numpy())
    gray = image.fromarray(x[0].contiguous().numpy())
    assert torch.equal(pack([picture])[0], x)
    assert torch.equal(pack([gray])[0], x[:1])
    with pytest.raises(TypeError, match=r"images\[0\]: got mode RGBA"):
        pack([picture.convert("RGBA")])


def test_picture_of_views():
    pytest.importorskip("PIL")
    aug = fastssl.augment.DINO(size=32, local_size=16, local_views=3)
    picture = show(photo(5, 40, 60), aug, count=2)
    assert picture.size == (6 * 34 - 2, 2 * 34 - 2)
    assert picture.mode == "RGB"
    assert aug.calls == 0
    assert show(list(photo(2, 40, 60).float() / 255), aug).size == picture.size


def test_import_is_light():
    script = "import sys, fastssl; print([m for m in ('torchvision', 'PIL') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_opcheck():
    """Of both raw operators, for a batch and for packed images."""
    recipes = [Recipe(8, jitter=1.0, hue=0.1, blur=1.0), Recipe((4, 6))]
    numbers = [n for r in recipes for n in r.numbers()]
    x = noise(3, 12, 10)
    packed = pack(list(x))
    ids, step = torch.arange(3), torch.tensor(2)
    for shapes, counter in ((None, None), (packed.shapes, step)):
        sizes = (0, 0) if shapes is not None else (12, 10)
        inputs = (ids, shapes, *sizes, counter, 1, 5, numbers, 2)
        torch.library.opcheck(torch.ops.fastssl.augment_draw, inputs)
    drawn = torch.ops.fastssl.augment_draw(*inputs)
    settings = [0, 1, 0, 1, 128, 1, 0, 1, 3, 128]
    for images, shapes in ((x, None), (packed.data, packed.shapes)):
        out = [torch.zeros(3, 3, 8, 8), torch.zeros(3, 3, 4, 6)]
        inputs = (images, shapes, *drawn, settings, [0.5] * 3, [0.5] * 3, 0, out)
        torch.library.opcheck(torch.ops.fastssl.augment_apply, inputs)


def test_compiles_into_one_graph():
    def views(x, p):
        a, b = apply(x, p, size=[8, (6, 5)], semantics="tv-uint8")
        return a * 2, b.mean()

    def module(x):
        return aug(x)[0] * 2

    torch._dynamo.reset()
    x = noise(3, 12, 10)
    p = draw([Recipe(8, jitter=1.0, hue=0.1), Recipe((6, 5))], x)
    compiled = torch.compile(views, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(x, p), views(x, p)))
    aug = fastssl.augment.SimCLR(size=8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = [compiled(x) for _ in range(3)]
    assert aug.calls == 3
    aug.calls.zero_()
    assert all(torch.equal(view, module(x)) for view in found)

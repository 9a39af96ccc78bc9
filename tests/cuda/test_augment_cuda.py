"""Augmentation on a GPU against the CPU. Tests named `small` are those of compute-sanitizer."""

import dataclasses

import augment_raw as raw
import pytest
import torch

from fastssl import augment
from fastssl.ops.augment import draw

pytestmark = [pytest.mark.cuda]

OPS = torch.ops.fastssl
PRESETS = ["SimCLR", "MoCoV1", "MoCoV2", "MoCoV3", "BYOL", "SimSiam", "VICReg", "SwAV", "DINO",
           "DINOv2", "MAE", "Weak"]  # fmt: skip


def apply(x, shapes, parameters, settings, semantics, out):
    mean, std = raw.normalization(out[0].shape[1])
    numbers = (mean, std, raw.SEMANTICS.index(semantics))
    OPS.augment_apply(x, shapes, *parameters, settings, *numbers, out)
    return out


def check(x, parameters, settings, sizes, semantics, dtype=None, memory_format=None, shapes=None):
    """The same views from both devices: levels to 1, almost all equal, fractions to 1e-5."""
    dtype = dtype or (torch.float32 if semantics == "tv-float" else torch.uint8)
    layout = memory_format or torch.contiguous_format
    batch, channels = parameters[0].shape[2], x.shape[1] if shapes is None else 3
    expected = raw.outputs(x, batch, channels, sizes, dtype, layout)
    apply(x, shapes, parameters, settings, semantics, expected)
    there = torch.empty_like(x, device="cuda").copy_(x)
    found = raw.outputs(there, batch, channels, sizes, dtype, layout)
    moved = None if shapes is None else shapes.cuda()
    apply(there, moved, [p.cuda() for p in parameters], settings, semantics, found)
    for ours, theirs in zip(found, expected, strict=True):
        ours = ours.cpu()
        if dtype == torch.uint8:
            distance = (ours.int() - theirs.int()).abs()
            assert distance.max() <= 1
            assert (distance > 0).float().mean() <= 1e-4
        else:
            tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("semantics", raw.SEMANTICS)
@pytest.mark.parametrize("size", [1, 7, 33])
def test_small_views(size, semantics):
    x = raw.images(24, 50, 61, seed=size)
    parameters = raw.drawn(1, [(50, 61)] * 24, seed=size)
    taps = 0 if semantics == "pil" else None
    check(x, parameters, raw.settings(size, taps=taps), [(size, size)], semantics)


@pytest.mark.parametrize("semantics", raw.SEMANTICS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_small_ragged(dtype, semantics):
    sizes = [(20, 31), (64, 5), (1, 1), (33, 90)]
    parts = [raw.images(1, h, w, dtype=dtype, seed=h)[0] for h, w in sizes]
    offsets = torch.tensor([0, *(p.numel() for p in parts)]).cumsum(0)[:-1].tolist()
    shapes = torch.tensor([(o, h, w) for o, (h, w) in zip(offsets, sizes, strict=True)])
    x = torch.cat([p.flatten() for p in parts])
    arguments = (x, raw.drawn(2, sizes, seed=8), raw.settings(23, 2), [(23, 23)] * 2, semantics)
    check(*arguments, shapes=shapes)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
def test_small_outputs_and_strides(dtype, memory_format, channels):
    x = raw.images(6, 30, 60, channels, seed=10)[:, :, :, 3::2]
    parameters = raw.drawn(1, [tuple(x.shape[2:])] * 6, seed=10)
    check(x, parameters, raw.settings(13), [(13, 13)], "tv-uint8", dtype, memory_format)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("semantics", raw.SEMANTICS)
@pytest.mark.parametrize("size", [96, 224, 385])
def test_large_views(size, semantics, bicubic):
    # 385 x 385 x 3, and 224 x 224 x 3 floats, are too large for shared memory.
    x = raw.images(12, 300, 400, seed=1)
    parameters = raw.drawn(1, [(300, 400)] * 12, seed=1)
    taps = 0 if semantics == "pil" else 23
    settings = raw.settings(size, bicubic=bicubic, taps=taps)
    check(x, parameters, settings, [(size, size)], semantics)


def test_far_down():
    x = raw.images(1, 3072, 4096, seed=5)
    for semantics in raw.SEMANTICS:
        box = (0, 0, 3072, 4096)
        parameters = raw.drawn(1, [box[2:]], seed=5, geometry=box, blur=False)
        check(x, parameters, raw.settings(1), [(1, 3)], semantics)


def test_views_of_many_sizes_in_one_call():
    sizes = [(12, 12), (224, 224), (12, 12), (33, 7), *[(96, 96)] * 8, (400, 500), *[(9, 9)] * 9]
    x = raw.images(5, 48, 48, seed=9)
    parameters = raw.drawn(len(sizes), [(48, 48)] * 5, seed=9)
    settings = [n for size in sizes for n in raw.settings(min(size))]
    check(x, parameters, settings, sizes, "tv-uint8")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_draw_and_make_the_same_views(preset):
    x = raw.images(64, 80, 100, seed=3)
    aug = getattr(augment, preset)(dtype=torch.uint8)
    expected, wanted = aug(x, step=5, return_params=True)
    found, drawn = aug(x.cuda(), step=5, return_params=True)
    for field in dataclasses.fields(wanted):
        assert torch.equal(getattr(drawn, field.name).cpu(), getattr(wanted, field.name))
    for ours, theirs in zip(found, expected, strict=True):
        distance = (ours.cpu().int() - theirs.int()).abs()
        assert distance.max() <= 1
        assert (distance > 0).float().mean() <= 1e-4


def test_small_draws_are_the_cpus_to_the_bit():
    recipes = augment.DINO().recipes * 2  # more than a launch takes
    ids = torch.randint(-(2**62), 2**62, (300,))
    for height, width in ((10, 200), (256, 256), (4000, 3)):
        x = torch.zeros(1, 3, height, width, dtype=torch.uint8).expand(300, -1, -1, -1)
        drawn = [
            draw(recipes, images, seed=2**40 + 3, step=step, sample_ids=ids.to(images.device))
            for images, step in (
                (x, 7),
                (
                    torch.empty(1, 3, height, width, dtype=torch.uint8, device="cuda").expand_as(x),
                    7,
                ),
                (
                    torch.empty(1, 3, height, width, dtype=torch.uint8, device="cuda").expand_as(x),
                    torch.tensor(7, device="cuda"),
                ),
            )
        ]
        for field in dataclasses.fields(drawn[0]):
            a, b, c = (getattr(d, field.name).cpu() for d in drawn)
            assert torch.equal(a, b) and torch.equal(a, c), field.name


def test_graph_capture_counts_its_own_calls():
    x = raw.images(20, 60, 60, seed=4).cuda()
    for semantics in raw.SEMANTICS:
        aug = augment.SimCLR(48, semantics=semantics).cuda()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            aug(x)
        torch.cuda.current_stream().wait_stream(stream)
        before = int(aug.calls)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            views = aug(x)
        for i in range(3):
            graph.replay()
            expected = augment.SimCLR(48, semantics=semantics)(x, step=before + i)
            assert all(map(torch.equal, views, expected))


def test_nothing_waits_for_the_device():
    x = raw.images(16, 64, 64).cuda()
    augs = [augment.SimCLR(s, semantics=m).cuda() for s in (32, 400) for m in raw.SEMANTICS]
    for aug in augs:
        aug(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for aug in augs:
            aug(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""Offsets of the CUDA kernels' algorithms in memory that no 32-bit number counts, on the CPU.

Host teams run the source of the kernels on tensors of more than 2^31 elements, of which only what
they touch takes room: an address space is wide, and pages that nobody writes to do not exist. Far
inputs lie behind large strides; of far outputs the last row alone is made (patch_team_share).
"""

import contextlib
import math

import augment_raw as raw
import numpy as np
import pytest
import torch

import fastssl.ops.augment  # noqa: F401, registers the operators
from fastssl.masking import MaskPlan
from fastssl.ops.patch.schema import DTYPES

OPS = torch.ops.fastssl
FAR = 2**31 + 8
SHUFFLED = 7

pytestmark = [
    pytest.mark.no_poison,
    pytest.mark.skipif(
        not hasattr(OPS, "patch_team_share"), reason="only development builds have host teams"
    ),
]


@contextlib.contextmanager
def room():
    """Skips where a system does not promise memory that is never used."""
    try:
        yield
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        pytest.skip(f"no address space: {error}")


def empty(*shape, dtype):
    """Memory that takes no room until it is written to."""
    with room():
        return torch.empty(shape, dtype=dtype)


def zeros(*shape, dtype):
    """The same, of zeros: torch.zeros writes them."""
    try:
        return torch.from_numpy(np.zeros(shape, dtype))
    except MemoryError as error:
        pytest.skip(f"no address space: {error}")


def spread(x, stride):
    """The same values, at these strides, in memory of their own."""
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, stride, strict=True))
    assert span > 2**31
    far = empty(span, dtype=x.dtype).as_strided(x.shape, stride)
    return far.copy_(x)


@contextlib.contextmanager
def last_alone(rows):
    """Of so many rows the last is made."""
    OPS.patch_team_share(rows - 1, rows, rows)
    try:
        with room():
            yield
    finally:
        OPS.patch_team_share(0, 3, 3)


def views(x, out, semantics, shapes=None, shared=232448):
    """All stages of a view: a crop far down in the image, colours, blur."""
    batch, (height, width) = len(out), (40, 36)
    sizes = [(height, width)] * batch
    parameters = raw.drawn(1, sizes, gate=2.0, seed=3, geometry=(13, 9, 27, 27))
    mean, std = raw.normalization(3)
    numbers = (mean, std, raw.SEMANTICS.index(semantics))
    settings = raw.settings(out.shape[2], taps=3)
    arguments = (x, shapes, *parameters, settings, *numbers, [out])
    OPS.augment_apply_team(*arguments, SHUFFLED, 5, shared)
    return out


#: (images, view): strides of [2, 3, 40, 36] and of [2, 3, 8, 8].
IMAGES = {
    "sample": (FAR, 1440, 36, 1),
    "channel": (4320, FAR, 36, 1),
    "row": (36, 72, 2**26, 1),
    "column": (1, 2, 72, 2**26),
}
VIEWS = {
    "sample": (FAR, 64, 8, 1),
    "channel": (64, FAR, 8, 1),
    "pixel": (1, 2, 2**29, 2**26),
    "channels last": (FAR, 1, 24, 3),
}


@pytest.mark.parametrize("semantics", raw.SEMANTICS)
@pytest.mark.parametrize("far", IMAGES)
def test_images_of_augment(far, semantics):
    dtype = torch.float32 if semantics == "tv-float" and far == "sample" else torch.uint8
    x = raw.images(2, 40, 36, dtype=dtype, seed=1)
    out = torch.empty(2, 3, 8, 8, dtype=torch.uint8)
    expected = views(x, out.clone(), semantics)
    assert torch.equal(views(spread(x, IMAGES[far]), out, semantics), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("far", VIEWS)
def test_views_of_augment(far, dtype):
    x = raw.images(2, 40, 36, seed=1)
    near = torch.zeros(2, 3, 8, 8, dtype=dtype)
    out = spread(near, VIEWS[far])
    # 4 KB of shared memory: the view is made in global memory.
    for shared in (232448, 12288):
        expected = views(x, near.clone(), "tv-uint8", shared=shared)
        assert torch.equal(views(x, out.zero_(), "tv-uint8", shared=shared), expected)


@pytest.mark.parametrize("semantics", raw.SEMANTICS)
def test_packed_images_of_augment(semantics):
    x = raw.images(2, 40, 36, seed=1)
    data = empty(FAR + 4320, dtype=torch.uint8)
    data[:4320], data[-4320:] = x[0].flatten(), x[1].flatten()
    shapes = torch.tensor([(0, 40, 36), (FAR, 40, 36)])
    out = torch.empty(2, 3, 8, 8, dtype=torch.uint8)
    expected = views(x, out.clone(), semantics)
    assert torch.equal(views(data, out, semantics, shapes), expected)


def parts(plan):
    return plan.ids_shuffle, plan.ids_restore, plan.keep_lengths, plan.keep


def plan_of(batch, length, keep):
    g = torch.Generator().manual_seed(0)
    return MaskPlan.from_order(torch.rand(batch, length, generator=g).argsort(1), keep)


def gathered(images, plan, patch, dtype=torch.float32, order=1):
    numbers = [0.4] * images.shape[1], [0.2] * images.shape[1]
    arguments = (images, *parts(plan), patch, *numbers, order, DTYPES.index(dtype))
    return OPS.patch_gather_team(*arguments, SHUFFLED, 4)


def lost(images, pred, plan, patch, upstream=1.0, teams=3, norm_pix=True):
    numbers = [0.4] * images.shape[1], [0.2] * images.shape[1]
    arguments = (images, pred, *parts(plan), patch, *numbers, norm_pix, 0, 0, 0, upstream)
    return OPS.patch_loss_team(*arguments, SHUFFLED, 4, teams)


@pytest.mark.parametrize("channels", [3, 20])
@pytest.mark.parametrize("far", ["sample", "row"])
def test_images_of_patches(far, channels):
    x = torch.randint(0, 256, (2, channels, 32, 16), dtype=torch.uint8)
    strides = {"sample": (FAR, 512, 16, 1), "row": (16, 32, 2**27, 1)}
    there, plan = spread(x, strides[far]), plan_of(2, 8, 4)
    pred = torch.randn(2, 8, channels * 64)
    assert torch.equal(gathered(there, plan, [8, 8]), gathered(x, plan, [8, 8]))
    found, expected = (lost(images, pred, plan, [8, 8]) for images in (there, x))
    assert all(map(torch.equal, found, expected))


def test_what_a_patch_may_not_span():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.uint8).as_strided((1, 1, 1, 8), (1, 1, 1, 1))
    far = empty(8 * 2**29, dtype=torch.uint8).as_strided((1, 1, 8, 8), (1, 1, 2**29, 1))
    assert gathered(x, plan_of(1, 1, 1), [1, 8]).numel() == 8
    with pytest.raises(RuntimeError, match="make them contiguous"):
        gathered(far, plan_of(1, 1, 1), [8, 8])


@pytest.mark.parametrize("stride", [(FAR, 16, 1), (16, 2**29, 1), (1, 2, 2**28)])
def test_tokens(stride):
    plan = plan_of(2, 9, 5)
    x = torch.randn(2, 9, 16).bfloat16()
    there, visible = spread(x, stride), x[:, :5]
    seen = there[:, :5]
    for a, b in ((there, x),):
        found = [OPS.patch_gather_tokens_team(t, None, *parts(plan), 0, 7, 4) for t in (a, b)]
        assert torch.equal(*found)
        found = [OPS.patch_sum_removed_team(t, *parts(plan), 0, 7, 32) for t in (a, b)]
        assert torch.equal(*found)
    found = [
        OPS.patch_restore_tokens_team(t, None, None, *parts(plan), 0, 3, 7, 4)
        for t in (seen, visible)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("stride", [(FAR, 48, 1), (48, 2**29, 1), (1, 2, 2**27)])
def test_predictions(stride):
    x, plan = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8), plan_of(2, 9, 4)
    pred = torch.randn(2, 9, 48).bfloat16()
    found, expected = (lost(x, p, plan, [4, 4]) for p in (spread(pred, stride), pred))
    assert all(map(torch.equal, found, expected))


#: Rows of outputs: (samples, patches of each, numbers of each). Wide rows, and more than 2^31.
WIDE, MANY = (1, 2049, 2**20), (2**15 + 1, 2**16, 1)


def far_plan(batch, length, keep):
    """In order: of many samples, as many zeros, which take no room; the last has an order."""
    if batch == 1:
        return plan_of(1, length, keep)
    ids = [zeros(batch, length, dtype=np.int64) for _ in range(2)]
    ids[0][-1] = torch.arange(length).flip(0)
    ids[1][-1] = torch.arange(length).flip(0)
    plan = MaskPlan.from_order(torch.arange(length)[None], keep)
    plan.ids_shuffle, plan.ids_restore = ids
    return plan


@pytest.mark.parametrize("size", [WIDE, MANY], ids=["wide", "many"])
def test_rows_of_gathered_patches(size):
    batch, length, width = size
    side, across = math.isqrt(width), 1 if batch == 1 else 256
    line = torch.randint(0, 256, (side * across,), dtype=torch.uint8)
    images = line.expand(batch, 1, side * (length // across), side * across)
    plan = far_plan(batch, length, length)
    with last_alone(batch * length):
        out = gathered(images, plan, [side, side], torch.bfloat16)
    last = int(plan.ids_shuffle[-1, -1])
    place = last % across * side
    expected = (line[place : place + side].float() / 255 - 0.4) / 0.2
    expected = expected.bfloat16().repeat(side)
    torch.testing.assert_close(out[-1, -1], expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("size", [WIDE, MANY], ids=["wide", "many"])
def test_rows_of_tokens(size):
    batch, length, width = size
    plan = far_plan(batch, length, length)
    x = torch.randn(length, 1 if batch == 1 else width).bfloat16().expand(batch, length, width)
    with last_alone(batch * length):
        out = OPS.patch_gather_tokens_team(x, None, *parts(plan), 0, 7, 4)
    assert torch.equal(out[-1, -1], x[-1, plan.ids_shuffle[-1, -1]])
    del out
    pos = empty(length, width, dtype=torch.float32)
    pos[-1] = 1.0
    with last_alone(batch * length):
        out = OPS.patch_restore_tokens_team(x, None, pos, *parts(plan), 0, 3, 7, 4)
    expected = (x[-1, plan.ids_restore[-1, -1]].float() + 1).bfloat16()
    assert torch.equal(out[-1, -1], expected)


def test_rows_of_a_wide_loss():
    line = torch.randint(0, 256, (1024,), dtype=torch.uint8)
    images, length = line.expand(1, 1, 4096 * 1024, 1024), 4096
    pred = torch.randn(1024).repeat(1024).bfloat16()
    arguments = ([1024, 1024], 4096.0, length)
    with last_alone(length):
        _, gradient = lost(images, pred.expand(1, length, -1), plan_of(1, length, 0), *arguments)
    _, expected = lost(images[:, :, :1024], pred[None, None], plan_of(1, 1, 0), [1024, 1024])
    assert torch.equal(gradient[0, -1], expected[0, 0])


@pytest.mark.parametrize("norm_pix", [False, True])
def test_rows_of_a_loss_of_many_images(norm_pix):
    batch, length, teams = 14336, 196, 8192
    assert batch * length % teams == 0 and batch * length * 768 > 2**31
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    pred, plan = torch.randn(1, length, 768).bfloat16(), plan_of(1, length, 0)
    _, expected = lost(images, pred, plan, [16, 16], norm_pix=norm_pix)
    plan.ids_shuffle, plan.ids_restore = (
        x.repeat(batch, 1) for x in (plan.ids_shuffle, plan.ids_restore)
    )
    many = images.expand(batch, -1, -1, -1), pred.expand(batch, -1, -1)
    with last_alone(teams):
        _, gradient = lost(*many, plan, [16, 16], float(batch), teams, norm_pix)
    assert torch.equal(gradient[-1, -1], expected[0, -1])


def test_tiles():
    images = torch.randint(0, 256, (2, 1, 1024, 1024), dtype=torch.uint8)
    there = spread(images[..., :9, :9], (FAR, 81, 9, 1))
    corners = torch.tensor([[[1, 2]], [[3, 4]]], dtype=torch.int32)
    near, far = (OPS.patch_tiles_team(x, corners, 5, 5, 7, 4) for x in (images[..., :9, :9], there))
    assert torch.equal(near, far)
    corners = torch.zeros(1, 2049, 2, dtype=torch.int32)
    with last_alone(2049):
        out = OPS.patch_tiles_team(images[1:], corners, 1024, 1024, 7, 4)
    assert torch.equal(out[0, -1], images[1])


def test_mask_tokens():
    batch, length = 2049, 2**20
    ids = zeros(batch, length, dtype=np.int32)
    ids[-1] = torch.arange(length)
    samples = torch.arange(batch) + 2**40
    how = (None, 5, 2**40 + 1, 7, 1000, [0.9, 0.6, 0.3])
    with last_alone(batch * length):
        found = OPS.patch_mask_tokens_team(ids, None, samples, *how)
    expected = OPS.patch_mask_tokens_team(ids[-1:], None, samples[-1:], *how)
    assert all(a[-1, -1] == b[0, -1] for a, b in zip(found, expected, strict=True))


def test_scale():
    x = empty(FAR, dtype=torch.bfloat16)
    x[-8:] = 2
    with last_alone(FAR // 8):
        OPS.patch_scale_team_(x, torch.tensor(3.0))
    assert (x[-8:] == 6).all()


PLANS = {
    "random": (None, [1, 256, 256], [1, 1, 1], 16384, False),
    "blocks": ([0.1, 0.5], 1.0, [256, 256], 4, 20000, [-0.5, 0.5], True, True),
    "inverse_block": ([256, 256], 20000, [-0.5, 0.5], True),
    "multiblock": ([256, 256], [200, 200], [90, 90], 1, 10, False, True),
}


@pytest.mark.parametrize("family", PLANS)
def test_plans(family):
    batch, how = 2**15 + 1, PLANS[family]
    operator = getattr(OPS, f"patch_{family}_team")
    # Multiples of 2^33: ids differ in their high halves alone.
    ids = torch.arange(batch) * 2**33
    drawn = (None, 3, 2**40 + 1)

    def draw(samples):
        if family == "random":
            return operator(samples, how[0], *drawn, *how[1:], SHUFFLED, 32)
        if family == "blocks":
            return operator(samples, None, *how[:2], *drawn, *how[2:], SHUFFLED, 32)
        return operator(samples, *drawn, *how, SHUFFLED, 32)

    with last_alone(batch):
        found = draw(ids)
    expected, other = draw(ids[-1:]), draw(ids[:1])
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a[-1:], b)
    assert not torch.equal(expected[0], other[0])

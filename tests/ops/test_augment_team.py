"""The GPU's algorithm, run on the CPU by teams whose threads take turns, against the CPU's.

The order in which threads run between two barriers must not matter, to the bit: where it does, a
barrier is missing.
"""

import functools

import augment_raw as raw
import pytest
import torch

import fastssl.ops.augment  # noqa: F401, registers the operators

OPS = torch.ops.fastssl
#: Bytes of shared memory: an H100's, an A100's, and too few for views above 64 x 64.
SHARED = {"h100": 232448, "a100": 166912, "little": 24576}
FORWARDS, BACKWARDS, SHUFFLED = 0, 1, 7

pytestmark = pytest.mark.skipif(
    not hasattr(OPS, "augment_apply_team"), reason="only development builds have host teams"
)


def run(operator, x, shapes, parameters, settings, semantics, out, *extra):
    mean, std = raw.normalization(out[0].shape[1])
    numbers = (mean, std, raw.SEMANTICS.index(semantics))
    operator(x, shapes, *parameters, settings, *numbers, out, *extra)
    return out


def check(
    x, parameters, settings, sizes, semantics, shared="h100", shapes=None, channels=None,
    dtype=None, memory_format=torch.contiguous_format, threads=5, turns=(BACKWARDS,),
):  # fmt: skip
    """Compares a team with the CPU operator, and the orders of its threads with each other."""
    batch, channels = parameters[0].shape[2], channels or x.shape[1]
    levels = semantics != "tv-float"
    dtype = dtype or (torch.uint8 if levels else torch.float32)
    make = functools.partial(raw.outputs, x, batch, channels, sizes, dtype, memory_format)
    arguments = (x, shapes, parameters, settings, semantics)
    expected = run(OPS.augment_apply, *arguments, make())
    team = functools.partial(run, OPS.augment_apply_team, *arguments)
    found = team(make(), FORWARDS, threads, SHARED[shared])
    for order in turns:
        again = team(make(), order, threads, SHARED[shared])
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), "barrier missing"
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.stride() == theirs.stride()
        if dtype == torch.uint8:
            assert torch.equal(ours, theirs) or not levels
            assert (ours.int() - theirs.int()).abs().max() <= 1
        else:
            tolerance = {torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("semantics", raw.SEMANTICS)
@pytest.mark.parametrize("size", [1, 7, 32, 33, 96])
def test_sizes_and_orders(size, semantics, shared):
    x = raw.images(24, 50, 61, seed=size)
    parameters = raw.drawn(1, [(50, 61)] * 24, seed=size)
    taps = 0 if semantics == "pil" else None
    arguments = (x, parameters, raw.settings(size, taps=taps), [(size, size)], semantics, shared)
    check(*arguments, turns=(BACKWARDS, SHUFFLED) if size <= 33 else (SHUFFLED,))


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("semantics", raw.SEMANTICS)
def test_large_views(semantics, shared):
    x = raw.images(2, 256, 300, seed=1)
    parameters = raw.drawn(1, [(256, 300)] * 2, gate=2.0, seed=1, gray=torch.tensor([False, True]))
    taps = 0 if semantics == "pil" else 23
    settings = raw.settings(224, taps=taps)
    check(x, parameters, settings, [(224, 224)], semantics, shared, threads=13, turns=(SHUFFLED,))


@pytest.mark.parametrize("semantics", raw.SEMANTICS)
def test_all_orders_with_every_operation(semantics):
    x = raw.images(48, 40, 40, seed=3)
    parameters = raw.drawn(1, [(40, 40)] * 48, seed=3, jitter=True, blur=False)
    check(x, parameters, raw.settings(24), [(24, 24)], semantics, turns=(SHUFFLED,))


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("semantics", ["tv-uint8", "tv-float"])
def test_interpolation(semantics, antialias, bicubic):
    x = raw.images(6, 90, 70, seed=4)
    parameters = raw.drawn(1, [(90, 70)] * 6, seed=4)
    settings = raw.settings(29, bicubic=bicubic, antialias=antialias)
    check(x, parameters, settings, [(29, 29)], semantics, "little", turns=(SHUFFLED,))


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("semantics", raw.SEMANTICS)
@pytest.mark.parametrize("size", [(1, 1), (2, 17)])
def test_far_down_weights_as_they_are_used(size, semantics, bicubic):
    # More taps than a table in memory has room for, and rows of the image taken in parts.
    x = raw.images(1, 2100, 1500, seed=5)
    parameters = raw.drawn(1, [(2100, 1500)], seed=5, geometry=(0, 0, 2100, 1500), blur=False)
    settings = raw.settings(1, bicubic=bicubic)
    check(x, parameters, settings, [size], semantics, "little", threads=3, turns=(SHUFFLED,))


@pytest.mark.parametrize("semantics", raw.SEMANTICS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_and_sources(channels, dtype, semantics):
    x = raw.images(9, 37, 45, channels, dtype, seed=6)
    parameters = raw.drawn(1, [(37, 45)] * 9, seed=6)
    taps = 0 if semantics == "pil" else 5
    check(x, parameters, raw.settings(21, taps=taps), [(21, 21)], semantics, turns=(SHUFFLED,))


@pytest.mark.parametrize("semantics", raw.SEMANTICS)
def test_strides(semantics):
    x = raw.images(5, 40, 72, seed=7).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    x = x[:, :, ::2, 3::2]
    parameters = raw.drawn(1, [tuple(x.shape[2:])] * 5, seed=7)
    check(x, parameters, raw.settings(31), [(31, 31)], semantics, turns=(SHUFFLED,))


@pytest.mark.parametrize("semantics", raw.SEMANTICS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_ragged(dtype, semantics):
    sizes = [(20, 31), (64, 5), (1, 1), (33, 90)]
    parts = [raw.images(1, h, w, dtype=dtype, seed=h)[0] for h, w in sizes]
    offsets = torch.tensor([0, *(p.numel() for p in parts)]).cumsum(0)[:-1].tolist()
    shapes = torch.tensor([(o, h, w) for o, (h, w) in zip(offsets, sizes, strict=True)])
    x = torch.cat([p.flatten() for p in parts])
    parameters = raw.drawn(2, sizes, seed=8)
    arguments = (x, parameters, raw.settings(23, 2), [(23, 23), (23, 23)], semantics)
    check(*arguments, shapes=shapes, channels=3, turns=(SHUFFLED,))


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("semantics", raw.SEMANTICS)
def test_views_of_many_sizes_in_one_call(semantics, shared):
    # More views than a launch takes, not in the order of their sizes, not all square.
    sizes = [(12, 12), (70, 64), (12, 12), (33, 7), *[(9, 9)] * 14]
    x = raw.images(3, 48, 48, seed=9)
    parameters = raw.drawn(len(sizes), [(48, 48)] * 3, seed=9)
    settings = [n for size in sizes for n in raw.settings(min(size), gray_first=size[0] == 33)]
    check(x, parameters, settings, sizes, semantics, shared, turns=(SHUFFLED,))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("semantics", raw.SEMANTICS)
def test_outputs(semantics, dtype, memory_format):
    # 3 * 13 * 13 samples: views begin off the 16-byte grid.
    x = raw.images(6, 30, 30, seed=10)
    parameters = raw.drawn(1, [(30, 30)] * 6, seed=10)
    arguments = (x, parameters, raw.settings(13), [(13, 13)], semantics)
    check(*arguments, dtype=dtype, memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_nothing_is_written_beside_the_output(dtype, memory_format):
    room = torch.full((5, 7, 3, 19), 77.0).to(dtype)
    out = room[1:4, 1:6, :, 3:16].permute(0, 2, 1, 3)  # rows are not adjacent: refused
    x = raw.images(3, 30, 30, seed=11)
    parameters = raw.drawn(1, [(30, 30)] * 3, seed=11)
    with pytest.raises(RuntimeError, match="rows one after the other"):
        run(OPS.augment_apply_team, x, None, parameters, raw.settings(5), "tv-uint8", [out], 0, 4,
            SHARED["h100"])  # fmt: skip
    flat = torch.full((1 + 3 * 3 * 5 * 13 + 9,), 77.0).to(dtype)
    strides = (195, 65, 13, 1) if memory_format == torch.contiguous_format else (195, 1, 39, 3)
    out = flat[1:-9].as_strided((3, 3, 5, 13), strides, 1)
    run(OPS.augment_apply_team, x, None, parameters, raw.settings(5), "tv-uint8", [out], 0, 4,
        SHARED["h100"])  # fmt: skip
    assert (flat[:1] == 77).all() and (flat[-9:] == 77).all()


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 0.7, 2.0, 9.0])
@pytest.mark.parametrize("taps", [1, 3, 23, 61, 0])
def test_blurs(taps, sigma):
    x = raw.images(3, 40, 52, seed=12)
    fields = {"jitter": False, "blur": True, "solarize": False, "sigma": sigma}
    parameters = raw.drawn(1, [(40, 52)] * 3, seed=12, **fields)
    semantics = "tv-uint8" if taps else "pil"
    # So little memory that strips are narrow.
    for shared in ("h100", "little"):
        arguments = (x, parameters, raw.settings(40, taps=taps), [(40, 90)], semantics, shared)
        check(*arguments, turns=(SHUFFLED,))


def test_pillows_resize_with_torchvisions_blur():
    x = raw.images(4, 40, 52, seed=13)
    parameters = raw.drawn(1, [(40, 52)] * 4, seed=13, blur=True)
    check(x, parameters, raw.settings(33, taps=9), [(33, 33)], "pil", turns=(SHUFFLED,))


def test_any_number_of_threads():
    x = raw.images(2, 40, 40, seed=14)
    parameters = raw.drawn(1, [(40, 40)] * 2, seed=14)
    for threads in (1, 2, 64):
        check(x, parameters, raw.settings(32), [(32, 32)], "tv-uint8", threads=threads)

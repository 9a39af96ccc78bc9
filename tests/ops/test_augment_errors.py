"""Errors of augmentation name the argument, what it was and what is allowed."""

import dataclasses

import pytest
import torch
from augment_cases import params

import fastssl
from fastssl.augment import Augment, Recipe, apply, apply_geometry
from fastssl.ops.augment import draw

X = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"x: got shape \(3, 8, 8\), must be \[B, C, H, W\]"),
        (torch.zeros(2, 4, 8, 8), ValueError, r"x: got shape \(2, 4, 8, 8\), .* 1 or 3 channels"),
        (torch.zeros(2, 8, 8, 4), ValueError, "1 or 3 channels"),
        (torch.zeros(0, 3, 8, 8), ValueError, r"x: got shape \(0, 3, 8, 8\), B must be at least 1"),
        (torch.zeros(2, 3, 0, 8), ValueError, "height and width must be at least 1"),
        (torch.zeros(2, 3, 8, 8).int(), TypeError, "x: got dtype torch.int32"),
        (torch.zeros(2, 3, 8, 8).to_sparse(), TypeError, "x: got layout"),
        ("image", TypeError, "x: got str"),
        ([], ValueError, "images: got an empty list"),
        ([X[0], torch.zeros(4, 8, 8)], ValueError, r"images\[1\]: .* 1 or 3 channels"),
        ([X[0], torch.zeros(8)], ValueError, r"images\[1\]: got shape \(8,\)"),
        ([X[0], torch.zeros(3, 8, 8)], TypeError, r"images\[1\]: got dtype torch.float32"),
        ([X[0], X[0, :1]], ValueError, r"images\[1\]: got 1 channels"),
        ([X[0], None], TypeError, r"images\[1\]: got NoneType"),
    ],
)
def test_errors_of_images(x, error, message):
    with pytest.raises(error, match=message):
        fastssl.augment.Weak(size=4)(x)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"top": 3}, ValueError, r"params.top: got 3, top \+ height must be inside"),
        ({"left": -1}, ValueError, "params.left: got -1, must not be negative"),
        ({"height": 0}, ValueError, "params.height: got 0, must be at least 1"),
        ({"width": 9}, ValueError, r"params.left: got 0, left \+ width must be inside"),
        ({"brightness": -0.1}, ValueError, "params.brightness: got -0.1"),
        ({"contrast": float("nan")}, ValueError, "params.contrast: got nan"),
        ({"saturation": float("inf")}, ValueError, "params.saturation: got inf"),
        ({"hue": 0.6}, ValueError, r"params.hue: got 0.6.*, must be in \[-0.5, 0.5\]"),
        ({"blur": True, "sigma": 0.0}, ValueError, "params.sigma: got 0.0"),
        ({"order": (0, 1, 2, 2)}, ValueError, r"params.order: got \[0, 1, 2, 2\]"),
    ],
)
def test_errors_of_values(fields, error, message):
    with pytest.raises(error, match=message):
        apply(X, params(1, 2, 8, 8, **fields), size=4)
    assert apply(X, params(1, 2, 8, 8, sigma=0.0), size=4)[0].shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("flip", torch.zeros(1, 2), TypeError, "params.flip: got dtype torch.float32"),
        ("hue", torch.zeros(2, 1), ValueError, r"params.hue: got shape \(2, 1\), must be \(1, 2\)"),
        ("order", torch.zeros(1, 2), ValueError, r"params.order: .* must be \(1, 2, 4\)"),
        ("sigma", None, TypeError, "params.sigma: got NoneType"),
        ("sigma", torch.zeros(1, 2, device="meta"), ValueError, "params.sigma: got device meta"),
        ("top", torch.zeros(2), ValueError, "params.top"),
    ],
)
def test_errors_of_fields(field, value, error, message):
    p = params(1, 2, 8, 8)
    setattr(p, field, value)
    with pytest.raises(error, match=message):
        apply(X, p, size=4)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"size": 0}, ValueError, "size: got 0"),
        ({"size": (4, 0)}, ValueError, "size: got"),
        ({"size": 4.0}, TypeError, "size: got 4.0"),
        ({"size": [4, 4]}, ValueError, "size: got 2 values, must be 1"),
        ({"interpolation": "nearest"}, ValueError, "interpolation: got 'nearest'"),
        ({"antialias": 1}, TypeError, "antialias: got 1"),
        ({"gray_first": "no"}, TypeError, "gray_first"),
        ({"blur_kernel": 4}, ValueError, "blur_kernel: got 4, must be odd"),
        ({"blur_kernel": 9}, ValueError, "blur_kernel: got 9, its half must be smaller"),
        ({"blur_kernel": 3.0}, TypeError, "blur_kernel"),
        ({"solarize_threshold": 256}, ValueError, "solarize_threshold: got 256"),
        ({"solarize_threshold": 0.5}, TypeError, "solarize_threshold"),
        ({"mean": (0.5,)}, ValueError, "mean: got 1 numbers, must be 3"),
        ({"mean": 0.5}, TypeError, "mean: got 0.5"),
        ({"std": (1, 1, 0)}, ValueError, "std: got .* above 0"),
        ({"std": (1, 1)}, ValueError, "std: got 2 numbers"),
        ({"mean": (0, 0, float("nan"))}, ValueError, "mean: got .* must be finite"),
        ({"dtype": torch.float64}, TypeError, "dtype: got torch.float64"),
        ({"dtype": torch.uint8, "mean": (0.1, 0.2, 0.3)}, ValueError, "mean: got .* uint8"),
        ({"memory_format": torch.preserve_format}, ValueError, "memory_format"),
        ({"semantics": "opencv"}, ValueError, "semantics: got 'opencv'"),
        ({"impl": "triton"}, ValueError, "impl: got 'triton'"),
        ({"out": torch.zeros(2, 3, 4, 4)}, TypeError, "out: got Tensor"),
        ({"out": []}, ValueError, "out: got 0 tensors"),
        ({"out": [torch.zeros(2, 3, 4, 5)]}, ValueError, r"out\[0\]: got shape"),
        ({"out": [torch.zeros(2, 3, 4, 4).half()]}, TypeError, r"out\[0\]: got dtype"),
        ({"out": [torch.zeros(2, 3, 4, 8)[..., ::2]]}, ValueError, r"out\[0\]: got strides"),
        ({"out": [torch.zeros(2, 3, 4, 4, device="meta")]}, ValueError, r"out\[0\]: got device"),
    ],
)
def test_errors_of_settings(keywords, error, message):
    with pytest.raises(error, match=message):
        apply(X, params(1, 2, 8, 8), **{"size": 4, **keywords})


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"flip": 1.1}, ValueError, r"flip: got 1.1, must be in \[0, 1\]"),
        ({"blur": "often"}, TypeError, "blur: got 'often'"),
        ({"scale": (0.0, 1.0)}, ValueError, "scale: got"),
        ({"scale": (0.5, 1.5)}, ValueError, "scale: got 1.5"),
        ({"scale": (0.5, 0.4)}, ValueError, "scale: got"),
        ({"scale": 0.5}, TypeError, "scale: got 0.5"),
        ({"ratio": (0, 1)}, ValueError, "ratio: got"),
        ({"sigma": (0.0, 1.0)}, ValueError, "sigma: got"),
        ({"hue": 0.6}, ValueError, "hue: got 0.6"),
        ({"hue": (-0.6, 0.1)}, ValueError, "hue: got -0.6"),
        ({"contrast": -1}, ValueError, "contrast: got -1"),
        ({"saturation": (1.2, 0.8)}, ValueError, "saturation: got"),
        ({"size": -1}, ValueError, "size: got -1"),
        ({"interpolation": 1}, ValueError, "interpolation: got 1"),
        ({"blur_kernel": 2}, ValueError, "blur_kernel: got 2"),
    ],
)
def test_errors_of_recipes(fields, error, message):
    with pytest.raises(error, match=message):
        Recipe(**{"size": 8, **fields})


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"seed": 1 << 63}, ValueError, "seed: got"),
        ({"seed": 0.5}, TypeError, "seed: got 0.5"),
        ({"step": -1}, ValueError, "step: got -1"),
        ({"step": 1 << 32}, ValueError, "step: got"),
        ({"step": 1.0}, TypeError, "step: got 1.0"),
        ({"step": torch.zeros(1).long()}, ValueError, "step: got"),
        ({"step": torch.zeros((), dtype=torch.int32)}, ValueError, "step: got"),
        ({"step": torch.zeros((), dtype=torch.int64, device="meta")}, ValueError, "step: .*meta"),
        ({"sample_ids": torch.zeros(2)}, TypeError, "sample_ids: got torch.float32"),
        ({"sample_ids": torch.zeros(3).long()}, ValueError, r"sample_ids: got shape \(3,\)"),
        ({"sample_ids": [0, 1]}, TypeError, "sample_ids: got list"),
        ({"impl": "fast"}, ValueError, "impl: got 'fast'"),
    ],
)
def test_errors_of_draws(keywords, error, message):
    with pytest.raises(error, match=message):
        draw([Recipe(4)], X, **keywords)


def test_other_errors():
    p = params(1, 2, 8, 8)
    with pytest.raises(TypeError, match="recipes: got"):
        Augment([])
    with pytest.raises(TypeError, match=r"recipes\[0\]: got int"):
        Augment([4])
    with pytest.raises(ValueError, match="semantics: got 'x'"):
        fastssl.augment.Weak(semantics="x")
    with pytest.raises(ValueError, match="std: got 2 numbers, must be one per channel"):
        fastssl.augment.Weak(std=(1, 1))
    with pytest.raises(ValueError, match="mean: got 2 numbers"):
        fastssl.augment.Weak(mean=(1, 1))
    with pytest.raises(ValueError, match="mean: got 0.5, but dtype uint8"):
        fastssl.augment.Weak(mean=0.5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="impl: got 'x'"):
        fastssl.augment.Weak(impl="x")
    with pytest.raises(ValueError, match="memory_format: got"):
        fastssl.augment.Weak(memory_format=torch.preserve_format)
    with pytest.raises(TypeError, match="params: got NoneType"):
        apply_geometry(X, None, size=4)
    with pytest.raises(TypeError, match="params: got dict"):
        apply(X, {}, size=4)
    with pytest.raises(TypeError, match="params: got int"):
        fastssl.augment.Weak(size=4)(X, params=1)
    with pytest.raises(RuntimeError, match="impl='cuda'"):
        apply(X, p, size=4, impl="cuda")
    with pytest.raises(ValueError, match=r"mask: got shape \(8, 8\)"):
        apply_geometry(X[0, 0], p, size=4)
    with pytest.raises(ValueError, match=r"params.left: .*inside the image's width"):
        apply_geometry(X[:, :, :, :7], p, size=4)
    with pytest.raises(ValueError, match="mask: got 1 masks, must be 2"):
        apply_geometry([X[0]], p, size=4)
    with pytest.raises(TypeError, match="mask: must be"):
        apply_geometry([None, None], p, size=4)


def test_views_share_no_memory():
    p, one = params(2, 2, 8, 8), torch.empty(2, 3, 8, 8, dtype=torch.uint8)
    whole = torch.empty(2, 2, 3, 8, 8, dtype=torch.uint8)
    levels = {"size": 8, "dtype": torch.uint8}
    assert apply(X, p, **levels, out=list(whole))[1].data_ptr() == whole[1].data_ptr()
    with pytest.raises(ValueError, match=r"out\[0\]: shares memory with another view"):
        apply(X, p, **levels, out=[one, one])
    x = X.clone()
    with pytest.raises(
        ValueError, match=r"out\[1\]: shares memory with another view or with the im"
    ):
        apply(x, p, **levels, out=[one, x])


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"data": torch.zeros(192, dtype=torch.int32)}, TypeError, "x.data: got dtype torch.int32"),
        ({"data": torch.zeros(1, 192)}, ValueError, "x.data: got shape"),
        ({"shapes": torch.zeros(2, 3)}, TypeError, "x.shapes: got dtype torch.float32"),
        ({"shapes": torch.zeros(2, 2).long()}, ValueError, "x.shapes: got shape"),
        ({"shapes": torch.zeros(0, 3).long()}, ValueError, "x.shapes: got shape"),
        ({"channels": 2}, ValueError, "x.channels: got 2"),
    ],
)
def test_errors_of_packed_images_made_by_hand(fields, error, message):
    made = fastssl.augment.pack([torch.zeros(3, 8, 8), torch.zeros(3, 4, 4)])
    with pytest.raises(error, match=message):
        fastssl.augment.Weak(size=4)(dataclasses.replace(made, **fields))


@pytest.mark.parametrize("sigma", [-1e6, 0.0, 1e-30, float("nan"), 1e30])
@pytest.mark.parametrize("semantics", [0, 1, 2])
def test_no_width_of_a_blur_harms_the_raw_operator(semantics, sigma):
    packed = list(params(1, 2, 8, 8, blur=True).packed())
    packed[3][4] = sigma
    out = [torch.empty(2, 3, 8, 8)]
    settings = [0, 1, 0, 0 if semantics == 2 else 5, 128]
    norm = ([0.0] * 3, [1.0] * 3)
    torch.ops.fastssl.augment_apply(X, None, *packed, settings, *norm, semantics, out)
    assert out[0].isfinite().all()


def test_views_that_overlap_themselves_are_refused_by_the_raw_operator():
    packed, norm = params(1, 2, 8, 8).packed(), ([0.0] * 3, [1.0] * 3)
    out = [torch.empty(1, 3, 8, 8).expand(2, 3, 8, 8)]
    with pytest.raises(RuntimeError, match="overlap"):
        torch.ops.fastssl.augment_apply(X, None, *packed, [0, 1, 0, 1, 128], *norm, 0, out)

import dataclasses

import pytest
import torch
from torch import Generator

from fastssl.train import views
from fastssl.train.views import CHARACTERS, PHOTOGRAPHS, Recipe, random_views, to_float

STILL = Recipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grey=0.0)


def pictures(count, channels, size=32):
    generator = Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator).byte()


def seeded(seed=0):
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("recipe", [PHOTOGRAPHS, CHARACTERS])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_range_and_determinism(recipe, channels):
    images = pictures(9, channels)
    made = random_views(images, recipe, seeded())
    assert made.shape == images.shape and made.dtype == torch.float32
    assert made.min() >= -2 and made.max() <= 2
    assert torch.equal(made, random_views(images, recipe, seeded()))
    assert not torch.equal(made, random_views(images, recipe, seeded(1)))


def test_nothing_asked_nothing_changed():
    images = pictures(4, 3)
    torch.testing.assert_close(random_views(images, STILL, seeded()), to_float(images))


def test_each_image_has_its_own_parameters():
    same = pictures(1, 3).expand(16, -1, -1, -1)
    made = random_views(same, PHOTOGRAPHS, seeded()).flatten(1)
    assert torch.cdist(made, made).fill_diagonal_(1).min() > 0.5


def test_flip_is_a_mirror_image():
    images = pictures(4, 3)
    made = random_views(images, dataclasses.replace(STILL, flip=1.0), seeded())
    torch.testing.assert_close(made, to_float(images).flip(3), atol=1e-4, rtol=0)


def test_crops_stay_inside_and_keep_the_asked_area():
    warp = views.affine_maps(2000, Recipe(scale=(0.2, 0.6), flip=0.5), seeded())
    area = torch.linalg.det(warp[:, :, :2]).abs()
    assert 0.19 < area.min() < 0.22 and 0.58 < area.max() < 0.601
    corners = torch.tensor([[1.0, 1, 1], [1, -1, 1], [-1, 1, 1], [-1, -1, 1]])
    assert (warp @ corners.T).abs().max() <= 1 + 1e-6


def test_rotation_keeps_areas():
    warp = views.affine_maps(500, dataclasses.replace(STILL, rotate=20.0, shear=0.3), seeded())
    torch.testing.assert_close(torch.linalg.det(warp[:, :, :2]), torch.ones(500))
    upright = views.affine_maps(500, dataclasses.replace(STILL, rotate=20.0), seeded())
    assert 15 < torch.atan2(upright[:, 1, 0], upright[:, 0, 0]).rad2deg().abs().max() <= 20.001


def test_grey_is_luma():
    images = pictures(3, 3)
    made = random_views(images, dataclasses.replace(STILL, grey=1.0), seeded())
    luma = torch.einsum("c,nchw->nhw", torch.tensor(views.LUMA), images / 255)
    expected = ((luma - 0.5) * 4)[:, None].expand_as(made)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)


def test_hue_and_saturation_keep_luma_and_greys():
    recipe = dataclasses.replace(STILL, jitter=1.0, brightness=0.0, contrast=0.0, hue=0.5)
    matrix, _ = views.colour_maps(50, 3, recipe, seeded())
    torch.testing.assert_close(matrix.sum(2), torch.ones(50, 3), atol=1e-5, rtol=0)
    luma = torch.tensor(views.LUMA)
    torch.testing.assert_close(luma @ matrix, luma.expand(50, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_pulls_to_the_mean_grey(channels):
    pixels = pictures(2, channels) / 255
    identity = torch.eye(channels).expand(2, -1, -1)
    flat = views.recolour(pixels, identity, torch.zeros(2))
    luma = torch.tensor(views.LUMA if channels == 3 else (1.0,))
    mean = torch.einsum("c,nchw->n", luma, pixels) / 32**2
    torch.testing.assert_close(flat, mean.view(2, 1, 1, 1).expand_as(flat))
    torch.testing.assert_close(views.recolour(pixels, identity, torch.ones(2)), pixels)

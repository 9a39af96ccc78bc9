import pytest
import torch

from fastssl.train.config import Config
from fastssl.train.data import Data, Split
from fastssl.train.data.digits import digits
from fastssl.train.views import CHARACTERS, PHOTOGRAPHS, Recipe, same_size_views, to_float


def pictures(count, channels, height=32, width=32):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator).byte()


def views_of(images, recipes, seed=0):
    split = Split(images, torch.zeros(len(images), dtype=torch.int64))
    return same_size_views(Data("pictures", (), split, split), recipes, Config(seed=seed))


@pytest.mark.parametrize("recipe", [PHOTOGRAPHS, CHARACTERS])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_have_the_size_and_range_of_what_encoders_are_fed(recipe, channels):
    images = pictures(9, channels, 32, 24)
    made = views_of(images, [recipe] * 2)(images, step=0)
    assert len(made) == 2
    for view in made:
        assert view.shape == images.shape and view.dtype == torch.float32
        assert view.abs().max() <= 2 + 1e-6
    assert not torch.equal(*made)


def test_nothing_asked_nothing_changed():
    images = pictures(4, 3)
    (view,) = views_of(images, [Recipe(32, (1.0, 1.0), (1.0, 1.0), flip=0.0)])(images)
    torch.testing.assert_close(view, to_float(images))


def test_seed_step_and_sample_decide():
    images = pictures(8, 3)
    make = views_of(images, [PHOTOGRAPHS] * 2, seed=3)
    ids = torch.arange(8) + 100
    both = make(images, sample_ids=ids, step=5)
    for part in (slice(0, 3), slice(3, 8)):
        for whole, some in zip(both, make(images[part], sample_ids=ids[part], step=5), strict=True):
            assert torch.equal(whole[part], some)
    for other in (
        make(images, sample_ids=ids, step=6),
        make(images, sample_ids=ids + 8, step=5),
        views_of(images, [PHOTOGRAPHS] * 2, seed=4)(images, sample_ids=ids, step=5),
    ):
        assert not torch.equal(both[0], other[0])


def test_characters_are_not_mirrored_or_recoloured():
    images = digits().train.inputs[:200]
    _, params = views_of(images, [CHARACTERS] * 2)(images, step=0, return_params=True)
    assert not params.flip.any() and not params.gray.any() and not params.blur.any()
    assert (params.hue == 0).all() and (params.saturation == 1).all()
    area = (params.height * params.width).double() / (32 * 32)
    assert area.min() > 0.45

"""What encoders are fed: images as floats, and random views of them.

Views come from `fastssl.augment` on the device that trains, one call for all of a step's; an
image's views are a function of the run's seed, the step and the image's place in the data set,
however many processes share the batch.
"""

from dataclasses import replace

from torch import Tensor

from fastssl.augment import Augment, Recipe, SimCLR

#: Scaling of what encoders are fed: 0 to 255 becomes -2 to 2.
MEAN, STD = 0.5, 0.25

#: Photographs: SimCLR's crop and colour distortion at strength 0.5 without blur, its choice for
#: CIFAR-10 (Chen et al. 2020, appendices A and B.9).
PHOTOGRAPHS = SimCLR(size=32, strength=0.5, blur=False).recipes[0]

#: Written characters: a mirror image or half of a digit is another sign.
CHARACTERS = Recipe(32, scale=(0.5, 1.0), flip=0.0, jitter=0.8, brightness=0.4, contrast=0.4)


def to_float(images: Tensor) -> Tensor:
    """uint8 images [N, C, H, W] as float32, 0 to 255 mapped to -2 to 2: what encoders are fed."""
    return (images.float() / 255 - MEAN) / STD


def same_size_views(images: Tensor, recipe: Recipe, count: int, seed: int) -> Augment:
    """An augmentation that makes `count` views as large as the images, scaled as by `to_float`.

    Args:
        images: [N, C, H, W]; only the shape counts.
        recipe: the distribution of each view.
        count: views of an image.
        seed: of all views.
    """
    channels = images.shape[1]
    recipe = replace(recipe, size=tuple(images.shape[2:]))
    return Augment([recipe] * count, seed=seed, mean=[MEAN] * channels, std=[STD] * channels)

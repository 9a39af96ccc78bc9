"""What encoders are fed: images as floats, and random views of them.

Views come from `fastssl.augment` on the device that trains, one call for all of a step's; an
image's views are a function of the run's seed, the step and the image's place in the data set,
however many processes share the batch.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastssl.augment import Augment, Recipe, SimCLR
from fastssl.train.config import Config
from fastssl.train.data import Data

#: Scaling of what encoders are fed: 0 to 255 becomes -2 to 2.
MEAN, STD = 0.5, 0.25

#: Photographs: SimCLR's crop and colour distortion at strength 0.5 without blur, its choice for
#: CIFAR-10 (Chen et al. 2020, appendices A and B.9).
PHOTOGRAPHS = SimCLR(size=32, strength=0.5, blur=False).recipes[0]

#: Written characters: a mirror image or half of a digit is another sign.
CHARACTERS = Recipe(32, scale=(0.5, 1.0), flip=0.0, jitter=0.8, brightness=0.4, contrast=0.4)


def to_float(inputs: Tensor) -> Tensor:
    """What encoders are fed: uint8 images [N, C, H, W] as float32, 0 to 255 mapped to -2 to 2.

    Token ids of texts, int64, are returned as they are.
    """
    if inputs.dtype == torch.int64:
        return inputs
    return (inputs.float() / 255 - MEAN) / STD


def recipe_for(data: Data) -> Recipe:
    """The distribution of views that suits a data set: photographs are RGB, characters grey."""
    return PHOTOGRAPHS if data.channels == 3 else CHARACTERS


def same_size_views(data: Data, recipes: Sequence[Recipe], config: Config) -> Augment:
    """An augmentation that makes a view as large as the images for each recipe.

    Views are scaled as by `to_float`.

    Args:
        data: gives channels and sides of the images.
        recipes: the distribution of each view; their `size` is that of the images.
        config: gives the seed.
    """
    _, channels, *sides = data.train.inputs.shape
    recipes = [replace(recipe, size=tuple(sides)) for recipe in recipes]
    return Augment(recipes, seed=config.seed, mean=[MEAN] * channels, std=[STD] * channels)

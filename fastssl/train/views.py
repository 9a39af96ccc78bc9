"""Random views of a batch, in plain PyTorch: one affine warp and one colour matrix for each image.

Crop, flip, rotation and shear compose to one affine map and brightness, contrast, saturation, hue
and greyscale to another, so that each image is resampled once and recoloured once. Parameters are
drawn on the CPU from a seeded generator: the same views on every device.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Recipe:
    """How far a view may stray from its image.

    Attributes:
        scale: least and greatest share of the area that a crop keeps.
        ratio: least and greatest width / height of a crop.
        flip: probability of a horizontal mirror image.
        rotate: greatest rotation either way, degrees.
        shear: greatest horizontal shear either way, as a slope.
        jitter: probability of a change of colour.
        brightness, contrast, saturation: greatest relative change.
        hue: greatest change as a share of the colour circle, 0 to 0.5.
        grey: probability of a greyscale view.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    rotate: float = 0.0
    shear: float = 0.0
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.2


#: Photographs: SimCLR's crop and colour distortion at strength 0.5 without blur, its choice for
#: CIFAR-10 (Chen et al. 2020, appendices A and B.9).
PHOTOGRAPHS = Recipe()

#: Written characters: a mirror image or half of a digit is another sign, a slanted one is not.
CHARACTERS = Recipe(
    scale=(0.5, 1.0), flip=0.0, rotate=15.0, shear=0.2, saturation=0.0, hue=0.0, grey=0.0
)


def to_float(images: Tensor) -> Tensor:
    """uint8 images [N, C, H, W] as float32, 0 to 255 mapped to -2 to 2: what encoders are fed."""
    return _standardise(images.float() / 255)


def random_views(images: Tensor, recipe: Recipe, generator: Generator) -> Tensor:
    """One random view of each image.

    Args:
        images: uint8 [N, C, H, W], C = 1 or 3.
        recipe: the distribution of views.
        generator: of the CPU; its state fixes the views.

    Returns:
        float32 [N, C, H, W] on the images' device, scaled as by `to_float`.
    """
    count, channels = images.shape[:2]
    warp = affine_maps(count, recipe, generator).to(images.device)
    matrix, contrast = colour_maps(count, channels, recipe, generator)
    grid = F.affine_grid(warp, images.shape, align_corners=False)
    pixels = F.grid_sample(images.float() / 255, grid, align_corners=False)
    pixels = recolour(pixels, matrix.to(images.device), contrast.to(images.device))
    return _standardise(pixels.clamp_(0, 1))


def affine_maps(count: int, recipe: Recipe, generator: Generator) -> Tensor:
    """Maps [count, 2, 3] from a view's coordinates, -1 to 1, to its image's."""
    area = _uniform(count, *recipe.scale, generator)
    aspect = _uniform(count, *map(math.log, recipe.ratio), generator).exp()
    width = (area * aspect).sqrt().clamp(max=1)
    height = (area / aspect).sqrt().clamp(max=1)
    left = (1 - width) * _uniform(count, -1, 1, generator)
    top = (1 - height) * _uniform(count, -1, 1, generator)
    mirror = 1 - 2 * _chance(count, recipe.flip, generator)
    angle = _uniform(count, -recipe.rotate, recipe.rotate, generator).deg2rad()
    slope = _uniform(count, -recipe.shear, recipe.shear, generator)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        [mirror * width * cos, width * (slope * cos - sin), left],
        [mirror * height * sin, height * (slope * sin + cos), top],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def colour_maps(
    count: int, channels: int, recipe: Recipe, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Colour matrices [count, C, C] and contrasts [count], to be applied by `recolour`."""
    jitter = _chance(count, recipe.jitter, generator)

    def factor(strength):
        return 1 + jitter * _uniform(count, -strength, strength, generator)

    brightness, contrast = factor(recipe.brightness), factor(recipe.contrast)
    saturation = factor(recipe.saturation)
    turn = jitter * _uniform(count, -recipe.hue, recipe.hue, generator) * (2 * math.pi)
    saturation = saturation * (1 - _chance(count, recipe.grey, generator))
    if channels == 1:
        return brightness.view(-1, 1, 1), contrast
    # In YUV, luma beside two chroma axes, saturation scales the chroma plane and hue rotates it.
    luma = torch.tensor(LUMA)
    red, _, blue = torch.eye(3)
    to_yuv = torch.stack([luma, 0.492 * (blue - luma), 0.877 * (red - luma)])
    one, zero = torch.ones(count), torch.zeros(count)
    cos, sin = saturation * turn.cos(), saturation * turn.sin()
    chroma = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    matrix = torch.linalg.inv(to_yuv) @ chroma @ to_yuv
    return matrix * brightness.view(-1, 1, 1), contrast


def recolour(pixels: Tensor, matrix: Tensor, contrast: Tensor) -> Tensor:
    """Applies colour matrices, then pulls each image to or from its mean grey.

    Args:
        pixels: float [N, C, H, W].
        matrix: [N, C, C].
        contrast: [N]; 0 gives the mean grey, 1 leaves the image as it is.
    """
    count, channels = pixels.shape[:2]
    luma = pixels.new_tensor(LUMA if channels == 3 else (1.0,))
    grey = torch.einsum("c,ncd,nd->n", luma, matrix, pixels.mean((2, 3)))
    matrix = matrix * contrast.view(-1, 1, 1)
    offset = (grey * (1 - contrast)).view(-1, 1, 1).expand(-1, channels, 1)
    return torch.baddbmm(offset, matrix, pixels.flatten(2)).view_as(pixels)


def _standardise(pixels: Tensor) -> Tensor:
    return (pixels - 0.5) * 4


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _chance(count: int, probability: float, generator: Generator) -> Tensor:
    return (torch.rand(count, generator=generator) < probability).float()

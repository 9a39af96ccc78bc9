"""DCGAN's networks: a decoder of vectors into images, and a discriminator of images.

Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", 2016.
"""

import math

from torch import Tensor, nn

#: The side from which images are built up, and to which the discriminator brings them down.
SMALLEST = 4

#: The most channels, in units of the width.
MOST = 8


def stages(sides: tuple[int, int]) -> int:
    """How often the sides of an image are halved until about `SMALLEST` is left."""
    return max(1, round(math.log2(min(sides) / SMALLEST)))


def channels_of(stage: int, width: int) -> int:
    """Channels after stage 0, 1, ... of a network whose sides are halved and channels doubled."""
    return width * min(2**stage, MOST)


class Decoder(nn.Sequential):
    """Vectors [N, inputs] to images [N, channels, H, W], unbounded.

    A linear layer to a small map, then transposed convolutions that double its sides, with batch
    norm and ReLU after all but the last.

    Args:
        inputs: size of the vectors.
        channels: of the images.
        sides: (H, W); what the last map has in excess is cut off.
        width: channels of the last map before the image; each one before has twice as many.
    """

    def __init__(self, inputs: int, channels: int, sides: tuple[int, int], width: int):
        count = stages(sides)
        start = [-(-side // 2**count) for side in sides]
        wide = channels_of(count - 1, width)
        layers: list[nn.Module] = [
            nn.Linear(inputs, wide * math.prod(start), bias=False),
            nn.Unflatten(1, (wide, *start)),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
        ]
        for stage in range(count - 2, -1, -1):
            narrow = channels_of(stage, width)
            layers += [
                nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False),
                nn.BatchNorm2d(narrow),
                nn.ReLU(inplace=True),
            ]
            wide = narrow
        super().__init__(*layers, nn.ConvTranspose2d(wide, channels, 4, 2, 1))
        self.sides = sides

    def forward(self, vectors: Tensor) -> Tensor:
        """[N, inputs] to [N, channels, H, W]."""
        height, width = self.sides
        return super().forward(vectors)[..., :height, :width]


class Discriminator(nn.Sequential):
    """DCGAN's, without its last layer: images [N, channels, H, W] to features [N, `features`].

    Strided convolutions halve the sides and double the channels, with leaky ReLU, and batch norm
    in all but the first layer; the last map is the features.
    """

    def __init__(self, channels: int, sides: tuple[int, int], width: int):
        layers: list[nn.Module] = []
        for stage in range(stages(sides)):
            outputs = channels_of(stage, width)
            layers.append(nn.Conv2d(channels, outputs, 4, 2, 1, bias=stage == 0))
            if stage:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            channels, sides = outputs, (sides[0] // 2, sides[1] // 2)
        super().__init__(*layers, nn.Flatten())
        self.features = channels * sides[0] * sides[1]


def initialise(module: nn.Module) -> None:
    """The paper's: weights from a normal distribution of deviation 0.02."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)

"""Convolutional encoders for images, and the heads that methods put on them."""

from torch import Tensor, nn
from torch.nn import functional as F


class Small(nn.Sequential):
    """Three convolutions of width, 2 width and 4 width channels: quick to train on a CPU.

    Pooling comes before normalisation, which then has a quarter of the numbers to read.
    """

    def __init__(self, channels: int, width: int):
        def stage(inputs, outputs, *pool):
            return [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                *pool,
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]

        self.features = 4 * width
        super().__init__(
            *stage(channels, width, nn.MaxPool2d(2)),
            *stage(width, 2 * width, nn.MaxPool2d(2)),
            *stage(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 with the stride, 1 x 1 to four times the width (He et al. 2016, figure 5 right).

    The stride is where torchvision has it, in the middle ("ResNet v1.5").
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, 4 width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A residual network (He et al. 2016) without its classifier.

    Parameters have torchvision's names and shapes, so that its models take the weights with
    ``load_state_dict(..., strict=False)``: all but `fc`, and with the stem for small images conv1.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks of each stage.
        channels: of the images.
        width: channels of the first stage; 64 in the paper.
        stem: "imagenet", a 7 x 7 convolution of stride 2 and max-pooling, or "cifar", one 3 x 3
            convolution of stride 1 without pooling (Chen et al. 2020, B.9).
    """

    def __init__(self, block: type, depths: tuple[int, ...], channels: int, width: int, stem: str):
        super().__init__()
        small = stem == "cifar"
        self.features = (width << len(depths) - 1) * block.expansion
        side, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(channels, width, side, stride, side // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        inputs = width
        self.stages = [f"layer{stage + 1}" for stage in range(len(depths))]
        for stage, (name, depth) in enumerate(zip(self.stages, depths, strict=True)):
            blocks = []
            for place in range(depth):
                blocks.append(block(inputs, width << stage, 2 if stage and not place else 1))
                inputs = (width << stage) * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, features]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x.mean((2, 3))


def mlp(*sizes: int, last_norm: bool = False) -> nn.Sequential:
    """Linear layers [N, sizes[0]] to [N, sizes[-1]], batch norm and ReLU between them.

    Args:
        sizes: of the input, of each hidden layer, of the output.
        last_norm: batch norm without weight and bias after the last layer, which has no bias then.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-2], sizes[1:-1], strict=True):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)]
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(sizes[-2], sizes[-1], bias=not last_norm))
    if last_norm:
        layers.append(nn.BatchNorm1d(sizes[-1], affine=False))
    return nn.Sequential(*layers)

"""Encoders for small images and the head that SimCLR and its relatives put on them."""

from torch import Tensor, nn
from torch.nn import functional as F


def encoder(name: str, channels: int, width: int) -> nn.Module:
    """An encoder of images [N, channels, H, W] into features [N, D], D in its `features`.

    Args:
        name: "small" (D = 4 width) or "resnet18" (D = 8 width).
        channels: of the images.
        width: channels of the first stage; ResNet-18 proper has 64.
    """
    return {"small": Small, "resnet18": ResNet18}[name](channels, width)


class Small(nn.Sequential):
    """Three convolutions with normalisation and pooling: quick to train on a CPU."""

    def __init__(self, channels: int, width: int):
        def stage(inputs, outputs):
            return [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]

        self.features = 4 * width
        super().__init__(
            *stage(channels, width),
            nn.MaxPool2d(2),
            *stage(width, 2 * width),
            nn.MaxPool2d(2),
            *stage(2 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016, figure 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) with the stem for 32 x 32 images of Chen et al. 2020, B.9.

    The stem is one 3 x 3 convolution, stride 1, without pooling. Parameters have torchvision's
    names, so that its loaders and tools take the weights, the first layer and `fc` apart.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.features = 8 * width
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage in range(4):
            outputs = width << stage
            blocks = [Block(inputs, outputs, 2 if stage else 1), Block(outputs, outputs, 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, 8 width]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


def projector(features: int, hidden: int, dim: int) -> nn.Sequential:
    """The two-layer head of SimCLR: features [N, features] to projections [N, dim]."""
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, dim),
    )

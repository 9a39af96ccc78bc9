"""GAN: a generator makes images that a discriminator shall not tell from real ones.

Radford et al., "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", 2016 (DCGAN).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fastssl import masking
from fastssl.train import backbones
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.dcgan import Decoder, Discriminator, initialise
from fastssl.train.method import Method
from fastssl.train.pictures import grid
from fastssl.train.views import MEAN, STD, to_float

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows and columns of the picture of samples.
SHOWN = (4, 10)


@dataclass(kw_only=True)
class GANConfig(Config):
    """GAN's own keywords.

    Noise of 100 numbers, Adam's betas and no weight decay are the paper's. Its rate of 2e-4,
    batches of 128 and widths of 64 and more are for runs far longer; rate, batch, epochs and widths
    here were chosen on the digits. At a rate of 1e-3, which the paper finds too high, all images
    that are made may become one.
    """

    WIDTHS: ClassVar[dict[str, int]] = {"dcgan": 16} | Config.WIDTHS

    backbone: str = option(
        "dcgan",
        "Discriminator without its last layer.",
        choices=("dcgan", "small", "resnet18", "resnet50", "timm:NAME", "torchvision:NAME"),
    )
    noise_size: int = option(100, "Numbers from which an image is made.", least=2)
    generator_width: int = option(16, "Channels of the generator's last map.", least=1)
    epochs: int = option(30, "Passes over the training images.", least=1)
    batch_size: int = option(32, "Images per step, over all processes.", least=2)
    lr: float = option(5e-4, "Peak learning rate of Adam.", above=0)
    weight_decay: float = option(0.0, "Weight decay; none on biases and norms.", least=0)


class GAN(Method):
    """DCGAN, both players moved at once by one optimizer; the discriminator's features are kept.

    The discriminator's loss leaves the generator alone, since it is of detached images, and the
    generator's, -log D(G(z)) (Goodfellow et al. 2014), goes through a discriminator of detached
    parameters, so that the gradient of their sum is each player's own; the paper moves them in
    turn. Real and generated images are batches of their own to batch norm, whose running
    statistics are those of real images.

    Noise is a random permutation of evenly spaced numbers in (-1, 1): each is uniform there, as
    in the paper, and an image's are a function of the seed, the step and its id.
    """

    name = "gan"
    Config = GANConfig
    betas = (0.5, 0.999)

    def __init__(self, config: GANConfig, data: Data):
        super().__init__(config, data)
        _, channels, *sides = data.train.inputs.shape
        if config.backbone == "dcgan":
            self.backbone = Discriminator(channels, tuple(sides), config.width).apply(initialise)
        else:
            self.backbone = backbones.encoder(config, data)
        self.verdict = nn.Linear(self.backbone.features, 1).apply(initialise)
        self.generator = Decoder(config.noise_size, channels, tuple(sides), config.generator_width)
        self.generator.apply(initialise)

    def noise(self, sample_ids: Tensor, step: int | Tensor) -> Tensor:
        """Noise for images of these ids, float32 [N, noise_size] in (-1, 1)."""
        size = self.config.noise_size
        drawn = {"seed": self.config.seed, "step": step, "sample_ids": sample_ids}
        order = masking.random_masks(len(sample_ids), size, 0.0, **drawn).ids_shuffle
        return (2 * order + 1) / size - 1

    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> list[Tensor]:
        """The images as they are, float32 [N, C, H, W], and noise for as many."""
        return [to_float(images), self.noise(sample_ids, step)]

    def generate(self, noise: Tensor) -> Tensor:
        """Images [N, C, H, W], scaled as by `to_float`."""
        return self.generator(noise).tanh() * ((1 - MEAN) / STD)

    def forward(self, real: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The sum of both players' losses, and each of them."""
        fake = self.generate(noise)
        logits = (
            self.verdict(self.backbone(real)),
            self.judge(fake.detach()),
            self.judge(fake, detached=True),
        )
        # Half precision, if any, ends here.
        of_real, of_fake, of_player = (of.to(real.dtype) for of in logits)
        d_loss = F.softplus(-of_real).mean() + F.softplus(of_fake).mean()
        g_loss = F.softplus(-of_player).mean()
        return {"loss": d_loss + g_loss, "d_loss": d_loss, "g_loss": g_loss}

    def judge(self, fake: Tensor, detached: bool = False) -> Tensor:
        """Logits [N, 1] of generated images being real; leaves batch norm's statistics alone.

        Args:
            fake: [N, C, H, W].
            detached: whether the discriminator's parameters are to get no gradient.
        """
        trunk = {name: buffer.clone() for name, buffer in self.backbone.named_buffers()}
        head = {}
        if detached:
            trunk |= {name: weight.detach() for name, weight in self.backbone.named_parameters()}
            head = {name: weight.detach() for name, weight in self.verdict.named_parameters()}
        features = functional_call(self.backbone, trunk, fake)
        return functional_call(self.verdict, head, features)

    def pictures(self, data: Data, device: torch.device) -> "dict[str, Figure]":
        """Images from the same noise whenever they are drawn."""
        noise = self.noise(torch.arange(SHOWN[0] * SHOWN[1], device=device), 0)
        samples = (self.generate(noise) * STD + MEAN).unflatten(0, SHOWN)
        rows = {str(number + 1): images for number, images in enumerate(samples)}
        return {"samples": grid(rows, "images that the generator makes")}

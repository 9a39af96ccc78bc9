"""Autoencoder: an image comes back from its features, even if the encoder saw it damaged.

Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", 2008.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl import masking
from fastssl.train import backbones
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.dcgan import Decoder
from fastssl.train.method import Method
from fastssl.train.pictures import COLUMNS, grid
from fastssl.train.views import MEAN, STD, recipe_for, same_size_views, to_float

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(kw_only=True)
class AutoencoderConfig(Config):
    """The autoencoder's own keywords.

    The paper's shares of destroyed pixels are 0, 0.1, 0.25 and 0.4. The other defaults were chosen
    on the digits.
    """

    noise: float = option(
        0.0, "Share of pixels that are black for the encoder alone; 0 for none.", least=0, below=1
    )
    decoder_width: int = option(16, "Channels of the decoder's last map.", least=1)
    epochs: int = option(40, "Passes over the training images.", least=1)
    batch_size: int = option(64, "Images per step, over all processes.", least=2)


class Autoencoder(Method):
    """Features, as narrow as the encoder makes them, and a convolutional decoder.

    Noise is the paper's: of each image a fixed number of pixels, drawn anew in each step, is
    black, while the whole image shall come back. The loss is the mean squared error of pixels
    scaled as by `to_float`, for the paper's dense layers a network of today.
    """

    name = "autoencoder"
    Config = AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, data: Data):
        super().__init__(config, data)
        _, channels, *sides = data.train.inputs.shape
        self.backbone = backbones.encoder(config, data)
        self.decoder = Decoder(self.backbone.features, channels, tuple(sides), config.decoder_width)
        self.augment = same_size_views(data, [recipe_for(data)], config)

    def damaged(self, clean: Tensor, sample_ids: Tensor, step: int | Tensor) -> Tensor:
        """Images [N, C, H, W], scaled as by `to_float`, with a share of their pixels black."""
        if self.config.noise == 0:
            return clean
        sides = tuple(clean.shape[2:])
        drawn = {"seed": self.config.seed, "step": step, "sample_ids": sample_ids}
        plan = masking.random_masks(len(clean), sides, self.config.noise, **drawn)
        return clean.masked_fill(plan.mask.view(-1, 1, *sides), -MEAN / STD)

    def views(self, images: Tensor, sample_ids: Tensor, step: int | Tensor) -> list[Tensor]:
        """What the encoder sees of a random view, and the view, float32 [N, C, H, W] each."""
        (clean,) = self.augment(images, sample_ids=sample_ids, step=step)
        return [self.damaged(clean, sample_ids, step), clean]

    def forward(self, seen: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """The mean squared error, and the share of the pixels' variance that came back."""
        loss = F.mse_loss(self.decoder(self.backbone(seen)).to(clean.dtype), clean)
        return {"loss": loss, "explained": 1 - loss.detach() / clean.var(correction=0)}

    def pictures(self, data: Data, device: torch.device) -> "dict[str, Figure]":
        """Test images, what the encoder sees of them, and what comes back."""
        clean = to_float(data.test.inputs[:COLUMNS].to(device))
        seen = self.damaged(clean, torch.arange(len(clean), device=device), 0)
        rows = {"input": clean, "noisy": seen}
        if self.config.noise == 0:
            del rows["noisy"]
        rows["reconstruction"] = self.decoder(self.backbone(seen))
        rows = {name: images * STD + MEAN for name, images in rows.items()}
        title = f"test images from {self.backbone.features} features each"
        return {"reconstructions": grid(rows, title)}

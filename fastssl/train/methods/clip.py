"""CLIP: an image and its caption agree, an image and another's caption differ.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; with
the loss of Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, if asked.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl import clip_loss, siglip_loss
from fastssl.augment import Recipe
from fastssl.train import backbones, vit
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.method import Method, Task
from fastssl.train.processes import everyone
from fastssl.train.text_encoder import TextEncoder
from fastssl.train.views import same_size_views, to_float

#: Radford et al. 2021, section 2.3: the only augmentation is a crop, here a mild one.
CROP = Recipe(32, scale=(0.8, 1.0), flip=0.0)

#: Of what similarities are multiplied by: first and largest (Radford et al. 2021, section 2.5).
SCALE, LARGEST_SCALE = 1 / 0.07, 100.0

#: Those of SigLIP at first (Zhai et al. 2023, section 3.2).
SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0

#: Test images among whose captions each image has to find its own.
SHOWN = 100


@dataclass(kw_only=True)
class CLIPConfig(Config):
    """CLIP's own keywords and defaults.

    First and largest scale are the paper's. Its sizes, rate, weight decay and batches are for 400
    million pairs; these do well on the digits in a minute of a CPU. For the sigmoid of pairs, scale
    and bias begin as in its own paper.
    """

    data: str = option(
        "digits-captions", "What to train on.", choices=("digits-captions", "captions:CSV")
    )
    epochs: int = option(20, "Passes over the training images.", least=1)
    loss: str = option(
        "clip", "A softmax over the batch, or a sigmoid for each pair.", choices=("clip", "siglip")
    )
    dim: int = option(128, "Size of the projections.", least=1)
    text_width: int = option(64, "Size of the text encoder's tokens.", least=4)
    text_depth: int = option(2, "Blocks of the text encoder.", least=1)
    text_heads: int = option(2, "Heads of each.", least=1)


class CLIP(Method):
    """An image and a text encoder with the fused losses; the image encoder is the backbone.

    With several processes images are compared with the captions of all.
    """

    name = "clip"
    Config = CLIPConfig
    wants = "captions"

    def __init__(self, config: CLIPConfig, data: Data):
        super().__init__(config, data)
        width, heads = config.text_width, config.text_heads
        vit.check_heads("text_width", width, heads)
        captions = data.train.captions
        self.backbone = backbones.encoder(config, data)
        self.text = TextEncoder(
            len(data.vocabulary),
            captions.shape[1],
            width=width,
            depth=config.text_depth,
            heads=heads,
        )
        self.image_projection = nn.Linear(self.backbone.features, config.dim, bias=False)
        self.text_projection = nn.Linear(width, config.dim, bias=False)
        sigmoid = config.loss == "siglip"
        self.log_scale = nn.Parameter(torch.tensor(math.log(SIGMOID_SCALE if sigmoid else SCALE)))
        self.shift = nn.Parameter(torch.tensor(SIGMOID_BIAS)) if sigmoid else None
        # Of all training images, by sample id; not part of what is saved.
        self.register_buffer("captions", captions, persistent=False)
        self.augment = same_size_views(data, [CROP], config)

    def views(
        self, images: Tensor, sample_ids: Tensor, step: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """A crop of each image, float32 [N, C, H, W], and its caption, int64 [N, L]."""
        (view,) = self.augment(images, sample_ids=sample_ids, step=step)
        return view, self.captions[sample_ids]

    def embed_images(self, images: Tensor) -> Tensor:
        """Projections of length 1, [N, dim], of images as `to_float` makes them."""
        return F.normalize(self.image_projection(self.backbone(images)), dim=1)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Projections of length 1, [N, dim], of token ids [N, L]."""
        return F.normalize(self.text_projection(self.text(ids)), dim=1)

    def forward(self, images: Tensor, captions: Tensor) -> dict[str, Tensor]:
        """The loss, what similarities are multiplied by, and the mean cosine of pairs."""
        image, text = self.embed_images(images), self.embed_texts(captions)
        scale = self.log_scale.exp()
        if self.shift is None:
            loss = clip_loss(image, text, scale, process_group=everyone())
        else:
            loss = siglip_loss(image, text, scale, self.shift, process_group=everyone())
        agreement = (image.detach() * text.detach()).sum(1).mean()
        return {"loss": loss, "scale": scale.detach(), "agreement": agreement}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Keeps the scale from running away."""
        self.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    def task(self, data: Data, device: torch.device) -> Task:
        """With classes, those of test images, without a label; otherwise which caption is whose.

        A class is the mean of the projections of what training captions say of it (Radford et al.
        2021, section 3.1.4).
        """
        if data.classes:
            prompts, of = self._prompts(data.train, device)
            images = self._embed(data.test.inputs, device)
            found = of[(images @ prompts.T).argmax(1)]
            accuracy = (found == data.test.labels.to(device)).float().mean().item()
            return Task("which class, by its captions", accuracy, 1 / len(data.classes))
        count = min(SHOWN, len(data.test))
        captions = data.test.captions[:count].to(device)
        images = self._embed(data.test.inputs[:count], device)
        found = (images @ self.embed_texts(captions).T).argmax(1)
        # Captions that say the same are as good as each other.
        same = (captions[:, None] == captions).all(2)
        accuracy = same.gather(1, found[:, None]).float().mean().item()
        return Task(f"which of {count} captions", accuracy, same.float().mean().item())

    def _prompts(self, train, device: torch.device) -> tuple[Tensor, Tensor]:
        """Projections of the classes that have captions, and these classes, int64."""
        classes = train.labels[train.labels >= 0].unique()
        means = []
        for kind in classes:
            prompts = train.captions[train.labels == kind].unique(dim=0).to(device)
            means.append(self.embed_texts(prompts).mean(0))
        return F.normalize(torch.stack(means), dim=1), classes.to(device)

    def _embed(self, images: Tensor, device: torch.device) -> Tensor:
        size = self.config.batch_size
        parts = [images[i : i + size].to(device) for i in range(0, len(images), size)]
        return torch.cat([self.embed_images(to_float(part)) for part in parts])

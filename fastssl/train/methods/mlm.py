"""MLM: some tokens of a text are hidden, the encoder predicts them from the others.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
2019; without its second task, and with new masks in each step, as by Liu et al., "RoBERTa: A
Robustly Optimized BERT Pretraining Approach", 2019.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.masking import mask_tokens
from fastssl.train import vit
from fastssl.train.config import Config, option
from fastssl.train.data import Data
from fastssl.train.data.text import MASK, SPECIAL
from fastssl.train.errors import UsageError
from fastssl.train.method import Method, Task
from fastssl.train.processes import mean_over
from fastssl.train.text_encoder import SIZES, TextEncoder


@dataclass(kw_only=True)
class MLMConfig(Config):
    """MLM's own keywords and defaults.

    Share of tokens to predict, and what becomes of them, are BERT's, weight decay and betas are
    RoBERTa's. The rest is what does well on the Python documentation in two minutes of a CPU; for
    encoders larger than text-tiny lower the rate, BERT's is 1e-4.
    """

    WIDTHS: ClassVar[dict[str, int]] = {name: size.width for name, size in SIZES.items()}

    data: str = option("pydoc", "What to train on.", choices=("pydoc", "text:PATH"))
    backbone: str = option("text-tiny", "Encoder.", choices=tuple(SIZES))
    width: int | None = option(None, "Size of the tokens, by default the encoder's own.", least=1)
    epochs: int = option(20, "Passes over the training texts.", least=1)
    batch_size: int = option(16, "Texts per step, over all processes.", least=2)
    lr: float = option(2e-3, "Peak learning rate of AdamW.", above=0)
    weight_decay: float = option(0.01, "Weight decay of AdamW; none on biases and norms.", least=0)
    mask_ratio: float = option(0.15, "Share of tokens to predict.", above=0, below=1)
    mask_share: float = option(0.8, "Of those, the share behind a mask token.", least=0)
    random_share: float = option(0.1, "Of those, the share behind a random token.", least=0)

    def __post_init__(self):
        super().__post_init__()
        if self.mask_share + self.random_share > 1:
            raise UsageError(
                f"random_share: got {self.random_share}, must be at most 1 - mask_share "
                f"({self.mask_share})"
            )


class MLM(Method):
    """A masked language model whose output matrix is that of the embedding."""

    name = "mlm"
    Config = MLMConfig
    wants = "texts"
    #: Liu et al. 2019, section 3.1.
    betas = (0.9, 0.98)

    def __init__(self, config: MLMConfig, data: Data):
        super().__init__(config, data)
        _, depth, heads = SIZES[config.backbone]
        length = data.train.inputs.shape[1]
        self.pieces = len(data.vocabulary)
        self.backbone = TextEncoder(
            self.pieces, length, width=config.width, depth=depth, heads=heads
        )
        width = self.backbone.features
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-6))
        self.head.apply(vit.initialise)
        self.bias = nn.Parameter(torch.zeros(self.pieces))

    def views(
        self, images: Tensor, sample_ids: Tensor, step: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """The ids to read and those to predict, -100 where there is none; each [N, L]."""
        return mask_tokens(
            images,
            images < len(SPECIAL),
            MASK,
            self.pieces,
            self.config.mask_ratio,
            self.config.mask_share,
            self.config.random_share,
            seed=self.config.seed,
            step=step,
            sample_ids=sample_ids,
        )

    def predict(self, ids: Tensor, places: Tensor) -> Tensor:
        """Logits [M, pieces] of the tokens at places, int64 [M], of ids [N, L] in a row."""
        tokens = self.backbone.encode(ids).flatten(0, 1)[places]
        return F.linear(self.head(tokens), self.backbone.embed.weight, self.bias)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross entropy and accuracy, means over the tokens to predict of all processes."""
        labels = labels.flatten()
        # As many places for any mask, so that nothing waits for a GPU to count them: those that are
        # expected and five deviations. The last of a batch that has more still are left out.
        expected = self.config.mask_ratio * len(labels)
        size = min(len(labels), math.ceil(expected + 5 * math.sqrt(expected)))
        places = torch.nonzero_static(labels != -100, size=size, fill_value=-1).squeeze(1)
        wanted = labels[places].masked_fill(places < 0, -100)
        count = (wanted != -100).sum()
        logits = self.predict(ids, places)
        shared = mean_over(count.float()).clamp(min=1)
        loss = F.cross_entropy(logits, wanted, reduction="sum") / shared
        accuracy = (logits.argmax(1) == wanted).sum() / shared
        return {"loss": loss, "accuracy": accuracy}

    def task(self, data: Data, device: torch.device) -> Task:
        """The hidden tokens of test texts; chance is to guess the most frequent of training."""
        frequent = data.train.inputs[data.train.inputs >= len(SPECIAL)].mode().values.to(device)
        right = guessed = total = 0
        for start in range(0, len(data.test), self.config.batch_size):
            texts = data.test.inputs[start : start + self.config.batch_size].to(device)
            sample_ids = torch.arange(start, start + len(texts), device=device)
            ids, labels = self.views(texts, sample_ids, 0)
            labels = labels.flatten()
            places = (labels != -100).nonzero().squeeze(1)
            right += (self.predict(ids, places).argmax(1) == labels[places]).sum().item()
            guessed += (labels == frequent).sum().item()
            total += len(places)
        return Task("which token", right / max(1, total), guessed / max(1, total))

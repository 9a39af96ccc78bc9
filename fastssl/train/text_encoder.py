"""A transformer that reads token ids, for texts and captions.

Vaswani et al., "Attention Is All You Need", 2017, normalised before each part, not after it, as in
CLIP. Features are the mean over tokens, which needs no training of its own, unlike [CLS].
"""

import math

import torch
from torch import Tensor, nn

from fastssl.train import vit
from fastssl.train.data.text import PAD
from fastssl.train.vit import Size

#: Those of Turc et al., "Well-Read Students Learn Better", 2019, and Devlin et al. 2019.
SIZES = {
    "text-tiny": Size(128, 2, 2),
    "text-mini": Size(256, 4, 4),
    "text-small": Size(512, 4, 8),
    "text-medium": Size(512, 8, 8),
    "text-base": Size(768, 12, 12),
}


class TextEncoder(nn.Module):
    """An encoder of token ids [N, L] into features [N, width].

    Args:
        pieces: word pieces of the vocabulary.
        length: tokens of a text, at most.
        width: size of the tokens.
        depth: number of blocks.
        heads: of each block.

    Attributes:
        features: the width.

    Raises:
        UsageError: the heads do not divide the width.
    """

    def __init__(self, pieces: int, length: int, *, width: int, depth: int, heads: int):
        super().__init__()
        vit.check_heads("width", width, heads)
        self.features = width
        self.embed = nn.Embedding(pieces, width)
        self.register_buffer("pos_embed", positions(length, width))
        self.blocks = vit.blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(vit.initialise)
        nn.init.normal_(self.embed.weight, std=width**-0.5)

    def encode(self, ids: Tensor) -> Tensor:
        """Tokens [N, L, width] of ids, int64 [N, L]; those of [PAD] mean nothing."""
        padding = ids == PAD
        # Section 3.4: rows of length 1, as an output matrix that is shared wants them, are brought
        # to the scale of positions and blocks, without which little is learned from neighbours.
        tokens = math.sqrt(self.features) * self.embed(ids) + self.pos_embed[: ids.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, padding)
        return self.norm(tokens)

    def forward(self, ids: Tensor) -> Tensor:
        """Features: the mean over all tokens but [PAD]."""
        seen = (ids != PAD).unsqueeze(-1)
        return (self.encode(ids) * seen).sum(1) / seen.sum(1)


def positions(length: int, width: int) -> Tensor:
    """Sines and cosines of places, [length, width]: section 3.5, halves instead of turns."""
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).float()

"""Vision transformers in plain PyTorch: encoders that see some patches or all, and decoders.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, initialised as by He et al., "Masked
Autoencoders Are Scalable Vision Learners", 2022. There is no class token: features are the mean
over all patches, which He et al. (appendix A.1) find works as well, and which leaves nothing
untrained by a loss on patches. Parameters have the names and shapes of timm's
VisionTransformer(class_token=False, global_pool="avg", fc_norm=False, num_classes=0).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.masking import patchify
from fastssl.train.errors import UsageError


class Size(NamedTuple):
    """Size of the tokens, number of blocks, heads of each."""

    width: int
    depth: int
    heads: int


#: Tiny, small and base are those of Touvron et al. 2021 and Dosovitskiy et al. 2021; the others are
#: for images of 32 x 32 on a CPU.
SIZES = {
    "vit-micro": Size(96, 4, 4),
    "vit-mini": Size(192, 6, 3),
    "vit-tiny": Size(192, 12, 3),
    "vit-small": Size(384, 12, 6),
    "vit-base": Size(768, 12, 12),
}


class VisionTransformer(nn.Module):
    """An encoder of images [N, channels, H, W] into features [N, width].

    Args:
        channels: of the images.
        image: (H, W).
        patch: side of a patch.
        size: a key of `SIZES`.
        width: size of the tokens, None for that of `size`.

    Attributes:
        features: the width.
        grid: patches along each axis; L of them.
        pos_embed: [1, L, width], fixed; see `positions`.

    Raises:
        UsageError: the patches do not tile the image, or heads do not divide the width.
    """

    def __init__(
        self, channels: int, image: tuple[int, int], patch: int, size: str, width: int | None = None
    ):
        super().__init__()
        given, depth, heads = SIZES[size]
        width = width or given
        if any(side % patch for side in image):
            sides = " x ".join(map(str, image))
            raise UsageError(f"patch_size: got {patch}, must divide the images, {sides}")
        check_heads("width", width, heads)
        self.features, self.patch = width, patch
        self.grid = (image[0] // patch, image[1] // patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, patch)})
        self.register_buffer("pos_embed", positions(self.grid, width))
        self.blocks = blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(initialise)

    def embed(self, patches: Tensor) -> Tensor:
        """Patches [..., P] in the order "cpq", that of the convolution's weights, as tokens."""
        proj = self.patch_embed["proj"]
        return F.linear(patches, proj.weight.flatten(1), proj.bias)

    def encode(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """Tokens [N, K, width], positions added, any of them in any order, through all blocks.

        Those where `padding`, bool [N, K], is True are not looked at.
        """
        for block in self.blocks:
            tokens = block(tokens, padding)
        return self.norm(tokens)

    def forward(self, images: Tensor) -> Tensor:
        """Features of whole images: the mean over all tokens."""
        patches = patchify(images, self.patch, order="cpq")
        return self.encode(self.embed(patches) + self.pos_embed).mean(1)


class Block(nn.Module):
    """Attention, then an MLP of four times the width, each normalised before and added after."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """[N, K, width] to the same; tokens where `padding` [N, K] is True are not looked at."""
        x = x + self.attn(self.norm1(x), padding)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """[N, K, width] to the same."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if padding is None else ~padding[:, None, None]
        return self.proj(F.scaled_dot_product_attention(*qkv, seen).transpose(1, 2).flatten(2))


def blocks(width: int, depth: int, heads: int) -> nn.Sequential:
    """Transformer blocks in a row."""
    return nn.Sequential(*(Block(width, heads) for _ in range(depth)))


def positions(grid: tuple[int, int], width: int) -> Tensor:
    """Sine-cosine codes of the places of a grid, [1, rows * columns, width], raster order.

    A quarter of the width each for sin(c w_k), cos(c w_k), sin(r w_k), cos(r w_k), for column c,
    row r and w_k = 10000^(-k / (width / 4)): the table of He et al. 2022.
    """
    rates = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (torch.arange(n, dtype=torch.float64)[:, None] * rates for n in grid)
    rows = rows.repeat_interleave(grid[1], 0)
    columns = columns.repeat(grid[0], 1)
    return torch.cat([columns.sin(), columns.cos(), rows.sin(), rows.cos()], 1).float()[None]


def initialise(module: nn.Module) -> None:
    """He et al. 2022: Xavier uniform for matrices, that of the patches included; no biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        nn.init.zeros_(module.bias)


def check_heads(name: str, width: int, heads: int) -> None:
    """Raises UsageError where the tokens' width, an argument of this name, does not fit heads."""
    if width % heads or width % 4:
        raise UsageError(f"{name}: got {width}, must be a multiple of 4 and of the {heads} heads")

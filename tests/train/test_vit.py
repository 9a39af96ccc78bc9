import math

import pytest
import torch

from fastssl.train import UsageError
from fastssl.train.vit import SIZES, Attention, Block, VisionTransformer, positions


def encoder(**keywords):
    torch.manual_seed(0)
    options = {"channels": 3, "image": (8, 12), "patch": 4, "size": "vit-micro", "width": 16}
    return VisionTransformer(**options | keywords).eval()


def test_positions_are_the_formula():
    table = positions((3, 5), 16)
    assert table.shape == (1, 15, 16) and table.dtype == torch.float32
    for row in range(3):
        for column in range(5):
            rates = [10000 ** (-k / 4) for k in range(4)]
            expected = [f(at * w) for at in (column, row) for f in (math.sin, math.cos)
                        for w in rates]  # fmt: skip
            torch.testing.assert_close(table[0, row * 5 + column], torch.tensor(expected))


def test_patches_are_embedded_as_by_the_convolution():
    model, images = encoder(), torch.randn(2, 3, 8, 12)
    proj = model.patch_embed["proj"]
    tokens = proj(images).flatten(2).transpose(1, 2) + model.pos_embed
    torch.testing.assert_close(model(images), model.encode(tokens).mean(1))
    assert model(images).shape == (2, model.features) and model.grid == (2, 3)


def test_tokens_are_a_set():
    """Order matters only through positions: what lets an encoder see any part of an image."""
    model, tokens = encoder(), torch.randn(2, 6, 16)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    torch.testing.assert_close(model.encode(tokens[:, order]), model.encode(tokens)[:, order])


def test_attention_is_the_formula():
    torch.manual_seed(1)
    attention, x = Attention(8, 2), torch.randn(3, 5, 8)
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    weights = torch.softmax(q @ k.transpose(-2, -1) / 2, -1)
    expected = attention.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected)


def test_filling_is_not_looked_at():
    torch.manual_seed(2)
    block, x = Block(8, 2), torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    made = block(x, padding)
    torch.testing.assert_close(made[0, :3], block(x[:1, :3])[0])
    torch.testing.assert_close(made[1], block(x[1:])[0])
    assert not torch.allclose(made[0, :3], block(x)[0, :3])


def test_parameters_have_the_names_and_shapes_of_timm():
    shapes = {
        k: tuple(v.shape) for k, v in encoder(size="vit-tiny", width=None).state_dict().items()
    }
    width, depth, _ = SIZES["vit-tiny"]
    assert shapes["patch_embed.proj.weight"] == (width, 3, 4, 4)
    assert shapes["pos_embed"] == (1, 6, width)
    assert shapes[f"blocks.{depth - 1}.attn.qkv.weight"] == (3 * width, width)
    assert shapes["blocks.0.mlp.fc1.bias"] == (4 * width,) and shapes["norm.weight"] == (width,)
    per_block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert len(shapes) == 2 * len(per_block) * depth + 5


def test_initialisation():
    weight = encoder(width=64).blocks[0].mlp["fc1"].weight
    assert weight.abs().max() <= math.sqrt(6 / (64 + 256))
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 256)), rel=0.03)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"patch": 5}, "patch_size: got 5, must divide the images, 8 x 12"),
        ({"width": 18}, "width: got 18, must be a multiple of 4 and of the 4 heads"),
    ],
)
def test_errors_name_the_argument(keywords, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        encoder(**keywords)

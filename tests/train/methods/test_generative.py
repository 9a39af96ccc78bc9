"""Autoencoder and GAN: what comes back, and which player learns from which loss."""

import pytest
import torch
from torch.nn import functional as F

from fastssl.train import UsageError
from fastssl.train.data import Data, Split
from fastssl.train.dcgan import Decoder
from fastssl.train.methods import find
from fastssl.train.views import to_float

IDS = torch.tensor([7, 0, 1 << 40, 3])


def build(name, channels=1, sides=(32, 32), **keywords):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    shape = (4, channels, *sides)
    images = torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)
    split = Split(images, torch.full((4,), -1))
    method = find(name)
    return method(method.Config(**keywords), Data("noise", (), split, split)), images


def autoencoder(**keywords):
    return build("autoencoder", width=4, decoder_width=4, **keywords)


def gan(**keywords):
    return build("gan", width=4, generator_width=4, noise_size=8, **keywords)


def test_the_target_of_a_denoising_autoencoder_is_the_clean_image():
    model, images = autoencoder(noise=0.25)
    plain, _ = autoencoder()
    seen, clean = model.views(images, IDS, 3)
    (view,) = plain.augment(images, sample_ids=IDS, step=3)
    assert torch.equal(clean, view)
    assert all(torch.equal(v, view) for v in plain.views(images, IDS, 3))
    changed = seen != clean
    assert (seen[changed] == to_float(torch.zeros(1, dtype=torch.uint8))).all()
    # Of 1,024 pixels a quarter; some of a view may be black already.
    assert (changed.sum((1, 2, 3)) <= 256).all() and changed.sum() > 900
    logs = model(seen, clean)
    torch.testing.assert_close(
        logs["loss"], (model.decoder(model.backbone(seen)) - clean).square().mean()
    )
    explained = 1 - logs["loss"] / (clean - clean.mean()).square().mean()
    torch.testing.assert_close(logs["explained"], explained)


def test_noise_is_a_function_of_seed_step_and_id():
    for model, images in (autoencoder(noise=0.5), gan()):
        whole = model.views(images, IDS, 3)
        for part, of in zip(model.views(images[2:], IDS[2:], 3), whole, strict=True):
            torch.testing.assert_close(part, of[2:], rtol=1e-6, atol=1e-6)
        assert not torch.equal(model.views(images, IDS, 4)[-1], whole[-1]) or model.name != "gan"
        assert not torch.equal(model.views(images, IDS, 4)[0], whole[0]) or model.name == "gan"


def test_noise_of_a_gan_is_uniform_between_minus_one_and_one():
    model, _ = gan()
    noise = model.noise(torch.arange(2000), 0)
    assert noise.dtype == torch.float32
    torch.testing.assert_close(noise[0].sort().values, torch.arange(-0.875, 1, 0.25))
    assert noise.mean(0).abs().max() < 0.06
    torch.testing.assert_close(noise.var(0), torch.full((8,), 0.328), rtol=0, atol=0.03)


@pytest.mark.parametrize("channels", [1, 3])
def test_generated_images_have_the_scale_and_size_of_real_ones(channels):
    model, images = gan(channels=channels, sides=(28, 20))
    real, noise = model.views(images, IDS, 0)
    fake = model.generate(noise)
    assert fake.shape == real.shape == images.shape
    assert fake.abs().max() <= 2 and to_float(
        torch.tensor([0, 255], dtype=torch.uint8)
    ).tolist() == [-2, 2]
    assert model.backbone(real).shape == (4, model.backbone.features)


@pytest.mark.parametrize("backbone", ["dcgan", "small"])
def test_each_player_learns_from_its_own_loss(backbone):
    """The one backward pass against two, each through copies of which the other is constant."""
    (model, images), (other, _) = gan(backbone=backbone), gan(backbone=backbone)
    model, other = model.double(), other.double()
    real, noise = (view.double() for view in model.views(images, IDS, 0))
    logs = model(real, noise)
    logs["loss"].backward()

    def verdict(images):
        return other.verdict(other.backbone(images))

    with torch.no_grad():
        fake = other.generate(noise)
    ones, zeros = torch.ones(4, 1).double(), torch.zeros(4, 1).double()
    loss = F.binary_cross_entropy_with_logits
    d_loss = loss(verdict(real), ones) + loss(verdict(fake), zeros)
    players = [*other.backbone.parameters(), *other.verdict.parameters()]
    wanted = torch.autograd.grad(d_loss, players)
    g_loss = loss(verdict(other.generate(noise)), ones)
    wanted += torch.autograd.grad(g_loss, list(other.generator.parameters()))
    own = [*model.backbone.parameters(), *model.verdict.parameters(), *model.generator.parameters()]
    assert len(own) == len(list(model.parameters()))
    torch.testing.assert_close([p.grad for p in own], [*wanted])
    torch.testing.assert_close(logs["d_loss"], d_loss)
    torch.testing.assert_close(logs["g_loss"], g_loss)


def test_the_generators_loss_leaves_the_discriminator_alone():
    model, images = gan()
    real, noise = model.views(images, IDS, 0)
    model(real, noise)["g_loss"].backward()
    assert all(p.grad is None for p in (*model.backbone.parameters(), *model.verdict.parameters()))
    assert all(p.grad is not None for p in model.generator.parameters())
    model.zero_grad()
    model(real, noise)["d_loss"].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert all(p.grad is not None for p in model.backbone.parameters())


def test_statistics_of_the_discriminator_are_those_of_real_images():
    (model, images), (other, _) = gan(), gan()
    real, noise = model.views(images, IDS, 0)
    model(real, noise)
    other.backbone(real)
    for name, buffer in other.backbone.named_buffers():
        assert torch.equal(model.backbone.get_buffer(name), buffer), name


@pytest.mark.parametrize("sides", [(32, 32), (28, 20), (8, 8), (5, 7)])
def test_a_decoder_makes_images_of_any_size(sides):
    assert Decoder(6, 3, sides, 4)(torch.zeros(2, 6)).shape == (2, 3, *sides)


def test_pictures():
    device = torch.device("cpu")
    for name, (model, images) in (("reconstructions", autoencoder(noise=0.1)), ("samples", gan())):
        split = Split(images, torch.full((4,), -1))
        with torch.no_grad():
            figures = model.eval().pictures(Data("noise", (), split, split), device)
        assert [*figures] == [name]


def test_errors():
    with pytest.raises(UsageError, match=r"^noise: got 1.0, must be below 1"):
        autoencoder(noise=1.0)
    with pytest.raises(UsageError, match="^backbone: got 'vit-tiny', must be one of dcgan, small"):
        gan(backbone="vit-tiny")

"""A patched ViTMAE against the same model as transformers has it."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from compat_cases import library, takes_the_same

from fastssl.compat.transformers import patch_vit_mae, unpatch_vit_mae

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


@pytest.fixture
def theirs():
    modelling = library("transformers.models.vit_mae.modeling_vit_mae")
    config = library("transformers").ViTMAEConfig
    classes = (modelling.ViTMAEForPreTraining, modelling.ViTMAEModel)
    return SimpleNamespace(modelling=modelling, config=config, model=classes[0], encoder=classes[1])


@pytest.fixture
def pair(theirs):
    """A model, and its copy patched."""

    def make(dtype=torch.float32, **config):
        model = theirs.model(theirs.config(**SIZES | config)).to(dtype)
        torch.nn.init.normal_(model.decoder.mask_token)
        return model, patch_vit_mae(copy.deepcopy(model))

    return make


def batch(height=32, width=32, dtype=torch.float32, channels=3):
    length = height // 8 * (width // 8)
    return torch.randn(5, channels, height, width, dtype=dtype), torch.rand(5, length)


def same(model, patched, images, noise, rtol, **keywords):
    """Outputs and the gradients of all parameters."""
    a, b = (m(images, noise=noise, **keywords) for m in (model, patched))
    assert list(a.keys()) == list(b.keys())
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.ids_restore, b.ids_restore)
    assert (a.mask.dtype, a.logits.dtype, a.loss.dtype) == (
        b.mask.dtype,
        b.logits.dtype,
        b.loss.dtype,
    )
    torch.testing.assert_close(b.logits, a.logits, rtol=rtol, atol=rtol)
    torch.testing.assert_close(b.loss, a.loss, rtol=rtol, atol=0)
    for m, output in ((model, a), (patched, b)):
        m.zero_grad()
        output.loss.backward()
    pairs = zip(model.named_parameters(), patched.named_parameters(), strict=True)
    for (name, p), (name_of_ours, q) in pairs:
        assert name == name_of_ours
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            atol = rtol * p.grad.abs().max().item() + 1e-9
            torch.testing.assert_close(q.grad, p.grad, rtol=rtol, atol=atol, msg=name)
    assert any(p.grad is not None for p in patched.parameters())
    return a, b


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.5, 0.9])
def test_outputs_and_gradients(pair, norm_pix_loss, mask_ratio):
    model, patched = pair(norm_pix_loss=norm_pix_loss, mask_ratio=mask_ratio)
    assert type(patched) is not type(model)
    same(model, patched, *batch(), rtol=1e-5)


def test_float64(pair):
    same(*pair(torch.float64, norm_pix_loss=True), *batch(dtype=torch.float64), rtol=1e-10)


def test_bfloat16(pair):
    """As close to float64 as theirs: a gradient rounds on its way through every layer."""
    model, patched = pair(torch.bfloat16, norm_pix_loss=True)
    images, noise = batch(dtype=torch.bfloat16)
    found = []
    for m, x in (
        (copy.deepcopy(model).double(), images.double()),
        (model, images),
        (patched, images),
    ):
        output = m(x, noise=noise)
        output.loss.backward()
        gradients = [p.grad.double() for p in m.parameters() if p.grad is not None]
        found.append([output.loss.detach().double(), output.logits.detach().double(), *gradients])
    for truth, theirs, ours in zip(*found, strict=True):
        allowed = 2 * (theirs - truth).norm() + torch.finfo(torch.bfloat16).eps * truth.norm()
        assert (ours - truth).norm() <= allowed


def test_autocast(pair):
    model, patched = pair(norm_pix_loss=True)
    with torch.autocast("cpu", torch.bfloat16):
        same(model, patched, *batch(), rtol=0.02)


def test_no_image_is_square_any_more(pair):
    model, patched = pair(norm_pix_loss=True)
    same(model, patched, *batch(24, 48), rtol=1e-5, interpolate_pos_encoding=True)
    images, noise = batch(24, 48)
    for m in (model, patched):
        with pytest.raises(ValueError, match="24"):
            m(images, noise=noise)


def test_other_channels(pair):
    model, patched = pair(num_channels=1)
    same(model, patched, *batch(channels=1), rtol=1e-5)
    with pytest.raises(ValueError, match="pixel_values: got 3 channels, must be 1"):
        patched.patchify(torch.randn(1, 3, 32, 32))


def test_hidden_states_attentions_and_tuples(pair):
    model, patched = pair()
    images, noise = batch()
    for m in (model, patched):
        m.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    a, b = (m(images, noise=noise, **asked) for m in (model, patched))
    assert len(a.hidden_states) == len(b.hidden_states) == 3
    assert len(a.attentions) == len(b.attentions) == 2
    torch.testing.assert_close(b.hidden_states, a.hidden_states)
    a, b = (m(images, noise=noise, return_dict=False) for m in (model, patched))
    assert type(a) is type(b) is tuple
    assert len(a) == len(b)


def test_methods_by_their_names(pair):
    model, patched = pair()
    images = batch()[0]
    patches = model.patchify(images)
    assert torch.equal(patched.patchify(images), patches)
    assert torch.equal(patched.unpatchify(patches), images)
    wide = batch(16, 40)[0]
    patches = model.patchify(wide, interpolate_pos_encoding=True)
    assert torch.equal(patched.patchify(wide, interpolate_pos_encoding=True), patches)
    assert torch.equal(patched.unpatchify(patches, (16, 40)), wide)
    with pytest.raises(ValueError, match="16 x 40"):
        patched.patchify(wide)
    for name in ("patchify", "unpatchify"):
        takes_the_same(getattr(type(patched), name), getattr(type(model), name))
    for name, part in (("random_masking", "vit.embeddings"), ("forward", "decoder")):
        mine, other = (getattr(type(m.get_submodule(part)), name) for m in (patched, model))
        takes_the_same(mine, other)
    output = patched(images)
    loss = patched.forward_loss(images, output.logits, output.mask)
    torch.testing.assert_close(loss, output.loss)


def test_without_noise_masks_follow_torchs_seed(pair):
    _, patched = pair()
    images = batch()[0]
    torch.manual_seed(1)
    first, second = patched(images), patched(images)
    torch.manual_seed(1)
    assert torch.equal(patched(images).ids_restore, first.ids_restore)
    assert not torch.equal(second.ids_restore, first.ids_restore)
    assert torch.equal(first.mask.sum(1), torch.full((5,), 12.0))


def test_encoder_alone(theirs):
    model = theirs.encoder(theirs.config(**SIZES))
    patched = patch_vit_mae(copy.deepcopy(model))
    images, noise = batch()
    a, b = (m(images, noise=noise) for m in (model, patched))
    assert type(patched.embeddings) is not type(model.embeddings)
    torch.testing.assert_close(b.last_hidden_state, a.last_hidden_state)
    assert torch.equal(a.mask, b.mask)


def test_patching_twice_and_back(pair, theirs):
    model, patched = pair()
    kinds = [type(module) for module in patched.modules()]
    assert patch_vit_mae(patched) is patched
    assert [type(module) for module in patched.modules()] == kinds
    assert unpatch_vit_mae(patched) is patched
    assert [type(m) for m in patched.modules()] == [type(m) for m in model.modules()]
    same(model, patched, *batch(), rtol=0)
    unpatch_vit_mae(patched)
    assert type(patched) is theirs.model


def test_copies_pickles_and_state(pair, theirs, tmp_path):
    model, patched = pair()
    images, noise = batch()
    wanted = patched(images, noise=noise).loss
    for again in (copy.deepcopy(patched), pickle.loads(pickle.dumps(patched))):
        assert [type(m) for m in again.modules()] == [type(m) for m in patched.modules()]
        assert torch.equal(again(images, noise=noise).loss, wanted)
        with torch.no_grad():
            again.decoder.mask_token.normal_()
        assert not torch.equal(again(images, noise=noise).loss, wanted)
    assert torch.equal(patched(images, noise=noise).loss, wanted), "a copy shares the mask token"
    assert patched.state_dict().keys() == model.state_dict().keys()
    for kind in ("__module__", "__qualname__"):
        assert getattr(type(patched), kind) == getattr(type(model), kind), "taken for custom code"
    patched.save_pretrained(tmp_path)
    loaded = theirs.model.from_pretrained(tmp_path)
    assert loaded.config.architectures == ["ViTMAEForPreTraining"]
    torch.testing.assert_close(loaded(images, noise=noise).loss, wanted)


def test_inside_another_module_and_a_subclass_of_somebody(theirs):
    class Mine(theirs.model):
        def patchify(self, pixel_values, interpolate_pos_encoding=False):
            return "mine"

    model = Mine(theirs.config(**SIZES))
    wrapped = torch.nn.Sequential(model)
    patch_vit_mae(wrapped)
    assert isinstance(model, Mine)
    assert model.patchify(None) == "mine"
    assert "random_masking" in vars(type(model.vit.embeddings))
    unpatch_vit_mae(wrapped)
    assert type(model) is Mine


def test_images_that_require_a_gradient(pair):
    model, patched = pair(norm_pix_loss=True)
    images, noise = batch()
    grads = []
    with pytest.warns(UserWarning, match="require a gradient"):
        for m in (model, patched):
            leaf = images.clone().requires_grad_()
            grads += torch.autograd.grad(m(leaf, noise=noise).loss, leaf)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


def test_a_model_that_is_none(theirs):
    with pytest.raises(TypeError, match="model: got Linear, must be or contain a ViTMAEModel"):
        patch_vit_mae(torch.nn.Linear(2, 2))

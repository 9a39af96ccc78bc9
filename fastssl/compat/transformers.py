"""Hugging Face's ViTMAE with fused masking, decoder input and loss.

    from fastssl.compat.transformers import patch_vit_mae
    model = patch_vit_mae(ViTMAEForPreTraining(config))

A module is patched by giving it a subclass of its class, with the same name: parameters, hooks and
state_dict stay as they are, and `super()` is the original.
"""

import importlib
from functools import cache

import torch
from torch import Tensor, nn

from fastssl import masking
from fastssl.compat import mae
from fastssl.ops.patch.layout import grid_of

_MODELLING = "transformers.models.vit_mae.modeling_vit_mae"


def patch_vit_mae(model: nn.Module) -> nn.Module:
    """Swaps fastssl's operators into a ViTMAE model, in place.

    `random_masking` draws and gathers in one go; `patchify` and `unpatchify` are ours; the loss is
    one pass that stores no target. In transformers 5 the decoder's input is built in one pass as
    well; transformers 4 builds it in the midst of the decoder, which stays. Outputs (loss, logits,
    mask, ids_restore) are those of the model for the same `noise`, to rounding, but for the loss of
    a batch without removed patches: 0 here, NaN there. Without `noise` masks follow
    torch.manual_seed, but are others than before. `interpolate_pos_encoding` works as before.

    Copies, pickles and replicas of a patched model are patched. Patching twice does nothing more.

    Args:
        model: a ViTMAEForPreTraining, a ViTMAEModel, or a module that contains one.

    Returns:
        `model` itself.

    Raises:
        ImportError: transformers is not installed.
        TypeError: there is no ViTMAE in `model`.
    """
    modules = _vit_mae_modules(model)
    if not modules:
        raise TypeError(f"model: got {type(model).__name__}, must be or contain a ViTMAEModel")
    for module in modules:
        module.__class__ = _patched(_original(type(module)))
    return model


def unpatch_vit_mae(model: nn.Module) -> nn.Module:
    """Undoes `patch_vit_mae`, in place; does nothing to a model that is not patched.

    Args:
        model: as `patch_vit_mae` takes it.

    Returns:
        `model` itself.
    """
    for module in model.modules():
        module.__class__ = _original(type(module))
    return model


def _vit_mae_modules(model: nn.Module) -> list[nn.Module]:
    theirs = importlib.import_module(_MODELLING)
    kinds = theirs.ViTMAEEmbeddings, theirs.ViTMAEForPreTraining
    if not hasattr(theirs.ViTMAEForPreTraining, "forward_loss"):
        kinds += (theirs.ViTMAEDecoder,)
    return [module for module in model.modules() if isinstance(module, kinds)]


def _original(cls: type) -> type:
    return cls.__dict__.get("_patches", cls)


@cache
def _patched(original: type) -> type:
    theirs = importlib.import_module(_MODELLING)
    members = {"_patches": original, "__doc__": original.__doc__}
    # transformers takes a class of another module for code of the user's, reads that module's
    # source, and writes the class's name into config.json.
    members |= {name: getattr(original, name) for name in ("__module__", "__qualname__")}
    if issubclass(original, theirs.ViTMAEEmbeddings):
        base, ours = theirs.ViTMAEEmbeddings, vars(_Embeddings)
    elif issubclass(original, theirs.ViTMAEDecoder):
        base, ours = theirs.ViTMAEDecoder, vars(_Decoder)
        members["_output"] = theirs.ViTMAEDecoderOutput
    else:
        base, ours = theirs.ViTMAEForPreTraining, vars(_PreTraining)
        if not hasattr(base, "forward_loss"):
            members["_output"] = theirs.ViTMAEForPreTrainingOutput
            ours = ours | {"forward": theirs.can_return_tuple(_forward)}
    for name, function in ours.items():
        # What somebody's subclass defines itself stays.
        overridden = getattr(original, name, None) is not getattr(base, name, None)
        if not (name.startswith("__") or overridden):
            members[name] = function
    return type(original.__name__, (_Patched, original), members)


def _blank(original: type) -> nn.Module:
    """What unpickling fills."""
    cls = _patched(original)
    return cls.__new__(cls)


class _Patched:
    def __reduce_ex__(self, protocol):
        reduced = super().__reduce_ex__(max(protocol, 2))
        return _blank, (self._patches,), *reduced[2:]


class _Embeddings:
    def random_masking(self, sequence: Tensor, noise: Tensor | None = None):
        return mae.random_masking(sequence, self.config.mask_ratio, noise)


class _Decoder:
    def forward(
        self, hidden_states: Tensor, ids_restore: Tensor, interpolate_pos_encoding: bool = False
    ):
        visible = self.decoder_embed(hidden_states)
        plan = _plan(ids_restore, visible.shape[1] - 1)
        positions = self.decoder_pos_embed
        if interpolate_pos_encoding:
            # Their method reads the number of tokens off a shape, and nothing else.
            positions = self.interpolate_pos_encoding(visible.new_empty(0, plan.length + 1, 0))
        tokens = masking.restore_tokens(visible, plan, self.mask_token, positions, prefix=1)
        for layer in self.decoder_layers:
            tokens = layer(tokens)
        return self._output(logits=self.decoder_pred(self.decoder_norm(tokens))[:, 1:])


class _PreTraining:
    def patchify(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        self._check(pixel_values, interpolate_pos_encoding)
        return masking.patchify(pixel_values, self.config.patch_size)

    def unpatchify(
        self,
        patchified_pixel_values: Tensor,
        original_image_size: tuple[int, int] | None = None,
    ) -> Tensor:
        patch, size = self.config.patch_size, original_image_size or (self.config.image_size,) * 2
        grid = tuple(n // patch for n in size)
        return masking.unpatchify(patchified_pixel_values, patch, grid)

    def forward_loss(
        self,
        pixel_values: Tensor,
        pred: Tensor,
        mask: Tensor,
        interpolate_pos_encoding: bool = False,
    ) -> Tensor:
        self._check(pixel_values, interpolate_pos_encoding)
        how = (self.config.patch_size, bool(self.config.norm_pix_loss))
        return mae.forward_loss(pixel_values, pred, mask, *how)

    def _check(self, pixel_values, interpolate_pos_encoding):
        *_, channels, height, width = pixel_values.shape
        patch = self.config.patch_size
        if not interpolate_pos_encoding and (height != width or height % patch):
            allowed = f"square and a multiple of {patch} without interpolate_pos_encoding"
            raise ValueError(f"pixel_values: got {height} x {width}, must be {allowed}")
        if channels != self.config.num_channels:
            allowed = f"{self.config.num_channels}, as the configuration has it"
            raise ValueError(f"pixel_values: got {channels} channels, must be {allowed}")


def _forward(
    self,
    pixel_values: Tensor | None = None,
    noise: Tensor | None = None,
    interpolate_pos_encoding: bool | None = None,
    attention_mask: Tensor | None = None,
    **kwargs,
):
    """Forward of transformers 5, which has no `forward_loss` to swap."""
    how = {"interpolate_pos_encoding": interpolate_pos_encoding}
    seen = self.vit(pixel_values, noise=noise, attention_mask=attention_mask, **how, **kwargs)
    logits = self.decoder(seen.last_hidden_state, seen.ids_restore, **how).logits
    self._check(pixel_values, interpolate_pos_encoding)
    patch = (self.config.patch_size,) * 2
    plan = _plan(
        seen.ids_restore, seen.last_hidden_state.shape[1] - 1, grid_of(pixel_values, patch)
    )
    return self._output(
        loss=mae.patch_loss(pixel_values, logits, plan, patch, bool(self.config.norm_pix_loss)),
        logits=logits,
        mask=seen.mask,
        ids_restore=seen.ids_restore,
        hidden_states=seen.hidden_states,
        attentions=seen.attentions,
    )


def _plan(ids_restore: Tensor, keep: int, grid: tuple[int, ...] | None = None):
    """The plan whose places these are; keeps `keep` patches of each sample."""
    length = ids_restore.shape[1]
    places = torch.arange(length, device=ids_restore.device).expand_as(ids_restore)
    ids_shuffle = torch.empty_like(ids_restore).scatter_(1, ids_restore, places)
    mask = ids_restore >= keep
    return masking.MaskPlan(ids_shuffle, ids_restore, mask, keep, grid or (length,))

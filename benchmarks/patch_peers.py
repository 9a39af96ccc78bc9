"""What masked image modelling costs elsewhere: plain PyTorch in its best forms, and libraries.

Each function makes the callables of one case, by name; a name says what it is before the colon:
"eager", "compiled" or a library. All compute what `fastssl.masking` computes, from the same noise
where there is any, so that results can be compared.
"""

import torch
import torch.nn.functional as F

from benchmarks.measure import Missing

PATCH, KEEP = 16, 49
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def patches_of(images):
    """MAE's order: rows, columns, channels."""
    n, c, h, w = images.shape
    x = images.reshape(n, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, PATCH * PATCH * c)


def normalized(target):
    mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    return (target - mean) / (var + 1e-6).sqrt()


def loss_of_all(images, pred, mask, removed):
    """As MAE and Hugging Face have it: every patch, then the mean over the removed ones."""
    target = normalized(patches_of(images))
    rows = (pred - target).square().mean(-1)
    return (rows * mask).sum() / mask.sum()


def loss_of_removed(images, pred, mask, removed):
    """The removed patches alone, chosen before anything is computed of them."""
    index = removed.unsqueeze(-1)
    target = patches_of(images)
    target = normalized(target.gather(1, index.expand(-1, -1, target.shape[-1])))
    pred = pred.gather(1, index.expand(-1, -1, pred.shape[-1]))
    return F.mse_loss(pred, target)


def loss_of_masked_only(images, pred, mask, removed):
    """For predictions of removed patches alone."""
    target = patches_of(images)
    target = target.gather(1, removed.unsqueeze(-1).expand(-1, -1, target.shape[-1]))
    return F.mse_loss(pred, normalized(target))


def mask_and_gather(x, noise):
    """MAE's random_masking, with an index that is expanded and not copied."""
    order = noise.argsort(1)
    restore = order.argsort(1)
    kept = order[:, :KEEP].unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.gather(1, kept), (restore >= KEEP).float(), restore


def mask_and_gather_published(x, noise):
    """The same with what MAE and Hugging Face write out: a copied index, a gathered mask."""
    order = noise.argsort(1)
    restore = order.argsort(1)
    kept = order[:, :KEEP].unsqueeze(-1).repeat(1, 1, x.shape[-1])
    mask = torch.ones(noise.shape, device=x.device)
    mask[:, :KEEP] = 0
    return x.gather(1, kept), mask.gather(1, restore), restore


def rows_of(index, length):
    """Indices [B, K] into samples of `length` rows as indices into all rows."""
    first = torch.arange(len(index), device=index.device).unsqueeze(1) * length
    return (index + first).flatten()


def mask_and_select(x, noise):
    """The same by rows: one sort, its inverse by a scatter, index_select."""
    n, length, width = x.shape
    order = noise.argsort(1)
    places = torch.arange(length, device=x.device).expand_as(order)
    restore = torch.empty_like(order).scatter_(1, order, places)
    rows = rows_of(order[:, :KEEP], length)
    visible = x.view(-1, width).index_select(0, rows).view(n, KEEP, width)
    return visible, (restore >= KEEP).float(), restore


def levels_to_patches(images, kept):
    """Normalise, cut, gather."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    x = (images.float() / 255 - mean) / std
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(n, -1, c * PATCH * PATCH)
    return x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def levels_to_patches_gathered_first(images, kept):
    """Cut, gather the levels, normalise what was kept."""
    n, c, h, w = images.shape
    x = images.reshape(n, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(n, -1, c, PATCH * PATCH)
    x = x.gather(1, kept[..., None, None].expand(-1, -1, c, PATCH * PATCH))
    mean, std = (torch.tensor(v).view(1, 1, 3, 1) for v in (MEAN, STD))
    return ((x.float() / 255 - mean) / std).flatten(2)


def levels_to_patches_indexed(images, kept):
    """Index the levels as patches, normalise what was kept in one operation."""
    n, c, h, w = images.shape
    x = images.view(n, c, h // PATCH, PATCH, w // PATCH, PATCH)
    sample = torch.arange(n).unsqueeze(1)
    x = x[sample, :, kept // (w // PATCH), :, kept % (w // PATCH)].view(n, -1, c, PATCH * PATCH)
    scale = (1 / (255 * torch.tensor(STD))).view(c, 1)
    shift = (-torch.tensor(MEAN) / torch.tensor(STD)).view(c, 1)
    return torch.addcmul(shift, x, scale).flatten(2)


def decoder_input_copied(visible, token, pos, restore):
    """Mask tokens with positions everywhere, visible ones copied over them by rows."""
    n, count, width = visible.shape
    length = restore.shape[1]
    places = torch.arange(length, device=restore.device).expand_as(restore)
    order = torch.empty_like(restore).scatter_(1, restore, places)[:, : count - 1]
    rows = rows_of(F.pad(order + 1, (1, 0)), length + 1)
    x = (token + pos).expand(n, -1, -1).reshape(-1, width)
    visible = visible.reshape(-1, width) + pos[0].index_select(0, rows % (length + 1))
    return x.index_copy(0, rows, visible).view(n, length + 1, width)


def decoder_input(visible, token, pos, restore):
    """MAE's: mask tokens appended, everything gathered back, the class token in front."""
    n, _, width = visible.shape
    tokens = token.expand(n, restore.shape[1] + 1 - visible.shape[1], -1)
    x = torch.cat([visible[:, 1:], tokens], 1)
    x = x.gather(1, restore.unsqueeze(-1).expand(-1, -1, width))
    return torch.cat([visible[:, :1], x], 1) + pos


def lightly_utils():
    try:
        from lightly.models import utils
    except Exception as error:  # an installation may also be broken
        raise Missing(f"lightly: {error}") from error
    return utils


def lightly_mask_and_gather(x, noise):
    """Draws for itself: the noise is not used."""
    utils = lightly_utils()
    kept, _ = utils.random_token_mask(noise.shape, 0.75, mask_class_token=True)
    return utils.get_at_index(x, kept)


def lightly_decoder_input(visible, token, pos, restore):
    """Tokens set at their places, as lightly's MAE example does it."""
    utils = lightly_utils()
    places = torch.arange(restore.shape[1]).expand_as(restore)
    kept = torch.empty_like(restore).scatter_(1, restore, places)[:, : visible.shape[1] - 1]
    x = utils.repeat_token(token, (len(visible), restore.shape[1] + 1))
    x = utils.set_at_index(x, F.pad(kept + 1, (1, 0)), visible)
    return x + pos


def lightly_block_masks(batch, side):
    """DINOv2's masks, drawn one after the other in Python."""
    lightly_utils().random_block_mask((batch, side, side))


def lightly_multiblock_masks(batch, side):
    """I-JEPA's collator with the settings of its published training."""
    try:
        from lightly.data.ijepa_collate import IJEPAMaskCollator
    except Exception as error:
        raise Missing(f"lightly: {error}") from error
    collator = IJEPAMaskCollator(
        input_size=(side * 14, side * 14),
        patch_size=14,
        enc_mask_scale=(0.85, 1.0),
        pred_mask_scale=(0.15, 0.2),
        aspect_ratio=(0.75, 1.5),
        nenc=1,
        npred=4,
        min_keep=10,
    )
    return lambda: collator([0] * batch)


def hugging_face_tokens(ids, special):
    """DataCollatorForLanguageModeling, without its tokenizer."""
    try:
        from transformers import DataCollatorForLanguageModeling
    except Exception as error:
        raise Missing(f"transformers: {error}") from error

    class Tokenizer:
        mask_token, mask_token_id = "[MASK]", 103

        def __len__(self):
            return 30522

        def convert_tokens_to_ids(self, token):
            return self.mask_token_id

    collator = DataCollatorForLanguageModeling(Tokenizer(), seed=0)
    return lambda: collator.torch_mask_tokens(ids.clone(), special)

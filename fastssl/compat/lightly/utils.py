"""Functions of `lightly.models.utils` by the same names, for tokens, masks and momentum encoders.

Functions that draw take two keywords more, `generator` and `seed`; see `fastssl.compat`. Where none
is given torch.manual_seed governs them, on every device. Index tensors are int64, bool masks are
True where a token is masked.
"""

import torch
from torch import Tensor, nn

from fastssl import masking
from fastssl.compat.lightly.random_masks import (
    random_block_mask,
    random_block_mask_image,
    random_grid_token_mask,
    random_inverse_block_mask,
    random_prefix_mask,
    random_token_mask,
)

__all__ = [
    "apply_masks",
    "expand_index_like",
    "get_at_index",
    "mask_at_index",
    "mask_bool",
    "normalize_mean_var",
    "patchify",
    "pool_masked",
    "prepend_class_token",
    "random_block_mask",
    "random_block_mask_image",
    "random_grid_token_mask",
    "random_inverse_block_mask",
    "random_prefix_mask",
    "random_token_mask",
    "repeat_interleave_batch",
    "repeat_token",
    "set_at_index",
    "unpatchify",
    "update_momentum",
]


def repeat_token(token: Tensor, size: tuple[int, int]) -> Tensor:
    """Copies of a token.

    Args:
        token: [1, 1, D].
        size: (B, S).

    Returns:
        [B, S, D], contiguous.
    """
    return token.expand(*size, -1).contiguous()


def expand_index_like(index: Tensor, tokens: Tensor) -> Tensor:
    """The index for each of the D numbers of a token: [B, K] to [B, K, D], a view.

    Args:
        index: int64 [B, K].
        tokens: [B, S, D].
    """
    return index.unsqueeze(-1).expand(*index.shape, tokens.shape[-1])


def get_at_index(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens at an index.

    Args:
        tokens: [B, S, D].
        index: int64 [B, K], in [0, S).

    Returns:
        [B, K, D].
    """
    return tokens.gather(1, expand_index_like(index, tokens))


def set_at_index(tokens: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """A copy of the tokens with those at an index replaced.

    Args:
        tokens: [B, S, D].
        index: int64 [B, K], in [0, S); of equal ones any may win.
        value: [B, K, D], or a number.

    Returns:
        [B, S, D].
    """
    return tokens.scatter(1, expand_index_like(index, tokens), value)


def mask_at_index(tokens: Tensor, index: Tensor, mask_token: Tensor) -> Tensor:
    """The tokens, with the mask token at an index.

    What was there does not matter, not even NaN, which lightly's sum would let through.

    Args:
        tokens: [B, S, D].
        index: int64 [B, K], in [0, S).
        mask_token: [1, 1, D].

    Returns:
        [B, S, D].
    """
    mask = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return mask_bool(tokens, mask.scatter_(1, index, True), mask_token)


def mask_bool(tokens: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """The tokens, with the mask token wherever the mask is not 0.

    What was there does not matter, not even NaN, which lightly's sum would let through.

    Args:
        tokens: [B, S, D].
        mask: [B, S], bool or numbers.
        mask_token: [1, 1, D].

    Returns:
        [B, S, D].
    """
    return torch.where(mask.bool().unsqueeze(-1), mask_token, tokens)


def prepend_class_token(tokens: Tensor, class_token: Tensor) -> Tensor:
    """The class token in front of each sample: [B, S, D] and [1, 1, D] to [B, S + 1, D]."""
    return torch.cat([class_token.expand(tokens.shape[0], -1, -1), tokens], 1)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] to [B, L, p * p * C], in a patch rows, columns, channels; square or not.

    Raises:
        TypeError: `images` is no tensor.
        ValueError: `patch_size` does not divide the images.
    """
    return masking.patchify(images, patch_size)


def unpatchify(patches: Tensor, patch_size: int, channels: int = 3) -> Tensor:
    """The inverse of `patchify` for square images, [B, L, p * p * C] to [B, C, H, W].

    Raises:
        TypeError: `patches` is no tensor.
        ValueError: L is no square, or a patch does not have p * p * `channels` numbers.
    """
    images = masking.unpatchify(patches, patch_size)
    if images.shape[1] != channels:
        raise ValueError(f"channels: got {channels}, the patches have {images.shape[1]}")
    return images


def pool_masked(source: Tensor, mask: Tensor, num_cls: int, reduce: str = "mean") -> Tensor:
    """A feature map reduced over the pixels of each class.

    lightly raises for [C, H, W], ignores `reduce` for a batch, and turns NaN and infinity in a
    result into numbers.

    Args:
        source: [B, C, H, W] or [C, H, W], floating-point.
        mask: int64 [B, H, W] or [H, W], the class of each pixel.
        num_cls: how many classes there are.
        reduce: "mean", "sum", "prod", "amax" or "amin".

    Returns:
        [B, C, num_cls] or [C, num_cls]; 0 for a class without pixels.

    Raises:
        ValueError: `source` has neither three nor four dimensions.
    """
    if source.dim() not in (3, 4):
        raise ValueError(f"source: got {source.dim()} dimensions, must be 3 or 4")
    values, index = source.flatten(-2), mask.flatten(-2).unsqueeze(-2)
    pooled = values.new_zeros(*values.shape[:-1], num_cls)
    index = index.expand(values.shape)
    return pooled.scatter_reduce(-1, index, values, reduce, include_self=False)


def normalize_mean_var(x: Tensor, dim: int = -1, eps: float = 1.0e-6) -> Tensor:
    """(x - mean) / sqrt(var + eps) along a dimension, with the unbiased variance."""
    var, mean = torch.var_mean(x, dim, keepdim=True)
    return (x - mean) / (var + eps).sqrt()


@torch.no_grad()
def update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    """Moves each parameter of `model_ema` to m * itself + (1 - m) * that of `model`.

    In one pass, rounded once, where lightly takes two. Buffers stay.

    Args:
        model: the student.
        model_ema: the teacher, of the same structure; its own types and devices may differ.
        m: momentum in [0, 1].

    Raises:
        ValueError: the modules do not have equally many parameters.
    """
    students, teachers = list(model.parameters()), list(model_ema.parameters())
    if len(students) != len(teachers):
        got = f"{len(teachers)} parameters, model has {len(students)}"
        raise ValueError(f"model_ema: got {got}")
    if teachers:
        students = [s.to(t) for s, t in zip(students, teachers, strict=True)]
        torch._foreach_lerp_(teachers, students, 1.0 - m)


def repeat_interleave_batch(x: Tensor, B: int, repeat: int) -> Tensor:
    """Each of N batches, one after the other in `x`, `repeat` times in a row.

    Args:
        x: [N * B, ...]; what does not fill a batch is left out.
        B: size of a batch.
        repeat: how often.

    Returns:
        [N * repeat * B, ...].
    """
    batches = x[: len(x) // B * B].unflatten(0, (-1, 1, B))
    return batches.expand(-1, repeat, *batches.shape[2:]).flatten(0, 2)


def apply_masks(x: Tensor, masks: Tensor | list[Tensor]) -> Tensor:
    """The patches that each mask keeps, one mask's batch after the other's.

    Args:
        x: [B, N, D].
        masks: int64 [B, K], or a list of M of them with one K.

    Returns:
        [M * B, K, D].
    """
    masks = [masks] if isinstance(masks, Tensor) else masks
    return torch.cat([get_at_index(x, mask) for mask in masks])

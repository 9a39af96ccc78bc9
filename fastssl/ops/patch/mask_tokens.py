"""Masked language modelling: which tokens are to be predicted, and what stands in their place."""

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._checks import checked_integer
from fastssl._library import raw
from fastssl._random import checked_ids, checked_seed, checked_step
from fastssl.ops.patch import reference_pretext, schema_pretext  # noqa: F401 (registers)

_MOST_IDS = 1 << 31


def mask_tokens(
    ids: Tensor,
    special_mask: Tensor | None,
    mask_id: int,
    vocab_size: int,
    probability: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    *,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """BERT's masking: some tokens are to be predicted, most of them behind a mask token.

    Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
    Understanding", 2019; the distribution is that of Hugging Face's
    `DataCollatorForLanguageModeling`. Each token that is not special is predicted with
    `probability`, independently of all others; of those, `mask_share` become `mask_id`,
    `random_share` a random id, and the rest stay as they are. The draw is a function of (seed,
    step, sample id, place in the row) alone: the same bits on every device, for every split of a
    batch and however long the rows are padded. Nothing waits for a GPU.

    Args:
        ids: int64 or int32 [B, S] of any strides.
        special_mask: bool [B, S], True for tokens that are never predicted, such as padding and
            separators; None where there are none.
        mask_id: id of the mask token; it may be vocab_size or larger.
        vocab_size: random ids are uniform in [0, vocab_size), special ones included; at most
            2^31.
        probability: that a token is to be predicted, in [0, 1].
        mask_share: of those, in [0, 1].
        random_share: of those, in [0, 1 - mask_share].
        seed: in [0, 2^63).
        step: in [0, 2^32), say the number of the training step or epoch; or a 0-d int64 tensor on
            the device of `ids`.
        sample_ids: what identifies each row, int64 [B]; None for 0 to B - 1.
        impl: "auto", or one of "reference", "cpu", "cuda" by name.

    Returns:
        (inputs, labels), both [B, S] of the dtype of `ids`: labels are `ids` where a token is to be
        predicted and -100, which cross entropy ignores, elsewhere.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int32, torch.int64):
        got = getattr(ids, "dtype", type(ids).__name__)
        raise TypeError(f"ids: got {got}, must be an int64 or int32 tensor")
    if ids.dim() != 2 or ids.shape[1] >= 1 << 28:
        raise ValueError(f"ids: got shape {tuple(ids.shape)}, must be [B, S] with S below 2^28")
    if special_mask is not None:
        _check_special(special_mask, ids)
    checked_integer("mask_id", mask_id, 0, torch.iinfo(ids.dtype).max)
    checked_integer("vocab_size", vocab_size, 1, _MOST_IDS)
    shares = (probability, mask_share, random_share)
    for name, value in zip(("probability", "mask_share", "random_share"), shares, strict=True):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: got {value!r}, must be a number")
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: got {value}, must be in [0, 1]")
    if mask_share + random_share > 1:
        raise ValueError(
            f"random_share: got {random_share}, must be at most 1 - mask_share = {1 - mask_share}"
        )
    counter, value = checked_step(step, ids.device, "ids")
    sample_ids = checked_ids(sample_ids, ids.shape[0], ids.device)
    chosen = _dispatch.choose("patch", impl, ids.device)
    reference = chosen == "reference"
    run = reference_pretext.mask_tokens if reference else raw("patch_mask_tokens")
    special = None if special_mask is None else special_mask.contiguous()
    numbers = (counter, value, checked_seed(seed), mask_id, vocab_size)
    return run(ids.contiguous(), special, sample_ids, *numbers, [float(s) for s in shares])


def _check_special(special_mask, ids: Tensor) -> None:
    if not isinstance(special_mask, Tensor) or special_mask.dtype != torch.bool:
        got = getattr(special_mask, "dtype", type(special_mask).__name__)
        raise TypeError(f"special_mask: got {got}, must be a bool tensor or None")
    if special_mask.shape != ids.shape:
        got, wanted = tuple(special_mask.shape), tuple(ids.shape)
        raise ValueError(f"special_mask: got shape {got}, must be that of ids, {wanted}")
    if special_mask.device != ids.device:
        got = special_mask.device
        raise ValueError(f"special_mask: got device {got}, must be that of ids, {ids.device}")

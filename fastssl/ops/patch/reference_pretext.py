"""The definitions of the pretext tasks in plain PyTorch."""

import itertools

import torch
from torch import Tensor

from fastssl._random import Purpose, uniform, words_of

#: Where the blocks of Purpose.PRETEXT of each task begin, so that tasks share no numbers.
ROTATE, JIGSAW, RELATIVE, PERMUTATIONS = (task << 24 for task in range(4))


def tiles(images: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """[B, N, C, height, width]: the rectangles at corners [B, N, 2]; differentiable."""
    top, left = corners.long().unbind(2)
    rows = top[..., None] + torch.arange(height, device=top.device)  # [B, N, height]
    columns = left[..., None] + torch.arange(width, device=top.device)
    sample = torch.arange(images.shape[0], device=top.device).view(-1, 1, 1, 1, 1)
    channel = torch.arange(images.shape[1], device=top.device).view(-1, 1, 1)
    return images[sample, channel, rows[:, :, None, :, None], columns[:, :, None, None]]


def words(sample_ids, step, step_value, seed, first, blocks) -> Tensor:
    """Random words int64 [4, B, blocks]; see schema_pretext.py."""
    if step is None:
        step = torch.full((), step_value, dtype=torch.int64, device=sample_ids.device)
    number = torch.arange(first, first + blocks, device=sample_ids.device)
    return words_of(seed, step, sample_ids.unsqueeze(1), Purpose.PRETEXT, number)


def mask_tokens(
    ids, special, sample_ids, step, step_value, seed, mask_id, vocab_size, shares
) -> tuple[Tensor, Tensor]:
    """(inputs, labels) [B, S]; see schema_pretext.py."""
    if step is None:
        step = torch.full((), step_value, dtype=torch.int64, device=ids.device)
    place = torch.arange(ids.shape[1], device=ids.device)
    words = words_of(seed, step, sample_ids.unsqueeze(1), Purpose.TOKENS, place)  # [4, B, S]
    probability, mask_share, random_share = shares
    predicted = uniform(words[0]) < probability
    predicted = predicted if special is None else predicted & ~special
    fate, drawn = uniform(words[1]), (words[2] * vocab_size >> 32).to(ids.dtype)
    inputs = torch.where(fate < mask_share + random_share, drawn, ids)
    inputs = torch.where(fate < mask_share, mask_id, inputs)
    return torch.where(predicted, inputs, ids), torch.where(predicted, ids, -100)


def hamming_permutations(count: int, tiles: int, max_min: bool, seed: int) -> Tensor:
    """int64 [count, tiles]; csrc/patch/permutations.cpp is the same, and many times faster."""
    table = torch.tensor(list(itertools.permutations(range(tiles))), dtype=torch.uint8)
    zero = torch.zeros((), dtype=torch.int64)
    word = words_of(seed, zero, zero, Purpose.PRETEXT, PERMUTATIONS)[0]
    chosen = [int(word * len(table) >> 32)]
    agreed = torch.zeros(len(table), dtype=torch.int64)  # with those chosen, in sum or at most
    for _ in range(count - 1):
        agree = (table == table[chosen[-1]]).sum(1)
        agreed = torch.maximum(agreed, agree) if max_min else agreed + agree
        agreed[chosen[-1]] = 1 << 62
        chosen.append(int((agreed == agreed.min()).nonzero()[0]))  # the first of several
    return table[chosen].long()

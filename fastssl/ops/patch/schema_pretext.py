"""The raw operators of the pretext tasks: schemas, fallbacks, fake shapes.

patch_tiles: the rectangles (height, width) of images [B, C, H, W], of any dtype and strides, at
  corners int32 [B, N, 2] (top, left), as [B, N, C, height, width]. Corners outside the image raise
  on the CPU. No gradient.
patch_mask_tokens: (inputs, labels) like ids, int32 or int64 [B, S]. `shares` are the probability
  that a token is predicted, and those that it then becomes mask_id, or a random id below
  vocab_size. Token n draws block n of Purpose.TOKENS: whether it is predicted, its fate, its id.
patch_words: blocks first, first + 1, ... of Purpose.PRETEXT for samples [B], as words in int64
  [4, B, blocks]. An operator, although in PyTorch alone, since torch.compile's code for a CPU gets
  some of its products of 64 bits wrong (2.13).
"""

import torch

from fastssl._library import LIBRARY
from fastssl.ops.patch import reference_pretext

LIBRARY.define("patch_tiles(Tensor images, Tensor corners, int height, int width) -> Tensor")
LIBRARY.define(
    "patch_mask_tokens(Tensor ids, Tensor? special, Tensor sample_ids, Tensor? step, "
    "int step_value, int seed, int mask_id, int vocab_size, float[] shares) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "patch_words(Tensor sample_ids, Tensor? step, int step_value, int seed, int first, int blocks) "
    "-> Tensor"
)


def _tiles_fake(images, corners, height, width):
    return images.new_empty((*corners.shape[:2], images.shape[1], height, width))


def _mask_tokens_fake(
    ids, special, sample_ids, step, step_value, seed, mask_id, vocab_size, shares
):
    return ids.new_empty(ids.shape), ids.new_empty(ids.shape)


def _words_fake(sample_ids, step, step_value, seed, first, blocks):
    return sample_ids.new_empty((4, sample_ids.shape[0], blocks))


for _name, _fallback, _fake in (
    ("patch_tiles", reference_pretext.tiles, _tiles_fake),
    ("patch_mask_tokens", reference_pretext.mask_tokens, _mask_tokens_fake),
    ("patch_words", reference_pretext.words, _words_fake),
):
    LIBRARY.impl(_name, _fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastssl::{_name}", _fake, lib=LIBRARY)

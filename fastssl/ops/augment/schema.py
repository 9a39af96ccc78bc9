"""The raw operators: schemas, the fallback for devices without a kernel, shapes for tracing.

augment_draw returns (geometry, gates, order, factors) of `views` views of B samples:
  geometry int32 [4, V, B]: top, left, height, width of the crop
  gates bool [5, V, B]: flip, jitter, gray, blur, solarize
  order int8 [V, B, 4]: 0 brightness, 1 contrast, 2 saturation, 3 hue, in the order applied
  factors float32 [5, V, B]: brightness, contrast, saturation, hue, sigma
Samples are int64 ids [B]; their images are height x width, or with `shapes`, int64 [B, 3] of
(offset, height, width), of any sizes. `step`, a 0-d int64 tensor, wins over `step_value`. `recipes`
has 21 numbers for each view, those of `Recipe.numbers`.

augment_apply writes the views into `out`, V tensors [B, C, h, w] of one dtype: uint8 (levels), or
float32, bfloat16 or float16 (normalised with mean and std, C numbers each, in units of [0, 1]).
`images` is uint8 or float32 [B, C, H, W] of any strides, or 1-D with `shapes`. `settings` has 5
numbers for each view: interpolation, antialias, gray_first, blur taps (0: Pillow's blur), solarize
threshold. `semantics` is the index in settings.SEMANTICS.
"""

import torch

from fastssl._library import LIBRARY
from fastssl.ops.augment import reference, reference_draw

LIBRARY.define(
    "augment_draw(Tensor sample_ids, Tensor? shapes, int height, int width, Tensor? step, "
    "int step_value, int seed, float[] recipes, int views) -> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "augment_apply(Tensor images, Tensor? shapes, Tensor geometry, Tensor gates, Tensor order, "
    "Tensor factors, int[] settings, float[] mean, float[] std, int semantics, "
    "Tensor(a!)[] out) -> ()"
)


def _draw_fake(sample_ids, shapes, height, width, step, step_value, seed, recipes, views):
    size = sample_ids.shape[0]
    return (
        sample_ids.new_empty((4, views, size), dtype=torch.int32),
        sample_ids.new_empty((5, views, size), dtype=torch.bool),
        sample_ids.new_empty((views, size, 4), dtype=torch.int8),
        sample_ids.new_empty((5, views, size), dtype=torch.float32),
    )


def _apply_fake(
    images, shapes, geometry, gates, order, factors, settings, mean, std, semantics, out
):
    pass


LIBRARY.impl("augment_draw", reference_draw.draw, "CompositeExplicitAutograd")
LIBRARY.impl("augment_apply", reference.apply, "CompositeExplicitAutograd")
torch.library.register_fake("fastssl::augment_draw", _draw_fake, lib=LIBRARY)
torch.library.register_fake("fastssl::augment_apply", _apply_fake, lib=LIBRARY)

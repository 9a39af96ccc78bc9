"""The parameters of all views, in plain PyTorch: the same bits on every device.

Random words come from `fastssl._random`. All arithmetic is in float64 with every operation rounded
on its own: products, sums, quotients, square roots and `exp_` give the same bits everywhere.
"""

import itertools

import torch
from torch import Tensor

from fastssl._random import Purpose, exp_, uniform, words_of

ATTEMPTS = 10  # at a crop of the drawn area and ratio, as in torchvision
NUMBERS = 21  # that describe a recipe to the operator; `Recipe.numbers` has their order
ORDERS = tuple(itertools.permutations(range(4)))  # of the jitter, lexicographic


def draw(
    sample_ids: Tensor,
    shapes: Tensor | None,
    height: int,
    width: int,
    step: Tensor | None,
    step_value: int,
    seed: int,
    recipes: list[float],
    views: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(geometry, gates, order, factors) of `views` views for each sample; see schema.py."""
    device = sample_ids.device
    numbers = torch.tensor(recipes, dtype=torch.float64, device=device).view(views, NUMBERS)
    numbers = numbers.T.unsqueeze(-1)  # [21, V, 1]
    step = torch.full((), step_value, device=device) if step is None else step.to(torch.int64)
    view = torch.arange(views, device=device).unsqueeze(-1)  # [V, 1], against samples [B]

    def words(block: int) -> Tensor:
        return words_of(seed, step, sample_ids, Purpose.AUGMENT, view << 12 | block)  # [4, V, B]

    one, two, three = words(0), words(1), words(2)
    flip, jitter, gray, blur = uniform(one)
    solarize, _, brightness, contrast = uniform(two)
    saturation, hue, sigma, _ = uniform(three)

    gates = torch.stack([flip, jitter, gray, blur, solarize]) < numbers[[6, 7, 16, 17, 20]]
    orders = torch.tensor(ORDERS, dtype=torch.int8, device=device)
    order = orders[two[1] * len(ORDERS) >> 32]
    u = torch.stack([brightness, contrast, saturation, hue, sigma])
    low, high = numbers[[8, 10, 12, 14, 18]], numbers[[9, 11, 13, 15, 19]]
    factors = (low + (high - low) * u).float()

    if shapes is None:
        tall = torch.full(sample_ids.shape, height, dtype=torch.int64, device=device)
        wide = torch.full_like(tall, width)
    else:
        _, tall, wide = shapes.unbind(1)
    attempts = [words(3 + attempt) for attempt in range(ATTEMPTS)]
    return _crops(attempts, numbers, tall, wide), gates, order, factors


def _crops(attempts: list[Tensor], numbers: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """[4, V, B] int32 (top, left, height, width): the first attempt that fits, or the middle.

    torchvision's RandomResizedCrop: an area and a ratio (log-uniform) are drawn up to ten times; if
    no rectangle fits, the largest central one whose ratio is allowed.
    """
    scale_low, scale_high, low, high, log_low, log_high = numbers[:6]
    ratio = wide.double() / tall.double()
    h = torch.where(ratio < low, (wide / low).round(), tall.double())
    w = torch.where((ratio >= low) & (ratio > high), (tall * high).round(), wide.double())
    h = h.clamp(min=1).minimum(tall.double()).long()
    w = w.clamp(min=1).minimum(wide.double()).long()
    crop = torch.stack([(tall - h) // 2, (wide - w) // 2, h, w])

    for area, aspect, down, right in reversed(attempts):  # so that the first that fits remains
        target = (tall * wide).double() * (scale_low + (scale_high - scale_low) * uniform(area))
        shape = exp_(log_low + (log_high - log_low) * uniform(aspect))
        w = (target * shape).sqrt().round().long()
        h = (target / shape).sqrt().round().long()
        fits = (w > 0) & (w <= wide) & (h > 0) & (h <= tall)
        top, left = (down * (tall - h + 1)) >> 32, (right * (wide - w + 1)) >> 32
        crop = torch.where(fits, torch.stack([top, left, h, w]), crop)
    return crop.int()

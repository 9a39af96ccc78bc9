"""Masks of rectangles: removed ones (BEiT and its descendants), and a kept one (CAPI)."""

import math

import torch
from torch import Tensor

from fastssl._checks import checked_bool, checked_integer, checked_number
from fastssl.ops.patch.plan import MaskPlan
from fastssl.ops.patch.plan_arguments import (
    Counters,
    checked_aspect,
    checked_grid,
    checked_range,
    checked_ratio,
)

_MOST_RANGES = 64


def block_masks(
    batch: int,
    grid: tuple[int, int],
    ratio=0.4,
    *,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    counts: int | Tensor | None = None,
    probability: float = 1.0,
    least: int = 16,
    most: int | None = None,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    exact: bool = True,
    roll: bool = False,
    device=None,
    impl: str = "auto",
) -> MaskPlan:
    """Block masks of BEiT, iBOT, DINOv2 and DINOv3: rectangles are removed until there are enough.

    Bao et al., "BEiT: BERT Pre-Training of Image Transformers", 2022. While fewer than n patches
    are removed, a rectangle of an area uniform in [least, min(most, what is missing)] and of a
    log-uniform aspect is tried at a random place, up to ten times until one removes something and
    not too much; where none does, the rest of the n patches is chosen one by one (`exact`, as in
    DINOv3) or left. Every place inside the grid is as likely, its edges included. All images are
    drawn independently of each other; where a batch shall have so many masked images of such ratios
    exactly, as in DINOv2, give `counts`.

    Args:
        batch: B, the number of samples.
        grid: (rows, columns) of patches, L in all.
        ratio: of the patches that are removed: a number in [0, 1), n = int(L * ratio); a tuple
            (low, high) in which each image's ratio is uniform; or a list of those, at most 64, of
            which each image picks one (iBOT).
        seed: as `random_masks` takes it, and so are `step`, `sample_ids`, `device`, `impl`.
        step: of the draw.
        sample_ids: int64 [B].
        counts: n itself in [0, L], one for all or int64 [B], instead of `ratio` and `probability`.
            BEiT: 75 of 14 x 14.
        probability: that anything is removed from an image, in [0, 1] (DINOv2: 0.5).
        least: patches of a rectangle (BEiT: 16, DINOv2: 4), in [1, L].
        most: patches of a rectangle, at least `least`; None for L.
        aspect: the least and the largest height / width of a rectangle.
        exact: exactly n patches are removed. Without, a few images have less than n: with BEiT's
            75 of 14 x 14 a third of them, 74.5 on average.
        roll: shift the mask by a random number of rows and columns, around the edges (DINOv3).
        device: of the plan.
        impl: which implementation draws.

    Returns:
        The plan, in raster order. Where `exact` and n is one number for all, K = L - n; otherwise
        there are `keep_lengths`, and K is L minus the least number that is always removed.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    grid = checked_grid("grid", grid, (2,))
    length = math.prod(grid)
    counters = Counters(batch, seed, step, sample_ids, device, impl)
    ranges = _ranges(ratio)
    checked_number("probability", probability, 0, 1)
    checked_bool("exact", exact)
    checked_bool("roll", roll)
    checked_integer("least", least, 1)
    if most is not None and checked_integer("most", most, 1) < least:
        raise ValueError(f"most: got {most}, must be at least least = {least}")
    areas = (min(least, length), length if most is None else min(most, length))
    logs = [math.log(x) for x in checked_aspect(aspect)]
    removed, same = 0, False  # how many always are, and whether no more ever are
    if counts is not None:
        removed, same = (counts, True) if not isinstance(counts, Tensor) else (0, False)
        counts = _checked_counts(counts, batch, length, counters.device)
    elif probability == 1:
        removed = int(length * min(low for low, _ in ranges))
        same = removed == int(length * max(high for _, high in ranges))
    flat = [x for pair in ranges for x in pair]
    before, after = (counts, flat, float(probability)), (list(grid), *areas, logs, exact, roll)
    *ids, lengths = counters.draw("blocks", before, *after)
    keep = length - removed if exact else length
    return MaskPlan(*ids, keep, grid, None if exact and same else lengths)


def inverse_block_masks(
    batch: int,
    grid: tuple[int, int],
    ratio: float = 0.65,
    *,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    aspect: tuple[float, float] = (0.5, 2.0),
    roll: bool = True,
    device=None,
    impl: str = "auto",
) -> MaskPlan:
    """CAPI's masks: all but one rectangle is removed.

    Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling", 2025;
    lightly's `random_inverse_block_mask`. The rectangle is the smallest of a log-uniform aspect
    that holds K = L - int(L * ratio) patches, and its first K are kept.

    Args:
        batch: B, the number of samples.
        grid: (rows, columns) of patches, L in all.
        ratio: of the patches that are removed, in [0, 1).
        seed: as `random_masks` takes it, and so are `step`, `sample_ids`, `device`, `impl`.
        step: of the draw.
        sample_ids: int64 [B].
        aspect: the least and the largest height / width of the rectangle, as far as the grid has
            room for it.
        roll: shift the mask by a random number of rows and columns, around the edges: every patch
            is as likely to be kept then.
        device: of the plan.
        impl: which implementation draws.

    Returns:
        The plan, in raster order.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    grid = checked_grid("grid", grid, (2,))
    length = math.prod(grid)
    keep = length - int(length * checked_ratio(ratio))
    checked_bool("roll", roll)
    # A rectangle of so many patches fits where its aspect is in between: the 1e-5 of lightly keeps
    # the height from being rounded up beyond the grid.
    low = math.log(keep / grid[1] ** 2)
    high = max(low, math.log(grid[0] ** 2 / (keep + 1e-5)))
    logs = [min(max(math.log(x), low), high) for x in checked_aspect(aspect)]
    counters = Counters(batch, seed, step, sample_ids, device, impl)
    ids = counters.draw("inverse_block", (), list(grid), keep, logs, roll)
    return MaskPlan(*ids, keep, grid)


def _ranges(ratio) -> list[tuple[float, float]]:
    if isinstance(ratio, list):
        if not 1 <= len(ratio) <= _MOST_RANGES:
            raise ValueError(f"ratio: got a list of {len(ratio)}, must have 1 to {_MOST_RANGES}")
        if any(isinstance(one, list) for one in ratio):
            raise TypeError(f"ratio: got {ratio}, must be numbers or tuples (low, high)")
        return [pair for one in ratio for pair in _ranges(one)]
    if isinstance(ratio, tuple):
        return [checked_range("ratio", ratio, 0, 1, ")")]
    return [(checked_ratio(ratio),) * 2]


def _checked_counts(counts, batch: int, length: int, device) -> Tensor:
    if not isinstance(counts, Tensor):
        checked_integer("counts", counts, 0, length)
        return torch.full((batch,), counts, dtype=torch.int64, device=device)
    if counts.dtype != torch.int64:
        raise TypeError(f"counts: got dtype {counts.dtype}, must be int64")
    if counts.shape != (batch,):
        raise ValueError(f"counts: got shape {tuple(counts.shape)}, must be ({batch},)")
    if counts.device.type == "cpu" and bool(((counts < 0) | (counts > length)).any()):
        raise ValueError(f"counts: got {counts.tolist()}, must be in [0, {length}]")
    return counts.to(device, non_blocking=True).contiguous()

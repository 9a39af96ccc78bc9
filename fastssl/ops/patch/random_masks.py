"""Masks whose patches, or square cells of patches, are removed independently of their place."""

import math

import torch
from torch import Tensor

from fastssl._checks import checked_bool
from fastssl.ops.patch.plan import MaskPlan
from fastssl.ops.patch.plan_arguments import (
    Counters,
    checked_batch,
    checked_device,
    checked_grid,
    checked_ratio,
)

# Numbers of kept patches of L at a ratio r, in Python's floats: the last bit decides.
_KEEP = {
    "mae": lambda length, r: int(length * (1 - r)),
    "timm": lambda length, r: max(1, int(length * (1 - r))),
    "simmim": lambda length, r: length - math.ceil(length * r),
    "videomae": lambda length, r: length - int(length * r),
}
ROUNDINGS = tuple(_KEEP)


def random_masks(
    batch: int,
    length: int | tuple[int, ...],
    ratio: float | Tensor,
    *,
    seed: int | None,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    noise: Tensor | None = None,
    rounding: str = "mae",
    ordered: bool = False,
    device=None,
    impl: str = "auto",
) -> MaskPlan:
    """MAE's masks: of L patches a random set is kept, each set as likely as any other.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022. The patches are sorted by
    random numbers and the first K are kept. The draw is a function of (seed, step, sample id)
    alone: the same bits on every device and implementation, for every split of a batch. Nothing
    waits for a GPU.

    Args:
        batch: B, the number of samples.
        length: L, the number of patches, class token not counted; or a grid with so many, (rows,
            columns) or (frames, rows, columns).
        ratio: of the patches that are removed, in [0, 1). A float tensor [B] has one for each
            sample: K is L then, and `keep_lengths` of the plan says how many patches each keeps.
            Give float64 where the last bit of a ratio matters to `rounding`.
        seed: in [0, 2^63); may be None where `noise` is given.
        step: in [0, 2^32), say the number of the training step or epoch; or a 0-d int64 tensor on
            the plan's device, read when the draw runs, so that a CUDA graph can count.
        sample_ids: what identifies each sample, int64 [B]; None for 0 to B - 1.
        noise: floating-point [B, L], to be sorted instead of numbers drawn here: the smallest are
            kept, and of equal ones those with the lower index. Nothing else is drawn.
        rounding: how many patches are kept. "mae": int(L * (1 - ratio)), as in MAE, Hugging Face
            and lightly; "timm": the same but at least 1, as in timm's PatchDropout; "simmim":
            L - ceil(L * ratio); "videomae": L - int(L * ratio).
        ordered: kept patches in raster order rather than in that of the random numbers.
        device: of the plan; None for that of `noise` or `sample_ids`, else the CPU.
        impl: "auto", or one of "reference", "cpu", "cuda" by name.

    Returns:
        The plan, on `device`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    one = isinstance(length, int) and not isinstance(length, bool)
    grid = checked_grid("length", (length,) if one else length, (1, 2, 3))
    count = math.prod(grid)
    checked_bool("ordered", ordered)
    if noise is not None:
        order = _order_of(noise, checked_batch(batch), count, device)
        keep, lengths = _kept(ratio, rounding, count, len(order), order.device)
        plan = MaskPlan.from_order(order, keep, grid)
        if lengths is not None:
            mask = plan.ids_restore >= lengths.unsqueeze(1)
            plan = MaskPlan(plan.ids_shuffle, plan.ids_restore, mask, keep, grid, lengths)
        if not ordered:
            return plan
        sorted_plan = MaskPlan.from_mask(plan.mask, grid)
        ids = (sorted_plan.ids_shuffle, sorted_plan.ids_restore)
        return MaskPlan(*ids, plan.mask, keep, grid, lengths)
    if seed is None:
        raise TypeError("seed: got None, must be an integer unless noise is given")
    counters = Counters(batch, seed, step, sample_ids, device, impl)
    keep, lengths = _kept(ratio, rounding, count, batch, counters.device)
    cell = (1,) * len(grid)
    return _drawn(counters, grid, cell, keep, ordered, lengths)


def tube_masks(
    batch: int,
    grid: tuple[int, int, int],
    ratio: float,
    *,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    rounding: str = "videomae",
    device=None,
    impl: str = "auto",
) -> MaskPlan:
    """VideoMAE's masks of clips: the same patches are removed from every frame.

    Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised
    Video Pre-Training", 2022.

    Args:
        batch: B, the number of samples.
        grid: (frames, rows, columns) in tokens: frames are those of tubelets.
        ratio: of the patches of a frame that are removed, in [0, 1).
        seed: as `random_masks` takes it, and so are `step`, `sample_ids`, `device`, `impl`.
        step: of the draw.
        sample_ids: int64 [B].
        rounding: as `random_masks` takes it, of the patches of a frame.
        device: of the plan.
        impl: which implementation draws.

    Returns:
        The plan, in raster order.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    grid = checked_grid("grid", grid, (3,))
    counters = Counters(batch, seed, step, sample_ids, device, impl)
    keep = kept_patches(grid[1] * grid[2], checked_ratio(ratio), rounding)
    return _drawn(counters, grid, (grid[0], 1, 1), keep, True)


def simmim_masks(
    batch: int,
    grid: tuple[int, int],
    ratio: float = 0.6,
    *,
    cell: int | tuple[int, int],
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    device=None,
    impl: str = "auto",
) -> MaskPlan:
    """SimMIM's masks: whole cells of patches are removed, ceil(cells * ratio) of them.

    Xie et al., "SimMIM: a Simple Framework for Masked Image Modeling", 2022.

    Args:
        batch: B, the number of samples.
        grid: (rows, columns) of patches.
        ratio: of the cells that are removed, in [0, 1).
        cell: its size in patches, one number or (rows, columns), which divides the grid: cells of
            32 pixels over patches of 4 make 8.
        seed: as `random_masks` takes it, and so are `step`, `sample_ids`, `device`, `impl`.
        step: of the draw.
        sample_ids: int64 [B].
        device: of the plan.
        impl: which implementation draws.

    Returns:
        The plan, in raster order.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    return _cells(batch, grid, ratio, cell, "simmim", seed, step, sample_ids, device, impl)


def grid_masks(
    batch: int,
    grid: tuple[int, int],
    ratio: float = 0.75,
    *,
    cell: int | tuple[int, int] = 4,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    device=None,
    impl: str = "auto",
) -> MaskPlan:
    """Pixio's masks: whole cells of patches are kept, int(cells * (1 - ratio)) of them.

    Yang et al., "In Pursuit of Pixel Supervision for Visual Pre-training", 2025; lightly's
    `random_grid_token_mask`.

    Args:
        batch: B, the number of samples.
        grid: (rows, columns) of patches.
        ratio: of the cells that are removed, in [0, 1).
        cell: its size in patches, one number or (rows, columns), which divides the grid.
        seed: as `random_masks` takes it, and so are `step`, `sample_ids`, `device`, `impl`.
        step: of the draw.
        sample_ids: int64 [B].
        device: of the plan.
        impl: which implementation draws.

    Returns:
        The plan, in raster order.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    return _cells(batch, grid, ratio, cell, "mae", seed, step, sample_ids, device, impl)


def kept_patches(length: int, ratio: float, rounding: str = "mae") -> int:
    """K, how many of `length` patches are kept at a ratio; see `random_masks`.

    Raises:
        ValueError: `rounding` is unknown.
    """
    return _KEEP[_checked_rounding(rounding)](length, ratio)


def _checked_rounding(rounding: str) -> str:
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding: got {rounding!r}, must be one of {', '.join(ROUNDINGS)}")
    return rounding


def _kept(ratio, rounding, length: int, batch: int, device) -> tuple[int, Tensor | None]:
    """(K, None), or (L, kept patches of each sample) where there is a ratio for each."""
    if not isinstance(ratio, Tensor):
        return kept_patches(length, checked_ratio(ratio), rounding), None
    _checked_rounding(rounding)
    if not ratio.is_floating_point():
        raise TypeError(f"ratio: got dtype {ratio.dtype}, must be floating-point")
    if ratio.shape != (batch,):
        raise ValueError(f"ratio: got shape {tuple(ratio.shape)}, must be ({batch},)")
    if ratio.device.type == "cpu" and not bool(((ratio >= 0) & (ratio < 1)).all()):
        raise ValueError(f"ratio: got {ratio.tolist()}, must be in [0, 1)")
    ratio = ratio.to(device, torch.float64, non_blocking=True)
    if rounding == "simmim":
        return length, length - (length * ratio).ceil().long()
    if rounding == "videomae":
        return length, length - (length * ratio).long()
    return length, (length * (1 - ratio)).long().clamp(min=1 if rounding == "timm" else 0)


def _order_of(noise, batch: int, length: int, device) -> Tensor:
    """The patches of each sample by their noise, int64 [B, L]; equal ones by their index."""
    if not isinstance(noise, Tensor) or not noise.is_floating_point():
        got = getattr(noise, "dtype", type(noise).__name__)
        raise TypeError(f"noise: got {got}, must be a floating-point tensor")
    if noise.shape != (batch, length):
        raise ValueError(f"noise: got shape {tuple(noise.shape)}, must be {(batch, length)}")
    wanted = checked_device(device)
    if wanted is not None and torch.empty(0, device=wanted).device != noise.device:
        raise ValueError(f"device: got {device}, must be that of noise, {noise.device}")
    looked_at = noise.device.type == "cpu" and not torch.compiler.is_compiling()
    if looked_at and bool(noise.isnan().any()):
        raise ValueError("noise: got NaN, must be numbers")
    return noise.detach().argsort(dim=1, stable=True)


def _cells(batch, grid, ratio, cell, rounding, seed, step, sample_ids, device, impl) -> MaskPlan:
    grid = checked_grid("grid", grid, (2,))
    one = isinstance(cell, int) and not isinstance(cell, bool)
    cell = checked_grid("cell", (cell, cell) if one else cell, (2,))
    if any(n % c for n, c in zip(grid, cell, strict=True)):
        raise ValueError(f"cell: got {cell}, must divide the grid {grid}")
    counters = Counters(batch, seed, step, sample_ids, device, impl)
    cells = math.prod(grid) // math.prod(cell)
    keep = kept_patches(cells, checked_ratio(ratio), rounding)
    return _drawn(counters, grid, cell, keep, True)


def _drawn(counters, grid, cell, keep: int, ordered: bool, lengths=None) -> MaskPlan:
    """`keep` and `lengths` count cells."""
    ones = (1,) * (3 - len(grid))
    sizes = ([*ones, *grid], [*ones, *cell])
    ids = counters.draw("random", (lengths,), *sizes, keep, ordered)
    return MaskPlan(*ids, keep * math.prod(cell), grid, lengths)

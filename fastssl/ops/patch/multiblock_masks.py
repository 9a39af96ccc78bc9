"""I-JEPA's masks: a large context, and several targets that it is not to overlap."""

import math
from dataclasses import dataclass

from torch import Tensor

from fastssl._checks import checked_bool, checked_integer
from fastssl._random import Purpose, philox
from fastssl.ops.patch.plan import MaskPlan
from fastssl.ops.patch.plan_arguments import (
    Counters,
    checked_aspect,
    checked_grid,
    checked_range,
)

_SIZES = 2  # the block of random words that decides on sizes: csrc/patch/plan.h
_WORD = 0xFFFFFFFF


@dataclass(eq=False)
class MultiblockPlan:
    """The blocks of a batch.

    Attributes:
        context: what the encoder sees, in raster order; `keep_lengths` says how many patches of
            each row count.
        targets: int64 [B, T, Kt], the patches of T blocks, each in raster order.
    """

    context: MaskPlan
    targets: Tensor

    def __len__(self) -> int:
        return len(self.context)

    def to(self, device, non_blocking: bool = False) -> "MultiblockPlan":
        """The same plan on another device."""
        how = {"non_blocking": non_blocking}
        return MultiblockPlan(self.context.to(device, **how), self.targets.to(device, **how))


def multiblock_masks(
    batch: int,
    grid: tuple[int, int],
    *,
    seed: int,
    step: int = 0,
    sample_ids: Tensor | None = None,
    context_scale: tuple[float, float] = (0.85, 1.0),
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect: tuple[float, float] = (0.75, 1.5),
    targets: int = 4,
    min_keep: int = 10,
    allow_overlap: bool = False,
    compat: str | None = None,
    device=None,
    impl: str = "auto",
) -> MultiblockPlan:
    """I-JEPA's multi-block masks, of which every patch of the grid can be a part.

    Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive
    Architecture", 2023. The sizes of the context and of the targets are drawn once for a batch, a
    function of (seed, step) alone; their places for each sample. The context loses the patches of
    all targets. Where no more than `min_keep` patches remain it is placed again, up to 20 times;
    after that, and after every 20 more, one target less is respected.

    Args:
        batch: B, the number of samples.
        grid: (rows, columns) of patches, L in all.
        seed: as `random_masks` takes it, and so are `sample_ids`, `device`, `impl`.
        step: in [0, 2^32), an integer: shapes depend on it.
        sample_ids: int64 [B].
        context_scale: the context's part of the grid before it loses the targets, in (0, 1]. Its
            aspect is 1, or as near to that as the grid permits.
        target_scale: a target's part of the grid, in (0, 1].
        target_aspect: height / width of the targets.
        targets: T, at least 1 and at most 1024.
        min_keep: the context has more patches than that.
        allow_overlap: the context keeps the patches of targets.
        compat: None, or "reference" for the distribution of the published code: no block reaches
            the last row and column, one random number decides both scale and aspect, and all
            contexts are cut to the shortest of the batch, which loses the lower rows, makes a
            sample's mask depend on the rest of the batch, and waits for a GPU.
        device: of the plan.
        impl: which implementation draws.

    Returns:
        The context, with `keep_lengths` where those vary, and the targets.

    Raises:
        TypeError: an argument has the wrong type or dtype, or `step` is a tensor.
        ValueError: a value, shape or device is not acceptable, or the smallest context has not
            more than `min_keep` patches.
        RuntimeError: `impl` cannot run here.
    """
    grid = checked_grid("grid", grid, (2,))
    if isinstance(step, Tensor):
        raise TypeError("step: got a tensor, must be an integer: it decides the size of the blocks")
    counters = Counters(batch, seed, step, sample_ids, device, impl)
    if compat not in (None, "reference"):
        raise ValueError(f"compat: got {compat!r}, must be None or 'reference'")
    if compat and min(grid) < 2:
        raise ValueError(f"grid: got {grid}, must be at least 2 x 2 with compat='reference'")
    target_scale = _checked_scale("target_scale", target_scale)
    target_aspect = checked_aspect(target_aspect, "target_aspect")
    context_scale = _checked_scale("context_scale", context_scale)
    checked_integer("targets", targets, 1, 1024)
    checked_integer("min_keep", min_keep, 0)
    checked_bool("allow_overlap", allow_overlap)
    inclusive = compat is None
    smallest = math.prod(_size(grid, context_scale[0], 1.0, inclusive))
    if min_keep >= smallest:
        raise ValueError(
            f"min_keep: got {min_keep}, must be below {smallest}, the patches of the smallest "
            f"context in {grid}"
        )

    units = _units(counters.seed, step)
    scale = _at(target_scale, units[0])
    aspect = _at(target_aspect, units[1 if inclusive else 0])
    target = _size(grid, scale, aspect, inclusive)
    context = _size(grid, _at(context_scale, units[2]), 1.0, inclusive)
    sizes = ([*grid], [*context], [*target], targets, min_keep, allow_overlap, inclusive)
    ids, *plan, lengths = counters.draw("multiblock", (), *sizes)
    keep = math.prod(context)
    if compat and batch:
        keep = int(lengths.min())
        return MultiblockPlan(MaskPlan.from_mask(plan[1] >= keep, grid, keep), ids)
    return MultiblockPlan(MaskPlan(*plan, keep, grid, None if allow_overlap else lengths), ids)


def _units(seed: int, step: int) -> list[float]:
    """Numbers in [0, 1) for the targets' scale and aspect and the context's scale."""
    counter = [0, 0, step, int(Purpose.MASK) << 28 | _SIZES]
    return [word * 2.0**-32 for word in philox(counter, (seed & _WORD, seed >> 32))[:3]]


def _at(limits: tuple[float, float], unit: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * unit


def _size(grid, scale: float, aspect: float, inclusive: bool) -> tuple[int, int]:
    """(height, width) of a block; where one side does not fit the grid the other makes up for it.

    Not so in the published code, whose blocks are also smaller than the grid.
    """
    (rows, columns), area = grid, int(math.prod(grid) * scale)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if not inclusive:
        return max(min(height, rows - 1), 1), max(min(width, columns - 1), 1)
    if height > rows:
        height, width = rows, round(area / rows)
    elif width > columns:
        height, width = round(area / columns), columns
    return max(min(height, rows), 1), max(min(width, columns), 1)


def _checked_scale(name: str, value) -> tuple[float, float]:
    low, high = checked_range(name, value, 0, 1)
    if low == 0:
        raise ValueError(f"{name}: got {tuple(value)}, must be in (0, 1]")
    return low, high

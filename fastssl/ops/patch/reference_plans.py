"""The plans of masks in plain PyTorch and Python: the same bits as csrc/patch/plan_team.h.

Which random words a family takes is said in csrc/patch/plan.h. Families of blocks loop over the
samples, and look at the step and the ids: on a GPU that waits for it.
"""

import itertools
import math

import torch
from torch import Tensor

from fastssl._random import Purpose, exp_, philox, words_of
from fastssl.ops.patch.plan import MaskPlan

_SPOTS, _ATTEMPTS, _WORD = 1 << 26, 1 << 27, 0xFFFFFFFF
TRIES = 20  # at a context, before a target may overlap it


def random(sample_ids, lengths, step, step_value, seed, grid, cell, keep, ordered):
    """(shuffle, restore, mask): cells of patches ranked by random words; see schema_plans.py."""
    cells = [n // c for n, c in zip(grid, cell, strict=True)]
    count, device = math.prod(cells), sample_ids.device
    step = torch.tensor(step_value, device=device) if step is None else step.to(torch.int64)
    blocks = torch.arange((count + 3) // 4, device=device)
    words = words_of(seed, step, sample_ids.unsqueeze(1), Purpose.MASK, blocks)  # [4, B, blocks]
    order = words.permute(1, 2, 0).flatten(1)[:, :count].argsort(dim=1, stable=True)
    limit = keep if lengths is None else lengths.unsqueeze(1)
    plan = MaskPlan.from_order(order, 0)
    removed = plan.ids_restore >= limit
    if math.prod(cell) == 1 and not ordered:
        return plan.ids_shuffle, plan.ids_restore, removed
    removed = removed.view(-1, *cells)
    for axis, size in enumerate(cell, 1):
        removed = removed.repeat_interleave(size, axis)
    return _in_raster_order(removed.flatten(1))[:3]


def blocks(
    sample_ids, counts, ratios, probability, step, step_value, seed, grid, least, most, aspect,
    exact, roll,
):  # fmt: skip
    """(shuffle, restore, mask, lengths) of rectangles that are removed; see schema_plans.py."""
    taken = torch.zeros(len(sample_ids), *grid, dtype=torch.bool)
    length, ranges = math.prod(grid), list(zip(ratios[::2], ratios[1::2], strict=True))
    for b, words in enumerate(_samples(sample_ids, step, step_value, seed)):
        gate, pick, part, _ = words(0)
        if counts is not None:
            count = min(max(int(counts[b]), 0), length)
        else:
            low, high = ranges[_below(pick, len(ranges))]
            count = int(length * _between(low, high, part))
            count = count if _unit(gate) < probability else 0
        done = _add_blocks(taken[b], words, count, least, most, aspect)
        for i in range(count - done if exact else 0):
            free = (~taken[b]).flatten().nonzero().flatten()
            spot = free[_below(words(_SPOTS + i // 4)[i % 4], len(free))]
            taken[b].view(-1)[spot] = True
        if roll:
            taken[b] = _rolled(taken[b], words)
    return tuple(x.to(sample_ids.device) for x in _in_raster_order(taken.flatten(1)))


def _add_blocks(taken: Tensor, words, count: int, least: int, most: int, aspect) -> int:
    """BEiT's loop: rectangles until `count` patches are taken or ten attempts in a row add none."""
    rows, columns = taken.shape
    numbers, done = itertools.count(), 0
    while done < count:
        left, added = min(count - done, most), 0
        for _ in range(10):
            area, shape, down, across = words(_ATTEMPTS + next(numbers))
            area, shape = _between(least, left, area), _exp(_between(*aspect, shape))
            height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if height >= rows or width >= columns:
                continue
            top, start = _below(down, rows - height + 1), _below(across, columns - width + 1)
            place = taken[top : top + height, start : start + width]
            added = place.numel() - int(place.sum())
            if 0 < added <= left:
                place.fill_(True)
                break
            added = 0
        if not added:
            break
        done += added
    return done


def inverse_block(sample_ids, step, step_value, seed, grid, keep, aspect, roll):
    """(shuffle, restore, mask) of one rectangle that is kept; see schema_plans.py."""
    rows, columns = grid
    mask = torch.ones(len(sample_ids), rows, columns, dtype=torch.bool)
    for b, words in enumerate(_samples(sample_ids, step, step_value, seed)):
        shape, down, across, _ = words(0)
        shape = _exp(_between(*aspect, shape))
        height = min(math.ceil(math.sqrt(keep * shape)), rows)
        width = min(math.ceil(math.sqrt(keep / shape)), columns)
        while height * width < keep:
            height, width = (height + 1, width) if height < rows else (height, width + 1)
        top, left = _below(down, rows - height + 1), _below(across, columns - width + 1)
        inside = torch.arange(height * width).view(height, width) < keep
        mask[b, top : top + height, left : left + width] = ~inside
        if roll:
            mask[b] = _rolled(mask[b], words)
    return tuple(x.to(sample_ids.device) for x in _in_raster_order(mask.flatten(1))[:3])


def multiblock(
    sample_ids, step, step_value, seed, grid, context, target, targets, min_keep, allow_overlap,
    inclusive,
):  # fmt: skip
    """(target_ids, shuffle, restore, mask, lengths) of I-JEPA's blocks; see schema_plans.py."""
    patches = torch.arange(math.prod(grid)).view(*grid)
    kept = torch.zeros(len(sample_ids), *grid, dtype=torch.bool)
    ids = torch.empty(len(sample_ids), targets, math.prod(target), dtype=torch.int64)

    def place(size, block):
        free = [n - s + 1 if inclusive else max(n - s, 1) for n, s in zip(grid, size, strict=True)]
        top, left = (_below(word, n) for word, n in zip(block[:2], free, strict=True))
        return slice(top, top + size[0]), slice(left, left + size[1])

    for b, words in enumerate(_samples(sample_ids, step, step_value, seed)):
        places = [place(target, words(_SPOTS + t)) for t in range(targets)]
        for t, where in enumerate(places):
            ids[b, t] = patches[where].flatten()
        numbers = itertools.count()
        for respected in range(0 if allow_overlap else targets, -1, -1):
            for _ in range(TRIES):
                kept[b] = False
                kept[b][place(context, words(_ATTEMPTS + next(numbers)))] = True
                for where in places[:respected]:
                    kept[b][where] = False
                if fits := int(kept[b].sum()) > min_keep or respected == 0:
                    break
            if fits:
                break
    found = (ids, *_in_raster_order(~kept.flatten(1)))
    return tuple(x.to(sample_ids.device) for x in found)


def _samples(sample_ids, step, step_value, seed):
    """For each sample, the function from the number of a block to its four random words."""
    step = step_value if step is None else int(step)
    for sample in sample_ids.tolist():
        counter = [sample & _WORD, sample >> 32 & _WORD, step & _WORD]

        def words(block: int, counter=counter) -> list[int]:
            last = int(Purpose.MASK) << 28 | block
            return philox([*counter, last], (seed & _WORD, seed >> 32 & _WORD))

        yield words


def _unit(word: int) -> float:
    return word * 2.0**-32


def _below(word: int, count: int) -> int:
    return word * count >> 32


def _between(low: float, high: float, word: int) -> float:
    return low + (high - low) * _unit(word)


def _exp(x: float) -> float:
    return exp_(torch.tensor(x, dtype=torch.float64)).item()


def _rolled(mask: Tensor, words) -> Tensor:
    shifts = [_below(word, n) for word, n in zip(words(1)[:2], mask.shape, strict=True)]
    return mask.roll(shifts, (0, 1))


def _in_raster_order(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(shuffle, restore, mask, lengths), kept and removed patches each in raster order."""
    plan = MaskPlan.from_mask(mask)
    return plan.ids_shuffle, plan.ids_restore, plan.mask, plan.keep_lengths

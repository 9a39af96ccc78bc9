"""The statistics of this rank's rows against all ranks' columns.

A block of pairs gives the statistics of its rows and, in the same pass, those of its columns. Where
both are wanted a pair is computed once, and what belongs to another rank's rows is sent to it: four
numbers a row.
"""

import torch
from torch import Tensor

from fastssl.ops.contrast.block import columns_side, facing, swapped
from fastssl.ops.contrast.merge import merged, with_the_rest
from fastssl.ops.contrast.pairs import BEST, NEGATIVES, PAIRED, POSITIVE, POSITIVES, ROWS, Pairs
from fastssl.ops.contrast.plan import Plan


def statistics(p: Pairs, raw, plan: Plan, kept) -> tuple[Tensor, Tensor]:
    """Of this rank's rows and, where they are asked for, columns; `kept`: what was gathered."""
    found = [None, p.x.new_zeros(ROWS, 0, dtype=torch.float64)]
    # A count of negatives above a threshold and a sum over positives know the row before the pass.
    if p.metrics or p.kind == PAIRED or (p.y is not None and not p.columns):
        found[0] = _one_sided(p, raw, plan, plan.columns, kept)
        if p.columns:
            found[1] = _one_sided(swapped(p), raw, plan, plan.rows, None)
    elif kept is None:
        _ring(found, p, raw, plan)
    else:
        _gathered(found, p, raw, plan, kept)
    return tuple(found)


def _one_sided(p: Pairs, raw, plan: Plan, sizes: list[int], kept) -> Tensor:
    matrix, labels, _ = columns_side(p)
    side = [matrix, labels, None]
    found, here = None, []
    for start, (y, labels, _, _) in plan.blocks(side, sizes, kept):
        q = facing(p, start, y, labels)
        if p.metrics and p.threshold is None and found is not None:
            q = q._replace(threshold=found[BEST])  # the partner is among this rank's own columns
        one, _ = raw(*q)
        here.append(one[NEGATIVES])
        found = merged(p.kind, found, one)
    if p.kind != PAIRED or len(here) == 1:
        return found
    # A second trip: a positive meets all negatives, which no rank knew during the first.
    found[[POSITIVE, POSITIVES]] = 0
    blocks = zip(here, plan.blocks(side, sizes), strict=True)
    for negatives, (start, (y, labels, _, _)) in blocks:
        one, _ = raw(*with_the_rest(facing(p, start, y, labels), found[NEGATIVES], negatives))
        found[[POSITIVE, POSITIVES]] += one[[POSITIVE, POSITIVES]]
    return found


def _ring(found: list, p: Pairs, raw, plan: Plan) -> None:
    """Where y is None half the way round is enough: the other half of the ranks come by here."""
    ranks, symmetric = plan.ranks, p.y is None
    steps = ranks.world // 2 + 1 if symmetric else ranks.world
    answer = None

    def settle():
        if answer is not None:
            found[not symmetric] = merged(p.kind, found[not symmetric], answer().T)

    for step, (y, labels, window) in enumerate(ranks.around(columns_side(p), plan.columns, steps)):
        # Two ranks opposite each other meet twice: each computes its own rows.
        crossed = not symmetric or (step > 0 and 2 * step != ranks.world)
        one, theirs = raw(*facing(p, None if step else 0, y, labels, window, crossed))
        found[0] = merged(p.kind, found[0], one)
        if step and crossed:
            settle()
            answer = ranks.exchange(theirs.T.contiguous(), step, len(p.x if symmetric else p.y))
        elif crossed:
            found[1] = theirs
    settle()


def _gathered(found: list, p: Pairs, raw, plan: Plan, kept) -> None:
    """All at once; where y is None, against this rank's rows and those of half of the others."""
    ranks, sizes = plan.ranks, plan.columns
    outgoing, senders = list(sizes), list(range(ranks.world))
    if p.y is not None:
        found[0], theirs = raw(*facing(p, plan.start(sizes), *kept, True))
    else:
        half, opposite = (ranks.world - 1) // 2, (ranks.rank + ranks.world // 2) % ranks.world
        senders = [(ranks.rank + step) % ranks.world for step in range(1, half + 1)]
        receivers = [(ranks.rank - step) % ranks.world for step in range(1, half + 1)]
        outgoing = [n if rank in receivers else 0 for rank, n in enumerate(sizes)]
        found[0], _ = raw(*p)
        pieces = []
        for first, last in _ranges(receivers):
            one, piece = raw(*facing(p, None, *plan.cut(kept, sizes, first, last), True))
            found[0] = merged(p.kind, found[0], one)
            pieces.append(piece)
        if ranks.world % 2 == 0:
            one, _ = raw(*facing(p, None, *plan.cut(kept, sizes, opposite, opposite + 1)))
            found[0] = merged(p.kind, found[0], one)
        if not pieces:
            return
        theirs = torch.cat(pieces, 1)
    mine, target = sizes[ranks.rank], int(p.y is not None)
    total = None if target else found[0]
    for answer in ranks.deliver(theirs.T.contiguous(), outgoing, senders, mine).split(mine):
        total = merged(p.kind, total, answer.T)
    found[target] = total


def _ranges(ranks: list[int]) -> list[tuple[int, int]]:
    """Ranks that follow each other, the first after the last, as at most two ranges in order."""
    found = []
    for rank in sorted(ranks):
        if found and found[-1][1] == rank:
            found[-1][1] = rank + 1
        else:
            found.append([rank, rank + 1])
    return [tuple(pair) for pair in found]

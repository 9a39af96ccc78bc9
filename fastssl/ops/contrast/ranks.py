"""The ranks of a process group, and how rows get from one to another.

What travels has rows first, and goes as bytes: no backend needs to know its dtype.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

#: Its name from torch 2.13 on, which warns of the other.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Ranks:
    """This process among those of its group."""

    def __init__(self, group, device: torch.device):
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"process_group: got {group!r}, must be a torch.distributed.ProcessGroup that this "
                "rank belongs to"
            )
        self.group, self.device = group, device
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)

    def integers(self, mine: Tensor) -> list[list[int]]:
        """Every rank's int64 numbers, as many of them on each."""
        every = mine.new_empty(self.world * len(mine))
        _all_gather(every, mine, group=self.group)
        return every.view(self.world, -1).tolist()

    def gather(self, tensors: list[Tensor | None], sizes: list[int]) -> list[Tensor | None]:
        """All ranks' rows, rank after rank; rank r has sizes[r] of them."""
        most, found, works = max(sizes), [], []
        for x in tensors:
            if x is None:
                found.append(None)
                continue
            padded = x.contiguous()
            if len(x) < most:
                padded = torch.cat([padded, x.new_zeros(most - len(x), *x.shape[1:])])
            every = x.new_empty(self.world * most, *x.shape[1:])
            works.append(
                _all_gather(_bytes(every), _bytes(padded), group=self.group, async_op=True)
            )
            found.append(every)
        for work in works:
            work.wait()
        if min(sizes) == most:
            return found
        return [
            None if every is None else torch.cat(_trimmed(every.split(most), sizes))
            for every in found
        ]

    def around(self, mine: list[Tensor | None], sizes: list[int]) -> Iterator[list[Tensor | None]]:
        """This rank's tensors, then those of the rank before it, and so on round the ring.

        While the caller works on some, the next ones come in: memory for two ranks' rows.
        """
        here = [None if x is None else x.contiguous() for x in mine]
        for step in range(1, self.world + 1):
            if step == self.world:
                yield here
                return
            n = sizes[(self.rank - step) % self.world]
            coming = [None if x is None else x.new_empty(n, *x.shape[1:]) for x in here]
            works = self._pass_on(here, coming)
            yield here
            for work in works:
                work.wait()
            here = coming

    def _pass_on(self, going: list[Tensor | None], coming: list[Tensor | None]) -> list:
        after = dist.get_global_rank(self.group, (self.rank + 1) % self.world)
        before = dist.get_global_rank(self.group, (self.rank - 1) % self.world)
        operations = []
        for tag, (out, into) in enumerate(zip(going, coming, strict=True)):
            if out is not None:
                operations += [
                    dist.P2POp(dist.isend, _bytes(out), after, self.group, tag),
                    dist.P2POp(dist.irecv, _bytes(into), before, self.group, tag),
                ]
        return dist.batch_isend_irecv(operations)


def _bytes(x: Tensor) -> Tensor:
    return x.detach().view(torch.uint8)


def _trimmed(blocks, sizes) -> list[Tensor]:
    return [block[:n] for block, n in zip(blocks, sizes, strict=True)]

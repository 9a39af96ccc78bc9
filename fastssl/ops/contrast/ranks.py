"""The ranks of a process group, and how rows get from one to another.

What travels has rows first, and goes as bytes: no backend needs to know its dtype.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

#: Its name from torch 2.13 on, which warns of the other.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

#: Its messages are told from those that go round.
_ANSWER = 16


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

    def around(self, mine, sizes: list[int], steps: int = 0) -> Iterator[list[Tensor | None]]:
        """This rank's tensors, then those of the rank before it, and so on: `steps` ranks, or all.

        While the caller works on some, the next ones come in: memory for two ranks' rows.
        """
        here = [None if x is None else x.contiguous() for x in mine]
        for step in range(1, steps or self.world):
            n = sizes[(self.rank - step) % self.world]
            coming = [None if x is None else x.new_empty(n, *x.shape[1:]) for x in here]
            works = self._send_and_receive(here, coming, 1, -1, 0)
            yield here
            for work in works:
                work.wait()
            here = coming
        yield here

    def exchange(self, theirs: Tensor, step: int, n: int) -> Callable[[], Tensor]:
        """Sends to the rank `step` before this, and receives n rows from the one `step` after it.

        The function that is returned waits for them.
        """
        mine = theirs.new_empty(n, *theirs.shape[1:])
        works = self._send_and_receive([theirs], [mine], -step, step, _ANSWER)

        def wait() -> Tensor:
            for work in works:
                work.wait()
            return mine

        return wait

    def deliver(self, rows: Tensor, sizes: list[int], senders: list[int], n: int) -> Tensor:
        """sizes[r] of the rows go to rank r; n come from each of the senders, in order of ranks."""
        found = rows.new_empty(n * len(senders), *rows.shape[1:])
        expected = [n if rank in senders else 0 for rank in range(self.world)]
        dist.all_to_all_single(found, rows, expected, sizes, group=self.group)
        return found

    def _send_and_receive(self, going, coming, to: int, source: int, tag: int) -> list:
        """`to` and `source` count from this rank."""
        there, whence = (
            dist.get_global_rank(self.group, (self.rank + step) % self.world)
            for step in (to, source)
        )
        operations = []
        for k, (out, into) in enumerate(zip(going, coming, strict=True), tag):
            if out is not None:
                operations += [
                    dist.P2POp(dist.isend, _bytes(out), there, self.group, k),
                    dist.P2POp(dist.irecv, _bytes(into), whence, self.group, k),
                ]
        return dist.batch_isend_irecv(operations)


def _bytes(x: Tensor) -> Tensor:
    return x.detach().view(torch.uint8)


def _trimmed(blocks, sizes) -> list[Tensor]:
    return [block[:n] for block, n in zip(blocks, sizes, strict=True)]

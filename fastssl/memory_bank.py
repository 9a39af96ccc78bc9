"""A memory bank of keys on the device, read by a loss without being copied.

A loss keeps the rows that it read for its backward pass; nothing may be written over them before.
The bank is therefore a window that moves through a longer piece of memory. A batch of N rows is
written behind the window, where nobody reads, and the window moves on by N; at the end of the
memory its rows go to the beginning of a new piece. That copies K rows once in K / (4 N) steps, so 4
N rows a step, not K, and needs not know who reads: any number of losses before one backward pass,
or of backward passes, find what they have read.
"""

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl._checks import FLOATING, checked_bool, checked_floating, checked_integer
from fastssl.ops.nt_xent.reference import normalize_rows


class MemoryBank(nn.Module):
    """The keys of the last batches, first in, first out: the negatives of MoCo.

    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020.

        bank = fastssl.MemoryBank(65536, 128)
        loss = fastssl.info_nce(query, key, bank(key), temperature=0.2)  # read, then enqueue

    Every batch replaces as many of the oldest rows, whether or not K is a multiple of its length;
    of a batch larger than the bank, the last K rows are taken. Nothing waits for a device. The bank
    goes where its batches are and takes on their dtype, unless `dtype` is given: bfloat16 keys are
    kept in bfloat16. Where `dtype` says otherwise, rows are converted at each read.

    What was read does not change when batches are enqueued, and may be part of any number of
    graphs. Compiled by torch.compile, enqueueing copies the bank; while a CUDA graph is captured,
    where addresses are fixed, reading copies it and enqueueing moves its rows.

    Args:
        size: how many rows, K.
        dim: their width D; None: that of the first batch.
        normalize: divide keys by their Euclidean norm as they are enqueued.
        dtype: of the rows; None: that of the batch enqueued last, float32 at first.
        device: where the rows are at first.
        persistent: whether the rows are part of `state_dict`, as "rows".
        process_group: a torch.distributed group whose ranks' batches, of equal size, are all
            enqueued by every rank.
        gather_distributed: the same with the default group, if there is one when a batch comes.
        generator: draws the random unit rows that the bank starts with; None: torch's.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `size` or `dim` is less than 1.
    """

    def __init__(
        self,
        size: int,
        dim: int | None = None,
        *,
        normalize: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        persistent: bool = True,
        process_group=None,
        gather_distributed: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self._length = checked_integer("size", size, 1)
        self.normalize = checked_bool("normalize", normalize)
        self.gather_distributed = checked_bool("gather_distributed", gather_distributed)
        if dtype is not None and dtype not in FLOATING:
            raise TypeError(f"dtype: got {dtype}, must be float16, bfloat16, float32 or float64")
        self.dtype = dtype
        self.process_group = process_group
        self._generator = generator if dim is None else None
        #: What `rows` is a window of; None: they fill their memory.
        self._memory: Tensor | None = None
        rows = torch.empty(size, 0)
        if dim is not None:
            rows = _random_rows(size, checked_integer("dim", dim, 1), generator)
        #: [K, D], the oldest first; D is 0 before the first batch where it was not given.
        self.rows: Tensor
        self.register_buffer("rows", rows.to(device=device, dtype=dtype), persistent=persistent)

    def forward(self, keys: Tensor | None = None) -> Tensor:
        """The rows as they are, [K, D], in the dtype of `keys`, which are enqueued then.

        Args:
            keys: [N, D], or None to read only.

        Raises:
            TypeError: `keys` is no floating-point tensor.
            ValueError: `keys` is not [N, D].
        """
        if keys is None:
            return self.rows.clone() if self._captured() else self.rows
        rows = self.rows_for(keys)
        self.enqueue(keys)
        return rows

    def rows_for(self, batch: Tensor) -> Tensor:
        """The rows, [K, D], on the device and in the dtype of a batch [N, D]."""
        self._meet(batch)
        rows = self.rows.to(batch.dtype)
        return rows.clone() if rows is self.rows and self._captured() else rows

    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest rows by `keys`, [N, D]. They get no gradient.

        Raises:
            TypeError: `keys` is no floating-point tensor.
            ValueError: `keys` is not [N, D].
        """
        self._meet(keys)
        # Rows made in inference mode could not be part of a graph later.
        with torch.inference_mode(False), torch.no_grad():
            keys = keys.detach()
            if self.normalize:
                keys = normalize_rows(keys).to(keys.dtype)
            keys = self._taken(_gathered(keys, self.process_group, self.gather_distributed))
            self._append(keys if self.dtype is None else keys.to(self.dtype))

    @property
    def size(self) -> int:
        """How many rows there are."""
        return self._length

    def __len__(self) -> int:
        return self._length

    def extra_repr(self) -> str:
        """The arguments, as `repr` shows them."""
        return f"size={self.size}, dim={self.rows.shape[1] or None}"

    def _taken(self, keys: Tensor) -> Tensor:
        """Which rows of a batch are enqueued."""
        return keys[-self._length :]

    def _append(self, keys: Tensor) -> None:
        size, n, rows = self._length, len(keys), self.rows
        if self._captured():
            rows.copy_(torch.cat([rows[n:], keys]))
            return
        if torch.compiler.is_compiling():
            # Not in place: a compiled backward pass may read its inputs again, instead of a copy.
            self.rows = torch.cat([rows[n:].to(keys.dtype), keys])
            return
        memory, start = self._memory, self._start()
        if start is None or start + size + n > len(memory) or memory.dtype != keys.dtype:
            memory = keys.new_empty(size + max(size // 4, n), keys.shape[1])
            memory[: size - n].copy_(rows[n:])
            self._memory, start = memory, -n
        memory[start + size : start + size + n].copy_(keys)
        # .data: versions are counted anew, since what earlier windows show has not been written to.
        self.rows = memory.data[start + n : start + n + size]

    def _start(self) -> int | None:
        """Where in the memory the rows begin; None where they are not part of it (any more)."""
        memory, rows = self._memory, self.rows
        if (
            memory is None
            or memory.untyped_storage().data_ptr() != rows.untyped_storage().data_ptr()
        ):
            return None
        return rows.storage_offset() // rows.shape[1]

    def _captured(self) -> bool:
        """Whether a CUDA graph is recorded, where addresses are fixed."""
        if torch.compiler.is_compiling() or not self.rows.is_cuda:
            return False
        return torch.cuda.is_current_stream_capturing()

    def _meet(self, batch: Tensor) -> None:
        """Check a batch, go to its device, and draw the rows where their width was not known."""
        checked_floating("keys", batch, 2, "[N, D]")
        width = self.rows.shape[1]
        if width not in (0, batch.shape[1]):
            raise ValueError(f"keys: got shape {tuple(batch.shape)}, must be [N, {width}]")
        if width == 0:
            with torch.inference_mode(False), torch.no_grad():
                rows = _random_rows(self._length, batch.shape[1], self._generator)
                self.rows = rows.to(device=batch.device, dtype=self.dtype or batch.dtype)
                self._generator = None
        elif self.rows.device != batch.device:
            with torch.inference_mode(False), torch.no_grad():
                self.rows = self.rows.to(batch.device)

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        rows = state_dict.get(f"{prefix}rows")
        if isinstance(rows, Tensor) and self.rows.shape[1] == 0 and rows.shape[0] == self._length:
            self.rows = self.rows.new_empty(rows.shape, dtype=self.dtype or rows.dtype)
        else:  # a graph may hold the present ones
            self.rows = self.rows.clone()
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __getstate__(self):
        buffers = {**self._buffers, "rows": self.rows.clone()}
        return {**self.__dict__, "_buffers": buffers, "_memory": None}


def parsed_size(size: int | Sequence[int]) -> tuple[int, int | None]:
    """How many rows and how wide (None: not said), of a size given as K or as (K, D).

    Raises:
        ValueError: there are more numbers, or one is negative.
    """
    sizes = (size,) if isinstance(size, int) else tuple(size)
    if any(s < 0 for s in sizes):
        raise ValueError(f"Illegal memory bank size {size}, all entries must be non-negative.")
    if not sizes or len(sizes) > 2:
        raise ValueError(f"Illegal memory bank size {size}, must be 0 or (rows, dim).")
    if len(sizes) == 1 and sizes[0] > 0:
        warnings.warn(
            f"Memory bank size 'size={size}' does not specify feature dimension: that of the first "
            f"batch is taken. 'size=({sizes[0]}, dim)' says it.",
            UserWarning,
            stacklevel=4,
        )
    return sizes[0], sizes[1] if len(sizes) == 2 else None


def group_of(process_group, gather_distributed: bool):
    """The group given, or the default one if asked for and there; None for a single process.

    Raises:
        ValueError: this process is not part of the group.
    """
    if process_group is None and not (gather_distributed and torch.distributed.is_initialized()):
        return None
    group = torch.distributed.group.WORLD if process_group is None else process_group
    world = torch.distributed.get_world_size(group)
    if world < 1:
        raise ValueError("process_group: this process must be part of it")
    return group if world > 1 else None


def _gathered(keys: Tensor, process_group, gather_distributed: bool) -> Tensor:
    """The batches of all ranks, in their order."""
    group = group_of(process_group, gather_distributed)
    if group is None:
        return keys
    keys = keys.contiguous()
    batches = [torch.empty_like(keys) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(batches, keys, group=group)
    return torch.cat(batches)


def _random_rows(size: int, dim: int, generator: torch.Generator | None) -> Tensor:
    return F.normalize(torch.randn(size, dim, generator=generator), dim=1)

"""lightly's memory bank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.memory_bank import MemoryBank, parsed_size


class MemoryBankModule(MemoryBank):
    """lightly's memory bank over `fastssl.MemoryBank`: `forward` returns its argument and the rows.

    Batches are enqueued as they are. A batch that reaches the end of the bank is cut there, and the
    rest dropped; the next one starts at the first row.

    Args:
        size: (number of rows, dim), or 0 for no bank. A number alone leaves the dimension to the
            first batch, and warns.
        gather_distributed: enqueue the batches of all ranks.
        feature_dim_first: return rows as [dim, number of rows].

    Raises:
        ValueError: a size is negative, or has more than two numbers.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        gather_distributed: bool = False,
        feature_dim_first: bool = True,
    ):
        rows, dim = parsed_size(size)
        # Without a bank, one row of nothing.
        super().__init__(
            max(rows, 1),
            dim if rows else None,
            normalize=False,
            persistent=False,
            gather_distributed=gather_distributed,
        )
        self._size = (rows,) if dim is None else (rows, dim)
        self.feature_dim_first = feature_dim_first
        self._position = 0

    @property
    def size(self) -> tuple[int, ...]:
        """(number of rows, dim), or (number of rows,) where only that was given."""
        return self._size

    def __len__(self) -> int:
        return self._size[0]

    @property
    def bank(self) -> Tensor:
        """[size, dim] in lightly's order: the row to be overwritten next is number `bank_ptr`."""
        return self.rows.roll(self._position, 0)

    @bank.setter
    def bank(self, rows: Tensor) -> None:
        self.rows = rows.detach().roll(-self._position, 0)

    @property
    def bank_ptr(self) -> Tensor:
        """The row to be overwritten next, int64 [1]."""
        return torch.tensor([self._position])

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`output` and the rows as they are before it is enqueued.

        Args:
            output: [N, dim].
            labels: ignored.
            update: whether to enqueue `output`.

        Returns:
            `output`, and None without a bank, or a copy of the rows, [dim, size], or [size, dim]
            without `feature_dim_first`.
        """
        if len(self) == 0:
            return output, None
        self._meet(output)
        bank = self.bank
        if update:
            self.enqueue(output)
        return output, bank.T if self.feature_dim_first else bank

    @torch.compiler.disable
    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest rows by `keys`, [N, dim], up to the end of the bank."""
        super().enqueue(keys)

    def _taken(self, keys: Tensor) -> Tensor:
        end = self._position + len(keys)
        keys = keys[: len(self) - self._position]
        self._position = 0 if end >= len(self) else end
        return keys

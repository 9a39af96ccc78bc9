"""The batches of an epoch: images and their sample ids, where the training is.

Images in memory are kept on the device and indexed there; others are read by processes that
are ahead of the training.
"""

import time
from collections.abc import Iterator

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from fastssl.train._seeds import derived
from fastssl.train.config import Config
from fastssl.train.errors import UsageError


class Feed:
    """Batches of a split's inputs for one process; counts the time in which it was waited for.

    Args:
        inputs: see `fastssl.train.data.Split`.
        config: gives batch size, seed and the number of reading processes.
        device: where batches are wanted.
        rank: number of this process.
        ranks: how many there are; each gets its part of every batch.

    Attributes:
        waited: seconds since the last `reset` in which the training had nothing to do.
    """

    def __init__(self, inputs, config: Config, device: torch.device, rank: int, ranks: int):
        self.config, self.device, self.rank, self.ranks = config, device, rank, ranks
        self.count, self.waited = len(inputs), 0.0
        self.resident = isinstance(inputs, Tensor)
        self.inputs = inputs.to(device) if self.resident else inputs

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, sample ids) of every batch of an epoch, counted from 0; a rest is left out."""
        batches = iter(self._resident(epoch) if self.resident else self._read(epoch))
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _ids(self, epoch: int) -> list[Tensor]:
        size = self.config.batch_size
        generator = Generator().manual_seed(derived(self.config.seed, epoch))
        order = torch.randperm(self.count, generator=generator)
        whole = order[: self.count // size * size].split(size)
        return [batch.chunk(self.ranks)[self.rank] for batch in whole]

    def _resident(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        # All at once: each copy to a GPU would wait for the steps before it.
        for ids in torch.stack(self._ids(epoch)).to(self.device):
            yield self.inputs[ids], ids

    def _read(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        pin = self.device.type == "cuda"
        loader = DataLoader(
            _Reader(self.inputs),
            batch_size=None,
            sampler=self._ids(epoch),
            num_workers=self.config.workers,
            pin_memory=pin,
        )
        for inputs, ids in loader:
            if isinstance(inputs, UsageError):
                raise inputs
            yield inputs.to(self.device, non_blocking=pin), ids.to(self.device, non_blocking=pin)


class _Reader(Dataset):
    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, ids: Tensor) -> tuple[Tensor | UsageError, Tensor]:
        try:
            return self.inputs[ids], ids
        # Raised here, it would reach the reader of the message as a worker's traceback.
        except UsageError as error:
            return error, ids

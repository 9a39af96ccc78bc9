"""metrics.jsonl: one line for each step and one for each epoch."""

import json
import math
import time
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from fastssl.train.errors import UsageError
from fastssl.train.progress import Display

#: Steps between two readings of the loss, because reading makes the host wait for the device.
READ_EVERY = 10


class Metrics:
    """Writes the metrics of a run and feeds its display; a context manager.

    Args:
        fabric: the processes over which scalars are averaged.
        path: of metrics.jsonl, appended to by the first process.
        batch_size: images per step, over all processes.
        display: gets loss and speed.
    """

    def __init__(self, fabric: Fabric, path: Path, batch_size: int, display: Display):
        self.fabric, self.path = fabric, path
        self.batch_size, self.display = batch_size, display
        self.pending: list[dict] = []
        self.values: list[Tensor] = []
        self.losses: list[float] = []

    def __enter__(self):
        self.file = self.path.open("a") if self.fabric.is_global_zero else None
        self.read_at = self.epoch_at = time.perf_counter()
        return self

    def __exit__(self, *_):
        if self.file:
            self.file.close()

    def step(self, step: int, epoch: int, lr: float, logs: dict[str, Tensor]) -> None:
        """Takes the scalars of a step; they stay on the device until several are read together."""
        self.names = list(logs)
        self.pending.append({"event": "step", "step": step, "epoch": epoch, "lr": lr})
        self.values.append(torch.stack([value.detach().float() for value in logs.values()]))
        if len(self.pending) == READ_EVERY:
            self._read()

    def epoch(self, step: int, epoch: int) -> None:
        """Writes the summary of an epoch: its mean loss, seconds and images/s."""
        self._read()
        seconds = time.perf_counter() - self.epoch_at
        loss = sum(self.losses) / len(self.losses)
        rate = len(self.losses) * self.batch_size / seconds
        self._write(
            {"event": "epoch", "step": step, "epoch": epoch, "loss": loss, "seconds": seconds}
            | {"images_per_second": rate}
        )
        self.display.epoch(epoch, loss, rate)
        self.losses = []
        self.epoch_at = time.perf_counter()

    def _read(self) -> None:
        if not self.pending:
            return
        values = self.fabric.all_reduce(torch.stack(self.values), reduce_op="mean").tolist()
        now = time.perf_counter()
        rate = len(values) * self.batch_size / (now - self.read_at)
        for line, scalars in zip(self.pending, values, strict=True):
            logs = dict(zip(self.names, scalars, strict=True))
            self._write(line | logs | {"images_per_second": rate})
            self.losses.append(logs["loss"])
            if not math.isfinite(logs["loss"]):
                raise UsageError(
                    f"lr: the loss is {logs['loss']} at step {line['step']}; "
                    f"lower lr, or use precision='32-true'"
                )
        self.display.update(line["step"], self.losses[-1], rate)
        self.pending, self.values, self.read_at = [], [], now

    def _write(self, line: dict) -> None:
        if self.file:
            print(json.dumps(line), file=self.file, flush=True)

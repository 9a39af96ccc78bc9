"""metrics.jsonl, and the same curves as TensorBoard events."""

import json
import math
import time
from contextlib import suppress

import torch
from lightning_fabric import Fabric
from tensorboardX import SummaryWriter
from torch import Tensor

from fastssl.train.errors import UsageError
from fastssl.train.evaluation import collapse
from fastssl.train.feed import Feed
from fastssl.train.files import save
from fastssl.train.folder import RunFolder
from fastssl.train.method import Method
from fastssl.train.progress import Display

#: Steps between two readings of the loss, because reading makes the host wait for the device.
READ_EVERY = 10


class Metrics:
    """Writes the metrics of a run and feeds its display; a context manager.

    Args:
        fabric: the processes over which scalars are averaged.
        folder: gets metrics.jsonl, appended to by the first process, and the events.
        feed: counts how long its batches were waited for.
        method: what is trained; its parameters are saved where the loss is no longer finite.
        display: gets loss and speed.
        step: that the run has taken; events later than that are void.
    """

    def __init__(
        self,
        fabric: Fabric,
        folder: RunFolder,
        feed: Feed,
        method: Method,
        display: Display,
        step: int,
    ):
        self.fabric, self.folder, self.feed, self.method = fabric, folder, feed, method
        self.display, self.started_at = display, step
        self.batch_size = method.config.batch_size
        self.pending: list[dict] = []
        self.values: list[Tensor] = []
        self.losses: list[float] = []
        self.recent: list[tuple[int, Tensor]] = []

    def __enter__(self):
        self.file = self.events = None
        if self.fabric.is_global_zero:
            self.file = self.folder.metrics.open("a")
            self.events = SummaryWriter(
                str(self.folder.path), purge_step=self.started_at + 1, filename_suffix=".fastssl"
            )
        self.restart()
        return self

    def __exit__(self, *_):
        if self.file:
            with suppress(OSError):
                self.file.close()
            if self._events_alive():
                self.events.close()

    def check(self, step: int, epoch: int, sample_ids: Tensor, logs: dict[str, Tensor]) -> None:
        """Stops before a step that would spoil the parameters, where looking costs no waiting.

        On a GPU the loss is seen with the next reading, after the step.

        Raises:
            UsageError: the loss is not finite; what led to it has been written to not-finite.pt.
        """
        self.remember(step, sample_ids)
        if logs["loss"].device.type == "cpu" and not torch.isfinite(logs["loss"]):
            self._stop(step, epoch, logs["loss"].item(), after=step - 1)

    def remember(self, step: int, sample_ids: Tensor) -> None:
        """Keeps the ids of a step's batch until its loss has been read."""
        self.recent = [*self.recent[1 - READ_EVERY :], (step, sample_ids)]

    def step(self, step: int, epoch: int, lr: float, logs: dict[str, Tensor]) -> None:
        """Takes the scalars of a step; they stay on the device until several are read together."""
        self.names = list(logs)
        self.pending.append({"event": "step", "step": step, "epoch": epoch, "lr": lr})
        self.values.append(torch.stack([value.detach().float() for value in logs.values()]))
        if len(self.pending) == READ_EVERY:
            self._read()

    def epoch(self, step: int, epoch: int) -> None:
        """Writes the summary of an epoch: mean loss, seconds, images/s, share of waiting."""
        self._read()
        seconds = time.perf_counter() - self.epoch_at
        loss = sum(self.losses) / len(self.losses)
        rate = len(self.losses) * self.batch_size / seconds
        waiting = (self.feed.waited - self.waited) / seconds
        self._write(
            {"event": "epoch", "step": step, "epoch": epoch, "loss": loss, "seconds": seconds}
            | {"images_per_second": rate, "waiting": waiting}
        )
        self.display.epoch(epoch, loss, rate)
        self.losses = []

    def restart(self) -> None:
        """Starts to measure time: between epochs it goes to other things than training."""
        self.waited = self.feed.waited
        self.epoch_at = self.read_at = time.perf_counter()

    def online(self, step: int, epoch: int, values: dict[str, float]) -> None:
        """Writes what features are worth during training, and warns where they collapse."""
        self._write({"event": "online", "step": step, "epoch": epoch} | values)
        self.display.online(epoch, values, collapse.warning(values, self.method.backbone.features))

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
                self._stop(line["step"], line["epoch"], logs["loss"], after=self.recent[-1][0])
        waiting = (self.feed.waited - self.waited) / (now - self.epoch_at)
        self.display.update(line["step"], self.losses[-1], rate, waiting, self.fabric.device)
        self.pending, self.values, self.read_at = [], [], now

    def _stop(self, step: int, epoch: int, loss: float, after: int) -> None:
        """Writes the batch of the step and the parameters `after` another, and raises."""
        name = self.folder.not_finite
        if self.fabric.global_rank:
            name = name.with_stem(f"{name.stem}-{self.fabric.global_rank}")
        kept = {"step": step, "epoch": epoch, "loss": loss, "sample_ids": dict(self.recent)[step]}
        save(name, kept | {"parameters_after": after, "model": self.method.state_dict()})
        raise UsageError(
            f"lr: the loss is {loss} at step {step}; begin again with a lower lr, or with "
            f"precision='32-true'. {name} holds the ids of its batch and the parameters"
        )

    def _write(self, line: dict) -> None:
        if not self.file:
            return
        try:
            print(json.dumps(line), file=self.file, flush=True)
        except OSError as error:
            where = self.folder.metrics
            raise UsageError(f"out: cannot write {where}: {error.strerror}") from error
        if not self._events_alive():
            raise UsageError(f"out: cannot write TensorBoard's events to {self.folder.path}")
        for name, value in line.items():
            if name not in ("event", "step", "epoch"):
                self.events.add_scalar(f"{line['event']}/{name}", value, line["step"])

    def _events_alive(self) -> bool:
        # tensorboardX writes from a thread; once that has died of a full disk, calls wait for ever.
        return self.events.file_writer.event_writer._worker.is_alive()

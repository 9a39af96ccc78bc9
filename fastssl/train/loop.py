"""The loop that all methods share: batches, steps, metrics and checkpoints, driven by Fabric.

All randomness is a function of the seed and the position in the run, so that a checkpoint needs no
generator states and a resumed run takes exactly the steps of one that was never interrupted.
"""

import math
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Generator, Tensor
from torch.optim.lr_scheduler import LambdaLR

from fastssl.train.config import Config
from fastssl.train.errors import UsageError
from fastssl.train.folder import RunFolder, replacing
from fastssl.train.method import Method
from fastssl.train.metrics import Metrics
from fastssl.train.progress import Display


def train(method: Method, config: Config, images: Tensor, fabric: Fabric, folder: RunFolder):
    """Trains a method in place, from the start or from the folder's checkpoint.

    Args:
        method: the modules to train.
        config: the run's keywords.
        images: uint8 [N, C, H, W].
        fabric: launched.
        folder: prepared; gets metrics.jsonl and checkpoint.pt.

    Raises:
        UsageError: there are fewer images than one batch holds, the loss is no longer finite, or
            the checkpoint is damaged or of a run on other images.
    """
    per_epoch = len(images) // config.batch_size
    if per_epoch == 0:
        raise UsageError(
            f"batch_size: got {config.batch_size}, the data has {len(images)} training images"
        )
    steps = config.epochs * per_epoch
    trained_on = zlib.crc32(images.numpy().tobytes())
    images = images.to(fabric.device)
    optimizer = method.optimizer()
    scheduler = LambdaLR(optimizer, partial(rate_factor, steps=steps, warmup=config.warmup))
    model, optimizer = fabric.setup(method, optimizer)
    model.train()
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "epoch": 0}
    state["images"] = trained_on
    if config.resume:
        _load(fabric, folder.checkpoint, state)
        if state["images"] != trained_on:
            raise UsageError(f"resume: {folder.path} was trained on other images")
    else:
        _save(fabric, folder.checkpoint, state)
    step = state["epoch"] * per_epoch
    if fabric.is_global_zero:
        folder.forget_after(step)
    display = Display(method.name, steps, step, config.epochs, enabled=fabric.is_global_zero)
    with display, Metrics(fabric, folder.metrics, config.batch_size, display) as metrics:
        for epoch in range(state["epoch"], config.epochs):
            for batch in _batches(len(images), config, epoch, fabric):
                batch = batch.to(images.device)
                views = method.views(images[batch], batch, step)
                optimizer.zero_grad()
                logs = method.step(model, views, fabric.backward)
                optimizer.step()
                step += 1
                method.after_step(step / steps)
                metrics.step(step, epoch + 1, scheduler.get_last_lr()[0], logs)
                scheduler.step()
            # Metrics first: resuming drops lines later than the checkpoint, but cannot add any.
            metrics.epoch(step, epoch + 1)
            state["epoch"] = epoch + 1
            _save(fabric, folder.checkpoint, state)


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, then half a cosine to zero."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def _batches(count: int, config: Config, epoch: int, fabric: Fabric):
    # Also torch's own generators, for methods with dropout.
    torch.manual_seed(_seed(config.seed, epoch, fabric.global_rank, 2))
    order = torch.randperm(count, generator=Generator().manual_seed(_seed(config.seed, epoch)))
    for start in range(0, count - config.batch_size + 1, config.batch_size):
        batch = order[start : start + config.batch_size]
        yield batch.chunk(fabric.world_size)[fabric.global_rank]


def _save(fabric: Fabric, path: Path, state: dict) -> None:
    with replacing(path, enabled=fabric.is_global_zero) as temporary:
        fabric.save(temporary, state)
    fabric.barrier()


def _load(fabric: Fabric, path: Path, state: dict) -> None:
    try:
        fabric.load(path, state, weights_only=True)
    # A damaged file raises almost anything.
    except Exception as error:
        raise UsageError(f"resume: {path} is not a checkpoint, or damaged: {error}") from error

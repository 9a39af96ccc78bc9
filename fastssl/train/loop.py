"""The loop that all methods share: batches, steps, metrics and checkpoints, driven by Fabric.

All randomness is a function of the seed and the position in the run, so that a checkpoint needs no
generator states and a resumed run takes exactly the steps of one that was never interrupted.
"""

import math
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fastssl.train import replay
from fastssl.train._seeds import derived
from fastssl.train.config import Config
from fastssl.train.data import Data
from fastssl.train.evaluation import collapse
from fastssl.train.feed import Feed
from fastssl.train.folder import RunFolder
from fastssl.train.method import Method
from fastssl.train.metrics import Metrics
from fastssl.train.plan import steps_per_epoch
from fastssl.train.processes import synchronised
from fastssl.train.progress import Display


def train(method: Method, config: Config, data: Data, fabric: Fabric, folder: RunFolder) -> None:
    """Trains a method in place, from the start or from the folder's checkpoint.

    Args:
        method: the modules to train.
        config: the run's keywords.
        data: of which the training inputs are seen, and, where features are looked at, labels.
        fabric: launched.
        folder: prepared; gets metrics.jsonl and last.ckpt.

    Raises:
        UsageError: the loss is no longer finite, the checkpoint is damaged or of a run on other
            samples, or a step cannot be recorded.
    """
    feed = Feed(data.train.inputs, config, fabric.device, fabric.global_rank, fabric.world_size)
    per_epoch = steps_per_epoch(config, data)
    steps = config.epochs * per_epoch
    plain = method.optimizer()
    if config.cuda_graph:
        replay.make_capturable(plain, fabric.device)
    scheduler = LambdaLR(plain, partial(rate_factor, steps=steps, warmup=config.warmup))
    model, optimizer = fabric.setup(synchronised(method, fabric.device), plain)
    model.train()
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "epoch": 0}
    state["samples"] = trained_on = data.train.fingerprint()
    if config.resume and folder.checkpoints.begun():
        folder.check_samples(folder.read_checkpoint(), trained_on, "resume")
        fabric.load(folder.checkpoints.last, state, weights_only=True)
    else:
        _save(fabric, folder, state)
    step = state["epoch"] * per_epoch
    if fabric.is_global_zero:
        folder.forget_after(step)
        if step < steps:
            folder.forget_results()

    def gradients(inputs: Tensor, sample_ids: Tensor, step: int | Tensor) -> dict[str, Tensor]:
        views = method.views(inputs, sample_ids, step)
        optimizer.zero_grad()
        return method.step(model, views, fabric.backward)

    def whole(inputs: Tensor, sample_ids: Tensor, step: Tensor) -> dict[str, Tensor]:
        logs = gradients(inputs, sample_ids, step)
        optimizer.step()
        return logs

    replayed = None
    if config.cuda_graph:
        replayed = replay.Replayed(whole, plain, replay.CudaGraphs(fabric.device))
    display = Display(method.name, steps, step, config.epochs, enabled=fabric.is_global_zero)
    with display, Metrics(fabric, folder, feed, method, display, step) as metrics:
        for epoch in range(state["epoch"], config.epochs):
            # Torch's own generators, for methods with dropout.
            torch.manual_seed(derived(config.seed, epoch, fabric.global_rank, 2))
            for batch, sample_ids in feed.epoch(epoch):
                if replayed is None:
                    logs = gradients(batch, sample_ids, step)
                    metrics.check(step + 1, epoch + 1, sample_ids, logs)
                    optimizer.step()
                else:
                    logs = replayed(batch, sample_ids, step)
                    metrics.remember(step + 1, sample_ids)
                step += 1
                method.after_step(step / steps)
                metrics.step(step, epoch + 1, scheduler.get_last_lr()[0], logs)
                scheduler.step()
            # Metrics first: resuming drops lines later than the checkpoint, but cannot add any.
            metrics.epoch(step, epoch + 1)
            if config.online and (epoch + 1) % config.online == 0 and fabric.is_global_zero:
                values = collapse.online(method.backbone, data, fabric.device)
                metrics.online(step, epoch + 1, values)
            state["epoch"] = epoch + 1
            _save(fabric, folder, state)
            metrics.restart()


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, then half a cosine to zero."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise))) / 2


def _save(fabric: Fabric, folder: RunFolder, state: dict) -> None:
    with folder.checkpoints.replacing(enabled=fabric.is_global_zero) as temporary:
        fabric.save(temporary, state)
    fabric.barrier()

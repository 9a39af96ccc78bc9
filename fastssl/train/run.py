"""One run from start to end: data, training, evaluation, and the files that it leaves."""

import dataclasses
import inspect
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastssl.train import data as datasets
from fastssl.train import plan, progress, saved
from fastssl.train.backbones import Foreign
from fastssl.train.config import Config
from fastssl.train.data import unread
from fastssl.train.environment import environment
from fastssl.train.errors import UsageError
from fastssl.train.files import replacing, save, write_json
from fastssl.train.folder import RunFolder
from fastssl.train.method import Task
from fastssl.train.methods import find

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from fastssl.train.evaluation import Row


@dataclass(frozen=True)
class Run:
    """What a run leaves.

    Attributes:
        out: its folder.
        backbone: the trained encoder, on the CPU, in evaluation mode.
        rows: the accuracies of `fastssl.train.evaluation.rows`; empty without evaluation, for data
            without classes, and in all processes but the first.
        task: how well the method answers its own question, if it has one and was asked.
    """

    out: Path
    backbone: nn.Module
    rows: "list[Row]"
    task: Task | None


def pretrain(method: str, **keywords) -> Run:
    """Trains an encoder and measures its features.

    Writes to the out folder config.json (all keywords) and environment.json, metrics.jsonl (a line
    for each step and epoch) and the same as TensorBoard events, last.ckpt (after each epoch, in one
    piece) and the one before it, exported.pt (the encoder's state dict), results.json and
    results.md, report.png (loss and maps of the features) and the method's own pictures. On a CPU
    the same keywords and number of threads give the same weights, bit by bit, also where a run was
    killed and resumed. Torch's global generators are seeded anew.

    With `devices` above 1 every process runs the calling script from its start, as under torchrun;
    a script that calls this needs ``if __name__ == "__main__"``.

    Args:
        method: one of `fastssl.train.methods.registered()`, such as "simclr".
        **keywords: the fields of the method's configuration, for SimCLR
            `fastssl.train.methods.simclr.SimCLRConfig`; `fastssl train simclr --help` lists them.

    Raises:
        UsageError: an argument, the out folder or the data is not acceptable; the message begins
            with the name of the argument or file. Raised before any work wherever possible.
    """
    kind = find(method)
    config = kind.Config.from_keywords(keywords, method)
    folder = RunFolder(config.out or Path("out") / f"{method}-{config.data_name}")
    fabric = _fabric(config)
    described = {"method": method, **config.as_json()}
    # The first process alone: it starts the others, which find the folder in use.
    if fabric.is_global_zero and not config.dry_run:
        defaults = {field.name: field.default for field in dataclasses.fields(kind.Config)}
        folder.check(described, defaults)
    data = datasets.load(config.data, config.root, config.limit, config.image_size)
    plan.check(kind, config, data, fabric.world_size, fabric.device)
    if config.dry_run:
        model, untrained = saved.build(kind, config, data)
        progress.note(plan.describe(model, config, data, fabric, folder))
        return Run(folder.path, untrained.eval(), [], None)
    fabric.launch()
    model, untrained = saved.build(kind, config, data)
    # Only now, since a method may refuse the data.
    if fabric.is_global_zero and not (config.resume and folder.config.exists()):
        folder.begin(described, environment(fabric))
    # Heavy to import, and of no use to someone whose arguments are wrong.
    from fastssl.train import loop

    loop.train(model, config, data, fabric, folder)
    rows, task = [], None
    # The other processes are done: nothing below waits for them.
    if fabric.is_global_zero:
        # Evaluated as it will be opened again.
        model.float()
        save(folder.exported, {k: v.cpu() for k, v in _exported(model.backbone).items()})
        opened = saved.Saved(folder, config, data, model.eval(), untrained.eval())
        if config.evaluate:
            rows, task = _evaluate(opened, fabric.device)
        elif not folder.results.exists():
            _write_results(opened, [], None, [])
        unread.note_at_end(data)
    return Run(folder.path, model.backbone.cpu().eval(), rows, task)


def _exported(backbone: nn.Module) -> dict[str, torch.Tensor]:
    # Of another library's model its own names.
    own = backbone.model if isinstance(backbone, Foreign) else backbone
    return own.state_dict()


def _fabric(config: Config) -> "Fabric":
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from torch.nn.parallel import DistributedDataParallel

    from fastssl.train.checkpoints import DirectIO

    # torchrun has started the processes already.
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", config.devices))
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    strategy = "auto"
    if devices * nodes > 1:
        # Every process computes the same buffers, batch norm's statistics and queues of keys.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        strategy = DDPStrategy(**{name: False}, timeout=timedelta(minutes=30))
    try:
        return Fabric(
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=config.precision,
            plugins=[DirectIO()],
        )
    # Fabric has no one class of errors for what this machine cannot do.
    except Exception as error:
        raise UsageError(f"accelerator, devices or precision: {error}") from error


@torch.no_grad()
def _evaluate(run: saved.Saved, device: torch.device) -> "tuple[list[Row], Task | None]":
    from fastssl.train import evaluation, pictures

    data, encoders = run.data, (run.untrained, run.model.backbone)
    features = [evaluation.extract(encoder, data, device) for encoder in encoders]
    rows = evaluation.rows(*encoders, data, device=device, features=features)
    if not rows:
        progress.note(
            f"data: {data.name} has no two classes, so features are drawn but not measured"
        )
    model = run.model.to(device).eval()
    task = model.task(data, device)
    maps = {title: of.test for title, of in zip(("untrained", "pretrained"), features, strict=True)}
    metrics = run.folder.read_metrics()
    pictures.report(run.folder.report, metrics, data, maps, run.config.seed)
    figures = model.pictures(data, device)
    for name, figure in figures.items():
        pictures.save(run.folder.path / f"{name}.png", figure)
    _write_results(run, rows, task, sorted(figures))
    return rows, task


def _write_results(
    run: saved.Saved, rows: "list[Row]", task: Task | None, drawn: list[str]
) -> None:
    from fastssl.train.evaluation import tables

    epochs = [line for line in run.folder.read_metrics() if line["event"] == "epoch"]
    result = {
        "method": run.model.name,
        "data": run.data.name,
        "loss": epochs[-1]["loss"] if epochs else None,
        "seconds_of_training": sum(line["seconds"] for line in epochs),
        "pictures": drawn,
        **tables.as_json(rows, task),
    }
    write_json(run.folder.results, result)
    with replacing(run.folder.markdown) as path:
        path.write_text(tables.markdown(rows, task))

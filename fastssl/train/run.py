"""One run from start to end: data, training, evaluation, and the files that it leaves."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastssl.train import data as datasets
from fastssl.train import progress, saved
from fastssl.train.config import Config
from fastssl.train.data import Data
from fastssl.train.errors import UsageError
from fastssl.train.evaluate import Row
from fastssl.train.folder import RunFolder, replacing, write_json
from fastssl.train.method import Method
from fastssl.train.methods import find


@dataclass(frozen=True)
class Run:
    """What a run leaves.

    Attributes:
        out: its folder.
        backbone: the trained encoder, on the CPU, in evaluation mode.
        rows: the accuracies of `fastssl.train.evaluate.compare`; empty without evaluation, and for
            data without classes.
    """

    out: Path
    backbone: nn.Module
    rows: list[Row]


def pretrain(method: str, **keywords) -> Run:
    """Trains an encoder without labels and measures its features.

    Writes to the out folder config.json (all keywords), metrics.jsonl (a line for each step and
    epoch), checkpoint.pt (after each epoch, in one piece), backbone.pt (the encoder's state dict),
    results.json, report.png (loss and maps of the features) and the method's own pictures. On a CPU
    the same keywords and number of threads give the same weights, bit by bit, also where a run was
    killed and resumed. Torch's global generators are seeded anew.

    Args:
        method: "mae", "simclr" or "simmim".
        **keywords: the fields of the method's configuration, for SimCLR
            `fastssl.train.methods.simclr.SimCLRConfig`; `fastssl train simclr --help` lists them.

    Raises:
        UsageError: an argument, the out folder or the data is not acceptable; the message begins
            with the name of the argument or file. Raised before any work wherever possible.
        OSError: the out folder cannot be written to.
    """
    kind = find(method)
    config = kind.Config.from_keywords(keywords)
    name = config.data
    if name.startswith("folder:"):
        name = Path(name.removeprefix("folder:")).resolve().name
    folder = RunFolder(config.out or Path("out") / f"{method}-{name}")
    # Heavy to import, and of no use to someone whose arguments are wrong.
    from lightning_fabric import Fabric

    from fastssl.train import loop

    try:
        fabric = Fabric(
            accelerator=config.accelerator, devices=config.devices, precision=config.precision
        )
    # Fabric has no one class of errors for what this machine cannot do.
    except Exception as error:
        raise UsageError(f"accelerator, devices or precision: {error}") from error
    described = {"method": method, **config.as_json()}
    # The first process alone: it starts the others, which find the folder in use.
    if fabric.is_global_zero:
        folder.check(described)
    data = datasets.load(config.data, config.root, config.limit, config.image_size)
    if data.kind != kind.wants and (data.kind, kind.wants) != ("captions", "images"):
        raise UsageError(f"data: {method} trains on {kind.wants}, {data.name} has {data.kind}")
    fabric.launch()
    model, untrained = saved.build(kind, config, data)
    # Only now, since a method may refuse the data.
    if fabric.is_global_zero and not config.resume:
        folder.begin(described)
    loop.train(model, config, data.train.inputs, fabric, folder)
    backbone = model.backbone.eval()
    rows, pictures = [], []
    if fabric.is_global_zero:
        with replacing(folder.backbone) as path:
            torch.save({k: v.cpu() for k, v in backbone.state_dict().items()}, path)
        if config.evaluate:
            rows = _evaluate(untrained, backbone, data, fabric.device, config, folder)
            pictures = _draw(model, data, fabric.device, folder)
        _write_results(folder, rows, pictures)
    fabric.barrier()
    return Run(folder.path, backbone.cpu(), rows)


def _evaluate(untrained, backbone, data, device, config: Config, folder: RunFolder) -> list[Row]:
    from fastssl.train import evaluate, report

    features = {
        title: evaluate.extract(encoder, data, device)
        for title, encoder in (("untrained", untrained), ("pretrained", backbone))
    }
    with replacing(folder.picture) as path:
        report.picture(path, folder.read_metrics(), data, features, config.seed)
    if not data.classes:
        progress.note(
            f"data: {data.name} has no two classes, so features are drawn but not measured"
        )
        return []
    return evaluate.compare(features["untrained"], features["pretrained"], data)


@torch.no_grad()
def _draw(model: Method, data: Data, device: torch.device, folder: RunFolder) -> list[str]:
    figures = model.to(device).eval().pictures(data, device)
    for name, figure in figures.items():
        with replacing(folder.path / f"{name}.png") as path:
            figure.savefig(path, format="png", dpi=110)
    return sorted(figures)


def _write_results(folder: RunFolder, rows: list[Row], pictures: list[str]) -> None:
    epochs = [line for line in folder.read_metrics() if line["event"] == "epoch"]
    result = {
        "loss": epochs[-1]["loss"] if epochs else None,
        "seconds_of_training": sum(line["seconds"] for line in epochs),
        "rows": [dataclasses.asdict(row) for row in rows],
        "pictures": pictures,
    }
    write_json(folder.results, result)

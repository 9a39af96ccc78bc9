"""Commands that train: thin layers over `fastssl.train`, with its keywords as flags."""

import dataclasses
import inspect
import sys
import typing
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

# First, because it says what to install where the extra packages are missing.
import fastssl.train  # isort: skip

import torch
import typer
from rich.console import Console

import fastssl.__main__
from fastssl.train import Method, Run, UsageError, open_run, pretrain
from fastssl.train.files import replacing, write_json
from fastssl.train.method import registered

app = typer.Typer(
    help="Self-supervised learning with fused kernels.", no_args_is_help=True, add_completion=False
)
train = typer.Typer(help="Train an encoder without labels.", no_args_is_help=True)
app.add_typer(train, name="train")

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]
RootOption = Annotated[Path | None, typer.Option(help="Where CIFAR is, if not where it was.")]
DataOption = Annotated[
    str | None, typer.Option(help="The data again, such as folder:PATH, if not where it was.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Where to compute, by default on a GPU if there is one.")
]


@app.command()
def info() -> None:
    """Print versions, native libraries, devices, and what runs for each operator."""
    fastssl.__main__.print_info()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to; its last demo is replaced.")] = (
        Path("out/demo")
    ),
    seed: Annotated[int, typer.Option(help="Fixes the whole run.")] = 0,
) -> None:
    """Pretrain SimCLR on handwritten digits and show what it learned.

    Fails if 5 labels per class are not used better with pretraining than without, by more than the
    larger standard deviation over the draws of labels.
    """
    with _one_line_errors():
        run = pretrain("simclr", data="digits", out=out, seed=seed, overwrite=True)
    _show(run)
    print(f"loss and maps of the features: {run.out / 'report.png'}")
    passed, verdict = judge(run)
    Console(highlight=False).print(verdict, soft_wrap=True)
    if not passed:
        raise typer.Exit(1)


def judge(run: Run) -> tuple[bool, str]:
    """Whether pretraining clearly helps at 5 labels per class, and a sentence that says so."""
    from fastssl.train.evaluation import is_clear

    row = next(row for row in run.rows if (row.probe, row.labels) == ("logistic", "5"))
    passed = is_clear(row)
    return passed, (
        f"{'passed' if passed else 'FAILED'}: at 5 labels per class pretraining adds "
        f"{100 * row.gain:.1f} points of accuracy; it must be more than {100 * row.deviation:.1f}, "
        f"the larger standard deviation over the draws"
    )


@app.command("eval")
def evaluate(
    run: RunArgument,
    probes: Annotated[
        str | None,
        typer.Option(help="Of knn-20, knn-200, logistic, linear, finetune; all but the last."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="How many are shown: by default 1,5,10,1%,10%,all, as far as there are."),
    ] = None,
    root: RootOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
) -> None:
    """Measure a run's features beside those of the untrained encoder.

    Numbers are of labels per class, percentages of all; few labels are drawn five times.
    evaluation.json and evaluation.md in the run's folder hold the result.
    """
    from fastssl.train import evaluation
    from fastssl.train.evaluation import tables

    with _one_line_errors():
        saved = open_run(run, root, data)
        where = _device(device)
        listed = (text and [part.strip() for part in text.split(",")] for text in (probes, labels))
        rows = evaluation.evaluate(saved, *listed, device=where)
        with torch.no_grad():
            task = saved.model.to(where).task(saved.data, where)
        write_json(saved.folder.evaluation, tables.as_json(rows, task))
        with replacing(saved.folder.evaluation_markdown) as path:
            path.write_text(tables.markdown(rows, task))
    Console(highlight=False).print(tables.table(rows, task))


@app.command()
def embed(
    run: RunArgument,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to, by default the run's.")
    ] = None,
    root: RootOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
) -> None:
    """Write the features of all samples and their ids to features.npz and features.parquet."""
    from fastssl.train.evaluation import embed as embedding

    with _one_line_errors():
        for path in embedding.embed(open_run(run, root, data), out or run, _device(device)):
            print(f"written to {path}")


@app.command()
def plot(
    run: RunArgument,
    root: RootOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
) -> None:
    """Draw a run: curves, accuracies, maps of features, views, neighbours, its own pictures."""
    from fastssl.train import pictures

    with _one_line_errors():
        for path in pictures.draw(open_run(run, root, data), _device(device)):
            print(f"written to {path}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for compare.md, compare.json and compare.png.")
    ] = None,
) -> None:
    """Print and draw several runs side by side."""
    from fastssl.train.compare import compare as comparison

    with _one_line_errors():
        Console(highlight=False).print(comparison(runs, out).table())


@contextmanager
def _one_line_errors():
    try:
        yield
    except (UsageError, OSError) as error:
        print(f"fastssl: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device: got {name!r}: {error}") from None
    return device


def _show(run: Run) -> None:
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    console = Console(highlight=False, quiet=getattr(rank_zero_only, "rank", 0) != 0)
    if run.rows or run.task:
        from fastssl.train.evaluation.tables import table

        console.print(table(run.rows, run.task))
    console.print(f"written to {run.out}", soft_wrap=True)


def _add_command(name: str, method: type[Method]) -> None:
    """Adds `train NAME`, its flags read off the fields of the method's configuration."""

    def command(context: typer.Context, **keywords) -> None:
        # What is not given is the configuration file's to say.
        given = {
            key: value
            for key, value in keywords.items()
            if context.get_parameter_source(key).name != "DEFAULT"
        }
        with _one_line_errors():
            run = pretrain(name, **given)
        if not given.get("dry_run"):
            _show(run)

    hints = typing.get_type_hints(method.Config)
    kind = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(
        [
            inspect.Parameter("context", kind, annotation=typer.Context),
            *(
                inspect.Parameter(
                    field.name,
                    kind,
                    default=field.default,
                    annotation=Annotated[hints[field.name], _flag(field)],
                )
                for field in dataclasses.fields(method.Config)
            ),
        ]
    )
    # Typer keeps a docstring's line breaks, which were made for another width.
    paragraphs = [" ".join(part.split()) for part in inspect.getdoc(method).split("\n\n")]
    train.command(name, help="\n\n".join(paragraphs))(command)


def _flag(field: dataclasses.Field):
    choices = field.metadata["choices"]
    # A switch that is off by default needs no flag to turn it off.
    names = [f"--{field.name.replace('_', '-')}"] if field.default is False else []
    return typer.Option(
        *names, help=field.metadata["help"], metavar="|".join(choices) if choices else None
    )


for _name, _method in registered().items():
    _add_command(_name, _method)

"""Commands that train: thin layers over `fastssl.train`, with its keywords as flags."""

import dataclasses
import inspect
import sys
import typing
from pathlib import Path
from typing import Annotated

# First, because it says what to install where the extra packages are missing.
import fastssl.train  # isort: skip

import typer
from rich.console import Console

import fastssl.__main__
from fastssl.train import Method, Run, UsageError, pretrain
from fastssl.train.method import registered

app = typer.Typer(
    help="Self-supervised learning with fused kernels.", no_args_is_help=True, add_completion=False
)
train = typer.Typer(help="Train an encoder without labels.", no_args_is_help=True)
app.add_typer(train, name="train")


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
    run = _run("simclr", {"data": "digits", "out": out, "seed": seed, "overwrite": True})
    _show(run)
    passed, verdict = judge(run)
    Console(highlight=False).print(verdict, soft_wrap=True)
    if not passed:
        raise typer.Exit(1)


def judge(run: Run) -> tuple[bool, str]:
    """Whether pretraining clearly helps at 5 labels per class, and a sentence that says so."""
    from fastssl.train.evaluate import is_clear

    row = next(row for row in run.rows if row.labels == 5)
    passed = is_clear(row)
    return passed, (
        f"{'passed' if passed else 'FAILED'}: at 5 labels per class pretraining adds "
        f"{100 * row.gain:.1f} points of accuracy; it must be more than {100 * row.deviation:.1f}, "
        f"the larger standard deviation over the draws"
    )


def _run(method: str, keywords: dict) -> Run:
    try:
        return pretrain(method, **keywords)
    except (UsageError, OSError) as error:
        print(f"fastssl: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _show(run: Run) -> None:
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    console = Console(highlight=False, quiet=getattr(rank_zero_only, "rank", 0) != 0)
    if run.rows:
        from fastssl.train.report import table

        console.print(table(run.rows))
    console.print(f"written to {run.out}", soft_wrap=True)


def _add_command(name: str, method: type[Method]) -> None:
    """Adds `train NAME`, its flags read off the fields of the method's configuration."""

    def command(**keywords) -> None:
        run = _run(name, keywords)
        _show(run)

    hints = typing.get_type_hints(method.Config)
    command.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[hints[field.name], _flag(field)],
            )
            for field in dataclasses.fields(method.Config)
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

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import fastssl
from fastssl import cli
from fastssl.train import Run
from fastssl.train.evaluation import Row, Score, is_clear

EXTRAS = (
    "lightning_fabric", "matplotlib", "pyarrow", "rich", "sklearn", "tensorboardX", "tokenizers",
    "typer", "yaml",
)  # fmt: skip
WITHOUT_EXTRAS = (
    "import runpy, sys; sys.modules.update(dict.fromkeys({blocked!r})); sys.argv[1:] = {args!r}; "
    "runpy.run_module('fastssl', run_name='__main__', alter_sys=True)"
)


def python(*args):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True)


def without(blocked, *args):
    return python("-c", WITHOUT_EXTRAS.format(blocked=list(blocked), args=list(args)))


def test_info_needs_no_extras():
    made = without(EXTRAS, "info")
    assert made.returncode == 0, made.stderr
    for part in (fastssl.__version__, "native libraries", "capability", "operator nt_xent", "auto"):
        assert part in made.stdout


def test_info_as_a_command():
    made = CliRunner().invoke(cli.app, ["info"])
    assert made.exit_code == 0 and "operator nt_xent" in made.output


@pytest.mark.parametrize("command", ["train", "demo"])
def test_missing_extras_are_one_clear_line(command):
    made = without(["sklearn", "typer"], command)
    assert made.returncode == 2 and made.stdout == ""
    assert made.stderr.count("\n") == 1 and "pip install '.[train]'" in made.stderr
    assert made.stderr.startswith(f"fastssl {command}: ") and "sklearn, typer" in made.stderr


def test_import_pulls_in_no_extra():
    made = python("-c", f"import fastssl, sys; print(set({EXTRAS!r}) & set(sys.modules))")
    assert made.stdout.strip() == "set()", made.stderr


def test_flags_are_the_keywords(tmp_path):
    flags = "--limit 64 --batch-size 32 --width 4 --epochs 1 --no-evaluate --temperature 0.2"
    command = ["train", "simclr", "--out", str(tmp_path), *flags.split(), "--accelerator", "cpu"]
    made = CliRunner().invoke(cli.app, command)
    assert made.exit_code == 0, made.output
    assert f"written to {tmp_path}" in made.output and "epoch 1/1" in made.output
    assert '"temperature": 0.2' in (tmp_path / "config.json").read_text()
    again = CliRunner().invoke(cli.app, command)
    assert again.exit_code == 2 and "not empty" in again.stderr
    assert "Traceback" not in again.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "cifar10"], "root: "),
        (["--backbone", "resnet"], "backbone: got 'resnet'"),
        (["--no-such"], "No such option"),
    ],
)
def test_wrong_arguments_are_one_line_not_a_traceback(args, message):
    made = CliRunner().invoke(cli.app, ["train", "simclr", *args])
    assert made.exit_code == 2 and message in made.stderr
    assert made.exception is None or isinstance(made.exception, SystemExit)


def row(untrained, pretrained, labels="5"):
    return Row("logistic", labels, Score(*untrained), Score(*pretrained))


@pytest.mark.parametrize(
    ("untrained", "pretrained", "clear"),
    [
        ((0.81, 0.05), (0.90, 0.01), True),
        ((0.81, 0.10), (0.90, 0.01), False),
        ((0.81, 0.01), (0.90, 0.10), False),
        ((0.90, 0.01), (0.81, 0.01), False),
        ((0.50, 0.00), (0.50, 0.00), False),
    ],
)
def test_demo_passes_only_on_a_gain_beyond_the_larger_deviation(
    tmp_path, monkeypatch, untrained, pretrained, clear
):
    rows = [row((0.1, 0.0), (0.9, 0.0), labels="1"), row(untrained, pretrained)]
    assert is_clear(rows[1]) == clear
    monkeypatch.setattr(cli, "pretrain", lambda *_, **__: Run(tmp_path, None, rows, None))
    made = CliRunner().invoke(cli.app, ["demo"])
    assert made.exit_code == (0 if clear else 1)
    assert ("passed" if clear else "FAILED") in made.output
    assert f"written to {tmp_path}" in made.output

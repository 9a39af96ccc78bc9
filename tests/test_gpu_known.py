"""The model's errors on kernels with published times are those that docs/gpu.md states."""

import json
from pathlib import Path

import pytest
import triton

from benchmarks.machine_code import published
from benchmarks.machine_code.cards import CARDS

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "gpu_model.json"
#: One figure of each kernel and architecture is modelled again; the model treats the others alike.
SHOWN = (
    ("product", "A100", 4096), ("product", "H100", 3072), ("softmax", "A100", 4096),
    ("softmax", "H100", 4096), ("attention", "A100", 16384), ("attention", "H100", 16384),
)  # fmt: skip


def _results():
    return json.loads(RESULTS.read_text())


def _recorded():
    return [row for row in _results()["launches"] if row["family"] == "known"]


def _row_of(figure):
    key = figure.kind, figure.card.name, figure.size, figure.source
    rows = [
        row for row in _recorded() if (row["case"], row["card"], row["size"], row["source"]) == key
    ]
    assert len(rows) == 1, key
    return rows[0]


def _shown(kind, card, length):
    return next(
        figure
        for figure in published.FIGURES
        if (figure.kind, figure.card.name) == (kind, card) and length in figure.size.values()
    )


def test_every_figure_is_recorded_and_stated():
    assert len(_recorded()) == len(published.FIGURES)
    for figure in published.FIGURES:
        row = _row_of(figure)
        assert row["published_us"] == pytest.approx(figure.microseconds, rel=1e-3)
        time = row["predicted_us"] + published.EVENTS_US
        assert row["error"] == pytest.approx(time / figure.microseconds - 1, abs=2e-3)
        assert figure.source in published.SOURCES


def test_errors_stay_small():
    """As stated: within a fifth on Hopper, and within three tenths on an A100."""
    for row in _recorded():
        assert abs(row["error"]) < (0.2 if row["arch"] == 90 else 0.3), row


@pytest.mark.parametrize("kind, card, length", SHOWN)
def test_the_model_still_says_so(kind, card, length):
    if triton.__version__ != _results()["triton"]:
        pytest.skip("the record is of another Triton's machine code")
    figure = _shown(kind, card, length)
    _, prediction, _ = published.model(figure)
    assert prediction.microseconds == pytest.approx(_row_of(figure)["predicted_us"], rel=0.1)


def test_the_table_names_each_source():
    table = published.table(_recorded())
    for figure in published.FIGURES:
        assert published.SOURCES[figure.source] in table


def test_cards_state_their_sources():
    """No card's peak is more than its data sheet says."""
    sheet = {"A100": 312e12, "H100": 989.5e12, "H200": 989.5e12}
    for name, card in CARDS.items():
        assert card.tensor_rate <= sheet[name]
        assert card.tensor_clock < card.clock and card.copy_share < 1

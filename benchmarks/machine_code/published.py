"""Published times of a product, a softmax and attention's forward pass, and what the model says.

Every figure was read from a table, none off a plot. Times are what triton.testing.do_bench gives,
events around one call, so the model's time has the events' own added.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.machine_code import known, record
from benchmarks.machine_code.cards import A100, H100, Card
from benchmarks.machine_code.compiled import resources
from benchmarks.machine_code.predict import Kernel, Prediction, counts, kernel_of, predict

#: Microseconds between two events with nothing between them (tritonbench launch_latency on an H100,
#: github.com/meta-pytorch/tritonbench/pull/38).
EVENTS_US = 2.9
_TESTS = "tests/triton_interpret/test_known.py::test_"

#: Triton's documentation was built on one: 1555 GB/s by the data sheet, 1382 for a copy
#: (github.com/te42kyfo/gpu-benches, gpu-stream/a100_40.txt).
A100_40 = replace(A100, product="A100-SXM4-40GB", bandwidth=1555, copy_share=0.889)

SOURCES = {
    "tutorial 02": (
        "Triton's tutorial 02, table of its page in 2024 as kept in github.com/hyperai/triton-cn; "
        "the card is not named, its rates are those of an A100 40GB"
    ),
    "tutorial 03": (
        "Triton's tutorial 03, table of its page in 2024 as kept in github.com/hyperai/triton-cn, "
        "tiles tuned; the page speaks of an A100"
    ),
    "tutorial 06": (
        "Triton's tutorial 06, table of its page on triton-lang.org in 2025, Triton 3.5 or later, "
        "tiles tuned; card not named, taken as the A100 of tutorial 03"
    ),
    "triton 1917": (
        "github.com/triton-lang/triton/pull/1917, July 2023, Triton 2.1 by its date; card not "
        "named, taken as an A100"
    ),
    "triton 3672": (
        "github.com/triton-lang/triton/issues/3672, April 2024, Triton 3.0 by its date, "
        "tutorial 03 on an H100, tiles tuned; smaller sizes there take 89 us, which is the host's "
        "time"
    ),
    "facebook 1038": (
        "github.com/facebookexperimental/triton/pull/1038, March 2026, on Hopper, taken as an "
        "H100 SXM; another kernel: copies by descriptor from a warp of their own"
    ),
    "notes": (
        "github.com/huangrt01/CS-Notes, triton-softmax.py, 2024 or later, tutorial 02; card not "
        "named: its rates are beyond an A100's and within an H100's"
    ),
    "facebook 205": (
        "github.com/facebookexperimental/triton/pull/205, July 2025, tutorial 06 beside kernels "
        "that only Hopper runs, tiles tuned; taken as an H100 SXM"
    ),
    "triton 2459": (
        "github.com/triton-lang/triton/pull/2459, October 2023, Triton 2.1 by its date, "
        "tutorial 06 on an H100"
    ),
}


@dataclass(frozen=True)
class Published:
    """A published figure: of `kind` on a card at a size, in TFLOP/s or, for softmax, in GB/s."""

    kind: str
    card: Card
    size: dict
    rate: float
    source: str

    @property
    def work(self) -> record.Work:
        """Operations and bytes that the rate is counted in, and exponentials."""
        s = self.size
        if self.kind == "product":
            m, n, k = s["rows"], s["columns"], s["depth"]
            return record.Work(flop=2.0 * m * n * k, moved=2.0 * (m * k + k * n + m * n))
        if self.kind == "softmax":
            elements = s["rows"] * s["columns"]
            return record.Work(exponentials=elements, moved=8.0 * elements)
        heads, length, depth = s["heads"], s["length"], s["depth"]
        part = 0.5 if s["causal"] else 1.0
        scores = part * heads * length**2
        return record.Work(4 * scores * depth, scores, 8.0 * heads * length * depth)

    @property
    def microseconds(self) -> float:
        """The published time."""
        if self.kind == "softmax":
            return self.work.moved / self.rate / 1e3
        return self.work.flop / self.rate / 1e6


def _product(card, m, n, k, rate, source):
    return Published("product", card, {"rows": m, "columns": n, "depth": k}, rate, source)


def _softmax(card, columns, rate, source):
    return Published("softmax", card, {"rows": 4096, "columns": columns}, rate, source)


def _attention(card, heads, length, depth, causal, rate, source):
    size = {"heads": heads, "length": length, "depth": depth, "causal": causal}
    return Published("attention", card, size, rate, source)


FIGURES = (
    _product(A100, 2048, 2048, 2048, 190.65, "tutorial 03"),
    _product(A100, 3072, 3072, 3072, 209.72, "tutorial 03"),
    _product(A100, 4096, 4096, 4096, 215.78, "tutorial 03"),
    _product(H100, 2944, 2944, 2944, 471.40, "triton 3672"),
    _product(H100, 3072, 3072, 3072, 524.74, "triton 3672"),
    _product(H100, 65536, 1024, 1024, 502.34, "facebook 1038"),
    _softmax(A100_40, 4096, 1395.69, "tutorial 02"),
    _softmax(A100_40, 8192, 1442.31, "tutorial 02"),
    _softmax(H100, 4096, 2577.10, "notes"),
    _softmax(H100, 7168, 3094.79, "notes"),
    _softmax(H100, 8192, 2853.22, "notes"),
    _attention(A100, 128, 1024, 64, False, 141.41, "tutorial 06"),
    _attention(A100, 128, 4096, 64, False, 160.63, "tutorial 06"),
    _attention(A100, 128, 16384, 64, False, 166.63, "tutorial 06"),
    _attention(A100, 128, 16384, 64, True, 164.26, "tutorial 06"),
    _attention(A100, 192, 16384, 64, False, 146.79, "triton 1917"),
    _attention(H100, 128, 1024, 128, False, 406.80, "facebook 205"),
    _attention(H100, 128, 4096, 128, False, 459.61, "facebook 205"),
    _attention(H100, 128, 16384, 128, False, 486.99, "facebook 205"),
    _attention(H100, 192, 2048, 64, True, 303.03, "triton 2459"),
)


def _kernel(compiled) -> Kernel:
    return kernel_of(compiled, resources(compiled))


_products = functools.cache(lambda arch, tile: _kernel(known.compile_product(arch, tile)))
_softmaxes = functools.cache(lambda arch, block: _kernel(known.compile_softmax(arch, block)))
_attentions = functools.cache(
    lambda arch, depth, causal: _kernel(known.compile_attention(arch, depth, causal))
)


def model(figure: Published) -> tuple[Kernel, Prediction, dict]:
    """The kernel, what the model says of its launch, and its main loop's instructions."""
    card, size = figure.card, figure.size
    if figure.kind == "product":
        found = [_tile(figure, tile) for tile in known.PRODUCT_TILES]
        kernel, prediction = min(found, key=lambda x: x[1].microseconds)
        return kernel, prediction, counts(kernel, kernel.main_loop())
    if figure.kind == "softmax":
        kernel = _softmaxes(card.architecture, known.triton.next_power_of_2(size["columns"]))
        programs = min(size["rows"], card.processors * kernel.resident(card))
        prediction = predict(
            kernel, card, programs, size["rows"] / programs, moved=figure.work.moved, cached=False
        )
        return kernel, prediction, counts(kernel, kernel.main_loop())
    kernel = _attentions(card.architecture, size["depth"], size["causal"])
    queries, keys, *_ = known.ATTENTION_TILES[card.architecture, size["depth"]]
    passes, fixed = size["length"] / keys, {}
    # Blocks without a mask are the shorter loop.
    loops = sorted(kernel.flow.all_loops(), key=lambda x: len(kernel.flow.instructions(x)))
    if size["causal"]:
        passes = (size["length"] - queries) / 2 / keys
        fixed = {loop.header: queries // keys for loop in loops[1:]}
    programs = size["length"] // queries * size["heads"]
    prediction = predict(
        kernel, card, programs, passes, fixed, loops[0], moved=figure.work.moved
    )  # fmt: skip
    return kernel, prediction, counts(kernel, loops[0], fixed)


def _tile(figure: Published, tile: tuple[int, ...]) -> tuple[Kernel, Prediction]:
    """A product with one tile; the published ones are the fastest of a list."""
    kernel, (m, n, k, *_) = _products(figure.card.architecture, tile), tile
    programs = -(-figure.size["rows"] // m) * -(-figure.size["columns"] // n)
    passes = figure.size["depth"] / k
    return kernel, predict(kernel, figure.card, programs, passes, moved=figure.work.moved)


def launches(card: Card) -> Iterator[dict]:
    """A record for each figure of a card, as `record.launch` has it, with what was published.

    "error" is by how much the model's time, with the events' own, is above the published one.
    """
    for figure in FIGURES:
        if figure.card.name != card.name:
            continue
        kernel, prediction, per_pass = model(figure)
        row = record.launch(
            "known", figure.kind, kernel, figure.card, figure.size,
            figure.work.floor_us(figure.card), prediction, per_pass, _TESTS + figure.kind,
        )  # fmt: skip
        time = prediction.microseconds + EVENTS_US
        yield {
            **row,
            "product": figure.card.product,
            "published_us": round(figure.microseconds, 2),
            "published_rate": figure.rate,
            "error": round(time / figure.microseconds - 1, 3),
            "source": figure.source,
        }


def _words(row: dict) -> str:
    size = row["size"]
    if row["case"] == "product":
        return f"{size['rows']:,} x {size['columns']:,} x {size['depth']:,}, float16"
    if row["case"] == "softmax":
        return f"{size['rows']:,} x {size['columns']:,}, float32"
    causal = ", causal" if size["causal"] else ""
    return f"{size['heads']} heads, {size['length']:,}, D = {size['depth']}, float16{causal}"


def table(rows: list[dict]) -> str:
    """The records of `launches` as a table in markdown, with a list of sources after it."""
    unit = {"softmax": "GB/s"}
    lines = [
        "| kernel | card | size | published | us | model, us | error | limiter | source |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = [row for row in rows if row["family"] == "known"]
    for row in rows:
        published = f"{row['published_rate']:,.0f} {unit.get(row['case'], 'TFLOP/s')}"
        lines.append(
            f"| {row['case']} | {row['product']} | {_words(row)} | {published} "
            f"| {row['published_us']:,.0f} | {row['predicted_us'] + EVENTS_US:,.0f} "
            f"| {row['error']:+.0%} | {row['limiter']} | {row['source']} |"
        )
    used = dict.fromkeys(row["source"] for row in rows)
    return "\n".join([*lines, "", *(f"- {name}: {SOURCES[name]}." for name in used)])

"""What the model does with real launches, and with its records, against answers worked out by hand.

Simulated clocks are replaced by what a warp's instructions multiply or move: added up as the model
adds up clocks, over passes, programs and launches, they must be what the problem asks for.
"""

import json
import os
import re
import types
from collections import Counter
from dataclasses import replace

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from benchmarks import gpu_model  # noqa: E402
from benchmarks.machine_code import (  # noqa: E402
    launches_contrast,
    launches_nt_xent,
    pages,
    passes,
    predict,
    record,
    simulate,
)
from benchmarks.machine_code.cards import A100, H100, H200  # noqa: E402
from benchmarks.machine_code.launched import launches_of, meta  # noqa: E402
from benchmarks.machine_code.record import Work  # noqa: E402
from benchmarks.machine_code.sass import Instruction  # noqa: E402

CALLS = [
    launches_nt_xent.call(65536, 128, "bfloat16"),
    launches_nt_xent.call(65536, 768, "bfloat16"),
    launches_nt_xent.call(65536, 128, "bfloat16", learned=True),
    *(
        launches_contrast.call(loss, 32768, depth)
        for loss in ("info_nce", "siglip")
        for depth in (128, 512)
    ),
]
on_cards = pytest.mark.parametrize("card", [A100, H200], ids=lambda card: card.name)
of_calls = pytest.mark.parametrize(
    "call", CALLS, ids=lambda call: f"{call.case}-{call.size['depth']}"
)


def multiplied(x: Instruction) -> int:
    """Floating-point operations of the tensor cores for one warp."""
    if x.name == "HGMMA":  # four warps' together
        m, n, k = map(int, re.search(r"\.(\d+)x(\d+)x(\d+)", x.opcode).groups())
        return 2 * m * n * k // 4
    if x.name == "HMMA":
        assert x.opcode.startswith("HMMA.16816."), x.opcode
        return 2 * 16 * 8 * 16
    return 0


def moves(*names: str):
    """Bytes that a warp reads or writes by these instructions."""
    return lambda x: 32 * x.width // 8 if x.name in names and not x.never else 0


@pytest.fixture
def total(monkeypatch):
    """A function of (weight of an instruction, launch, card): the sum over all that it executes."""

    def summed(weigh, x, card) -> float:
        def run(trace, _card, programs, warps, _cached=False):
            return simulate.Result(programs * warps * sum(map(weigh, trace)), {"issue": 0.0})

        kernel = replace(x.compiled(card.architecture).kernel, _steady={})
        whole = card.processors * kernel.resident(card)  # a full wave
        with monkeypatch.context() as patch:
            for module in (simulate, predict):
                patch.setattr(module, "run", run)
            found = predict.predict(kernel, card, whole, **vars(passes.passes_of(x, kernel)))
        return found.microseconds * card.clock * 1e3 * card.processors / whole * x.programs

    return summed


#: Products of all pairs of rows, by call, depth and kernel.
PRODUCTS = {
    ("nt_xent", 128): {"sum_triangle": 0.5, "accumulate_gradient": 2},
    ("nt_xent", 768): {"sum_triangle": 0.5, "write_gradient_weights": 1, "multiply_weights": 1},
    ("nt_xent, learned temperature", 128): {"sum_exponentials": 1, "accumulate_gradient": 2},
    ("info_nce", 128): {"sum_pairs": 2, "accumulate_pairs": 4},
    ("info_nce", 512): {
        "sum_pairs": 2, "write_pair_weights": 1, "multiply_weights": 1, "multiply_turned": 1,
    },
    ("siglip", 128): {"sum_pairs": 1, "accumulate_pairs": 4},
    ("siglip", 512): {"write_shares": 1, "multiply_weights": 1, "multiply_turned": 1},
}  # fmt: skip


@on_cards
@of_calls
def test_matrix_kernels_multiply_what_the_problem_asks_for(call, card, total):
    launched = [x for x in call.launched(card) if x.name in passes.MATRIX]
    known, totals = {}, Counter()
    for x in launched:
        flop = passes.work_of(x).flop
        key = x.name, x.grid, flop  # chunks of rows are alike
        if key not in known:
            known[key] = total(multiplied, x, card)
            assert known[key] == pytest.approx(flop, rel=0.02), x.name
        totals[x.name] += known[key]
    product = 2 * call.size["rows"] ** 2 * call.size["depth"]
    times = {name: flop / product for name, flop in totals.items()}
    assert times == pytest.approx(PRODUCTS[call.case, call.size["depth"]], rel=0.02)


#: Tensors that kernels over rows read and write whole.
READ = {
    "pack": ("z0", "z1"), "pack_rows": ("x",), "finish_gradient": ("sums", "packed"),
    "finish_pairs": ("sums", "left", "right"),
}  # fmt: skip
WRITTEN = {
    "pack": ("packed",), "pack_rows": ("packed",), "finish_gradient": ("grad_z0", "grad_z1"),
    "finish_pairs": ("out",),
}  # fmt: skip


@on_cards
@of_calls
def test_kernels_over_rows_move_their_tensors(call, card, total):
    seen = set()
    for x in call.launched(card):
        if x.name not in READ or x.name in seen:
            continue
        seen.add(x.name)
        read, written = (
            sum(x[name].numel() * x[name].element_size() for name in names[x.name])
            for names in (READ, WRITTEN)
        )
        # All is read at most twice, and every row has some numbers beside.
        assert read <= total(moves("LD", "LDG"), x, card) <= 2.5 * read, x.name
        assert written <= total(moves("ST", "STG"), x, card) <= 1.6 * written, x.name
    assert seen


@pytest.mark.parametrize(
    "loss, exceptions",
    [("queue", 0), ("sup_con", 1), ("info_nce", 1), ("siglip", 1), ("views", 2)],
)
@on_cards
def test_tiles_with_exceptions_are_as_many_as_the_masks_make(loss, exceptions, card):
    (x, *_) = (
        y for y in launches_contrast.call(loss, 32768, 128).launched(card) if y.name == "sum_pairs"
    )
    how = passes.passes_of(x, x.compiled(card.architecture).kernel)
    side = max(x["BLOCK_M"], x["BLOCK_N"])
    # The diagonal of the square of `side` rows and columns that a block of rows lies in.
    assert how.rare == exceptions * side / 32768
    assert how.passes == 32768 / x["BLOCK_N"] / x.grid[1]


def test_a_row_meets_itself_and_its_partner():
    call = launches_nt_xent.call(65536, 128, "bfloat16", learned=True)
    found = {x.name: x for x in call.launched(H200)}
    for name in ("sum_exponentials", "accumulate_gradient"):
        x = found[name]
        how = passes.passes_of(x, x.compiled(90).kernel)
        assert how.rare == 2 * max(x["BLOCK_M"], x["BLOCK_N"]) / 65536


@triton.jit(do_not_specialize=["other"])
def copy(x, out, count, stride, other, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    where = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + where * stride, mask=where < count, other=other)
    tl.store(out + where, values * FACTOR, mask=where < count)


def test_launches_are_caught_with_what_they_are_compiled_with():
    x, out = meta(1024, dtype=torch.bfloat16), meta(1024)

    def call():
        copy[(4, 2)](x, out, 1024, 1, 1, FACTOR=2, BLOCK=256, num_warps=8, maxnreg=64)

    (found,) = launches_of(call, H100, [])
    assert (found.name, found.grid, found.programs) == ("copy", (4, 2), 8)
    assert found["x"] is x and found["count"] == 1024 and found["FACTOR"] == 2
    assert found.options == {"num_warps": 8, "maxnreg": 64}
    assert passes.moved(found) == 1024 * (2 + 4)
    compiled = found.compiled(90)
    assert compiled.needs.warps == compiled.kernel.warps == 8 and compiled.needs.shared == 0
    # A number that is 1 is compiled in, unless it may not be; multiples of 16 are known as such.
    code = compiled.binary.asm["ttir"]
    assert "%stride" not in code and re.search(r"%other: i32(?! {tt)", code)
    assert re.search(r"%count: i32 {tt.divisibility = 16", code)
    assert launches_of(lambda: None, H100, []) == []


def test_launchers_are_told_the_card():
    module = types.SimpleNamespace(processors_of=None, architecture_of=None)
    told = []
    launches_of(
        lambda: told.append((module.architecture_of(0), module.processors_of(0))), A100, [module]
    )
    assert told == [(80, 108)] and module.processors_of is None


@pytest.mark.parametrize(
    "work, card, floor",
    [
        (Work(flop=794.5e6), H100, 1.0),
        (Work(flop=271.2e6), A100, 1.0),
        (Work(exponentials=132 * 16 * 1980), H200, 1.0),
        (Work(moved=4800e3), H200, 1.0),
        (Work(794.5e6, 132 * 16 * 3960, 3352e3), H100, 2.0),
        (Work(1e9, 2, 3) + Work(1e9, 5, 4), A100, 2e9 / 271.2e6),
    ],
)
def test_the_floor_is_the_longest_of_three_times(work, card, floor):
    assert work.floor_us(card) == pytest.approx(floor, rel=1e-3)


def recorded(microseconds: float, card=H100) -> dict:
    kernel = predict.Kernel("k", None, 4, 40, 8, 2048)
    prediction = predict.Prediction(microseconds, "special", 100.0, {"special": 0.9}, 3, 1.5)
    return record.launch(
        "nt_xent", "case", kernel, card, {"rows": 512, "depth": 128, "dtype": "bfloat16"}, 4.0,
        prediction, {"float": 6, "tensor": 2, "exp": 0}, "test", elements=256,
    )  # fmt: skip


def test_a_launch_is_recorded():
    found = recorded(10.0)
    assert (found["predicted_us"], found["limiter"], found["occupancy_warps"]) == (
        10.0, "special", 12,
    )  # fmt: skip
    assert found["per_iteration"] == {"float": 6, "tensor": 2}
    assert found["per_element"] == {"float": 6 * 32 * 4 / 256}


@pytest.mark.parametrize("card, least", [(A100, 1.4 - 0.5), (H100, 2.3 - 0.5), (H200, 2.3 - 0.5)])
def test_no_launch_is_shorter_than_the_shortest_that_was_seen(card, least):
    found = recorded(0.1, card)
    assert found["predicted_us"] == pytest.approx(least) and found["limiter"] == "launch"
    assert recorded(least + 0.1, card)["limiter"] == "special"


def test_a_call_is_its_launches_and_the_gaps_between_them():
    launches = [recorded(10.0), recorded(0.1)]
    found = record.call("nt_xent", "case", H100, {}, 3.0, launches)
    assert (found["kernels_us"], found["launches"]) == (11.8, 2)
    assert (found["predicted_us"], found["graph_us"]) == (13.6, 12.8)  # 0.9 and 0.5 each


def test_numbers_and_sizes_are_written_as_people_read_them():
    assert [pages.microseconds(x) for x in (12345.6, 100, 99.94, 9.876)] == [
        "12,346", "100", "99.9", "9.88",
    ]  # fmt: skip
    assert pages.size_text({"rows": 65536, "depth": 128, "dtype": "float16"}) == (
        "65,536 x 128 float16"
    )
    assert pages.size_text({"batch": 4096, "dtype": "float32"}) == "batch 4,096, float32"


def test_tables_have_a_line_for_each_call_and_launch():
    size = {"rows": 65536, "depth": 128, "dtype": "bfloat16"}
    shown, hidden = ({**recorded(60.0, card), "size": size} for card in (H200, A100))
    launches = [{**shown, "kernel": "sum_pairs", "times": 3}, {**hidden, "kernel": "pack"}]
    calls = [
        record.call("nt_xent", "case", card, {"rows": 512, "depth": 128}, 3.0, launches[:n])
        for n, card in ((1, H200), (2, H100), (2, A100))
    ]
    model = {"launches": launches, "calls": calls}
    *_, line = pages.calls_table(model, ("nt_xent",))
    # One line: 3.00 us at least, then 60 and a gap on an H200, twice as much on an A100.
    assert line == "| nt_xent | case | 512 x 128 | 1 | 3.00 | 60.9 | 60.5 | 3.00 | 122 | 121 |"
    assert pages.calls_table(model, ("patch",)) == pages.calls_table({"calls": []}, ("patch",))
    (line,) = pages.launches_table(model, "nt_xent")[2:]  # small kernels are of one case alone
    assert line == (
        "| case | 65,536 x 128 bfloat16 | `sum_pairs` (3 times) | H200 | 4.00 | 60.0 | 15.0 "
        "| special | 40 | 8 | 2 | 12 | float 6, tensor 2 | float 3 |"
    )


def test_sections_are_replaced_between_their_markers():
    text = "a\n<!-- x -->\nold\n<!-- end x -->\nb\n"
    assert pages.with_section(text, "x", ["new \\1"]) == (
        "a\n<!-- x -->\n\nnew \\1\n\n<!-- end x -->\nb\n"
    )
    with pytest.raises(ValueError, match="no markers for y"):
        pages.with_section(text, "y", [])


def run_main(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["gpu_model", *arguments])
    with pytest.raises(SystemExit) as stopped:
        gpu_model.main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_the_page_needs_the_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_model, "MODEL", tmp_path / "none.json")
    assert "none.json is missing" in run_main(monkeypatch, capsys, "--page")


def test_rows_of_other_compilers_are_not_kept(monkeypatch, capsys, tmp_path):
    path = tmp_path / "old.json"
    old = {"triton": "1.0", "nvcc": "9", "launches": [recorded(1.0)], "calls": []}
    path.write_text(json.dumps(old))
    monkeypatch.setattr(gpu_model, "MODEL", path)
    error = run_main(monkeypatch, capsys, "--family", "patch", "--update")
    assert "nt_xent are of {'triton': '1.0', 'nvcc': '9'}" in error
    assert json.loads(path.read_text()) == old
    # Nothing is kept, or by the same compilers.
    assert gpu_model.refusal(old, ["nt_xent"], page=False) == ""
    same = {**old, **gpu_model.families.versions()}
    assert gpu_model.refusal(same, ["patch"], page=False) == ""

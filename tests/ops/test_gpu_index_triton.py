"""Offsets of the Triton kernels at sizes that no 32-bit number counts.

The launchers run on tensors without memory (device "meta"), and every launch is noted: its grid,
its arguments, what it is compiled with. `Ranges` then follows the integers through the kernel's
intermediate form: none of them may leave 32 bits where it is computed in 32 bits.
"""

import itertools
import math
import os

import pytest
import torch
from torch._subclasses import FakeTensorMode

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

from ttir_ranges import Range, Ranges, number, ttir_of  # noqa: E402

from benchmarks.machine_code.cards import CARDS  # noqa: E402
from benchmarks.machine_code.launched import Launched, launches_of, meta  # noqa: E402
from fastssl.ops.contrast import schema  # noqa: E402
from fastssl.ops.contrast import triton as contrast  # noqa: E402
from fastssl.ops.contrast.pairs import LABELLED, PAIRED, ROWS, SIGMOID, SOFTMAX, Pairs  # noqa: E402
from fastssl.ops.nt_xent import triton as nt_xent  # noqa: E402

TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int64: "i64",
}  # fmt: skip
#: Arguments that hold numbers of rows, -1 for none.
INDICES = ("index", "excluded", "partner", "inverse")
MOST_BLOCKS = (2**31 - 1, 65535, 65535)
#: (rows, depth): as many rows as there may be, gradients through memory, few rows of great depth.
SIZES = [(2**30 - 300, 16), (2**22 + 5, 1024), (700, 2**22)]


@pytest.fixture(params=[("H100", torch.bfloat16), ("A100", torch.float32)], ids=["H100", "A100"])
def card(request):
    """A card, and the dtype that it is tried with."""
    name, dtype = request.param
    return CARDS[name], dtype


def launched(call, card) -> dict[str, list[Launched]]:
    """What a call launches, by kernel; of a chunk's launches, which are alike, some."""
    found = {}
    for launch in launches_of(call, card, [nt_xent, contrast]):
        assert all(0 < n <= most for n, most in zip(launch.grid, MOST_BLOCKS, strict=False)), (
            f"{launch.name}: no card has room for the grid {launch.grid}"
        )
        constants = [launch[p.name] for p in launch.function.params if p.is_constexpr]
        alike = found.setdefault((launch.name, *constants), [])
        alike[4:] = [launch]
    by_name = {}
    for (name, *_), alike in found.items():
        by_name.setdefault(name, []).extend(alike)
    return by_name


def compiled_with(launch: Launched):
    """(signature, constants, ranges of the other arguments), as a launch has them."""
    signature, constants, ranges = {}, {}, []
    for parameter in launch.function.params:
        name, value = parameter.name, launch[parameter.name]
        if parameter.is_constexpr or (
            type(value) is int and value == 1 and not parameter.do_not_specialize
        ):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            ranges.append(Range(0, 0, name, 0))
        elif isinstance(value, float):
            signature[name] = "fp32"
            ranges.append(None)
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            ranges.append(number(value))
    return signature, constants, ranges


def check(call, card, most_rows) -> set[str]:
    """No number is too wide, and no access without a mask is outside; returns kernels' names."""
    texts, farthest = {}, 0
    loaded = {name: Range(-1, most_rows - 1) for name in INDICES}
    by_name = launched(call, card)
    for launch in itertools.chain(*by_name.values()):
        signature, constants, ranges = compiled_with(launch)
        key = launch.name, str(signature), str(constants)
        if key not in texts:
            texts[key] = ttir_of(
                launch.function, signature, constants, card.architecture, launch.options
            )
        numbers = Ranges(launch.grid, loaded).of(texts[key], ranges)
        assert not numbers.too_wide, f"{launch.name}: {numbers.too_wide}"
        for name, last in numbers.reached.items():
            room = math.prod(launch[name].shape)
            if launch.name == "sum_triangle":  # which rows a column has, no range says
                last = min(last, room - 1)
            assert last < max(room, 1), f"{launch.name}: {name} has {room}, not {last + 1}"
            farthest = max(farthest, last)
    assert farthest >= 2**31, "the sizes are too small to show anything"
    return set(by_name)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("rows, depth", SIZES)
def test_nt_xent(rows, depth, learned, card):
    card, dtype = card
    if not learned:  # the launcher shares out triangles, which takes seconds for so many rows
        rows, depth = min(rows, 2**24 + 300), max(depth, 128)
    half = rows // 2
    z = [meta(half, depth + 8, dtype=dtype)[:, :depth] for _ in range(2)]
    temperature = meta() if learned else None

    def call():
        for reduction in (0, 1):
            loss, lse, miss = nt_xent.forward(*z, temperature, 0.1, True, reduction)
            nt_xent.backward(loss, *z, temperature, 0.1, True, reduction, lse, miss)

    names = check(call, card, rows)
    matrices = {"write_gradient_weights", "multiply_weights"}
    matrices = matrices if depth > 256 else {"accumulate_gradient"}
    rows_alone = {"pack", "finish_rows", "weigh_rows", "finish_gradient", "add_up"}
    forward = {"sum_exponentials", "sum_triangle"}
    assert names - forward == {*matrices, *rows_alone} and names & forward


#: Pairs' fields by name; "index" [R], "labels", "window" [2, .], "number" stand for tensors.
POLICIES = {
    "info_nce, both ways": {"columns": True, "partner": "index"},
    "queue": {},
    "views": {"y": None, "partner": "index"},
    "siglip": {"kind": SIGMOID, "partner": "index", "scale": "number", "bias": "number"},
    "sup_con": {"kind": LABELLED, "y": None, "labels": True},
    "pair_nt_xent": {"kind": PAIRED, "y": None, "labels": True},
    "labels and windows": {"labels": True, "windows": True, "partner": "index",
                           "excluded": "index", "columns": True, "scale": "number"},
    "metrics": {"metrics": True, "partner": "index"},
}  # fmt: skip


def pairs_of(policy, rows, columns, depth, dtype):
    given = dict(POLICIES[policy])
    labels, windows = given.pop("labels", False), given.pop("windows", False)
    made = {"index": meta(rows, dtype=torch.int64), "number": meta()}
    given = {k: made.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    found = dict.fromkeys(Pairs._fields)
    found |= {
        "x": meta(rows, depth, dtype=dtype), "y": meta(columns, depth, dtype=dtype), "factor": 9.0,
        "kind": SOFTMAX, "normalize_x": True, "normalize_y": True, "columns": False,
        "metrics": False, **given,
    }  # fmt: skip
    one = found["y"] is None
    if labels:
        found["row_labels"] = meta(rows, dtype=torch.int64)
        found["column_labels"] = None if one else meta(columns, dtype=torch.int64)
    if windows:
        found["row_window"] = meta(2, rows, dtype=torch.float64)
        found["column_window"] = None if one else meta(2, columns, dtype=torch.float64)
    return Pairs(**found)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rows, depth", SIZES)
def test_contrast(rows, depth, policy, card):
    card, dtype = card

    def call():
        # Few rows against many, as with a queue, and many against few.
        for left, right in ((600, rows), (rows, 600)):
            p = pairs_of(policy, left, right, depth, dtype)
            many = left if p.y is None else max(left, right)
            if many * depth < 2**31:
                continue
            found, of_columns = contrast.forward(*p)
            given = [found[:ROWS], torch.empty_like(found), of_columns[:ROWS]]
            contrast.backward(*p, *given, torch.empty_like(of_columns), True, p.y is not None)

    names = check(call, card, rows)
    one = "y" in POLICIES[policy]
    matrices = {"accumulate_pairs"}
    if depth > 256:
        matrices = {"write_pair_weights", "multiply_weights", *(() if one else ["multiply_turned"])}
    assert {"pack_rows", "sum_pairs", "finish_statistics", "bound_gradients", *matrices} <= names


def test_gradients_with_sums(card):
    card, _ = card

    def call():
        for left, right in ((600, 2**22), (2**22, 600)):
            p = pairs_of("siglip", left, right, 700, torch.bfloat16)
            rows, _, kept = contrast.forward_kept(*p)
            with FakeTensorMode(allow_non_fake_inputs=True):
                traced = schema._forward_kept_fake(
                    *p._replace(x=torch.empty(p.x.shape, device="cuda"))
                )
            assert traced[0].shape == rows.shape and traced[2].shape == kept.shape
            grad = torch.empty_like(rows)
            contrast.backward_kept(kept, *p, rows, grad, grad, grad, True, True)

    assert {"write_shares", "multiply_weights", "multiply_turned"} <= check(call, card, 2**22)


def test_rows_of_a_block_beyond_32_bits():
    z = [meta(350, 2**25, dtype=torch.bfloat16) for _ in range(2)]
    check(lambda: nt_xent.forward(*z, None, 0.1, True, 1), CARDS["H100"], 700)


def test_what_is_too_wide_is_found():
    """The check itself, on a kernel with the mistake."""
    signature = {"x": "*fp32", "rows": "i32", "DEPTH": "constexpr"}
    text = ttir_of(_careless, signature, {"DEPTH": 4096}, 90, {})
    for blocks, right in ((2**12, True), (2**14, False)):
        found = Ranges((blocks,), {}).of(text, [Range(0, 0, "x", 0), number(2**20)])
        assert (not found.too_wide) == right


@triton.jit
def _careless(x, rows, DEPTH: tl.constexpr):
    row = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(x + row * DEPTH, row.to(tl.float32), mask=row < rows)

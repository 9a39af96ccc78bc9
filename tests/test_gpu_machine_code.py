"""The parts of the model of GPU kernels, on code small enough to know the answer."""

from dataclasses import replace

import pytest

from benchmarks.machine_code import flow, predict, sass, simulate, units
from benchmarks.machine_code.cards import A100, H100
from benchmarks.machine_code.sass import Instruction


def control(stall: int = 1, sets: int = 7, frees: int = 7, waits: int = 0) -> int:
    return (stall | sets << 5 | frees << 8 | waits << 11) << 41


def text_of(*lines: tuple) -> str:
    """What nvdisasm prints: ("label",) or (instruction, control)."""
    printed, address = [".text.kernel:"], 0
    for line in lines:
        if len(line) == 1:
            printed.append(f"{line[0]}:")
            continue
        printed.append(f"        /*{address:04x}*/  {line[0]} ;  /* 0x{address:016x} */")
        printed.append(f"                                /* 0x{line[1]:016x} */")
        address += 16
    return "\n".join(printed)


LOOP = text_of(
    ("MOV R1, c[0x0][0x28]", control()),
    (".L_x_1",),
    ("LDS R2, [R1]", control(stall=2, sets=0)),
    ("@!P0 BRA P1, `(.L_x_2)", control(stall=5)),
    ("FADD R3, R3, R2", control(waits=1)),
    ("FADD R3, R3, R2", control()),
    (".L_x_2",),
    ("MUFU.EX2 R4, R2", control(waits=1, sets=1)),
    ("@P0 BRA `(.L_x_1)", control(stall=5)),
    ("EXIT", control(stall=5)),
    (".L_x_3",),
    ("BRA `(.L_x_3)", control()),
)


def test_instructions_have_their_schedule():
    code = sass.parse(LOOP)["kernel"]
    assert [x.name for x in code][:4] == ["MOV", "LDS", "BRA", "FADD"]
    assert code[1].stall == 2 and code[1].sets == 0 and code[1].waits == 0
    assert code[3].waits == 1 and code[2].predicate == "!P0"
    assert code[2].target == ".L_x_2" and code[1].labels == (".L_x_1",)


def test_the_loop_is_found_and_its_shortest_way():
    graph = flow.Flow(sass.parse(LOOP)["kernel"])
    (loop,) = graph.all_loops()  # the padding behind EXIT is none
    trip = [x.name for x in flow.Path(graph, {}).body(loop)]
    assert trip == ["LDS", "BRA", "MUFU", "BRA"]
    long = [x.name for x in flow.Path(graph, {}, longest=True).body(loop)]
    assert long == ["LDS", "BRA", "FADD", "FADD", "MUFU", "BRA"]
    trace = [x.name for x in flow.Path(graph, {loop.header: 3}).trace()]
    assert trace == ["MOV", *trip * 3, "EXIT"]
    assert [x.name for x in flow.Path(graph, {loop.header: 0}).trace()] == ["MOV", "EXIT"]


def same(opcode: str, count: int, **schedule) -> list[Instruction]:
    line = control(**schedule)
    return sass.parse(text_of(*[(f"{opcode} R1, R2, R3", line)] * count))["kernel"]


@pytest.mark.parametrize(
    "opcode, card, clocks",
    [
        ("FFMA", H100, 1), ("FFMA", A100, 2), ("IMAD", H100, 2), ("LOP3.LUT", H100, 2),
        ("MUFU.EX2", H100, 8), ("MUFU.EX2", A100, 8), ("DFMA", A100, 4), ("DFMA", H100, 2),
        ("SHFL.BFLY", H100, 4), ("LDS", H100, 4), ("LDS.128", H100, 16),
        ("HMMA.16816.F32.BF16", A100, 8),
    ],
)  # fmt: skip
def test_units_take_what_their_rates_say(opcode, card, clocks):
    count = 200
    found = simulate.run(same(opcode, count), card, programs=4, warps=4)
    assert found.clocks == pytest.approx(4 * count * clocks, rel=0.05, abs=60)


def test_stalls_and_scoreboards_are_waited_for():
    assert simulate.run(same("FFMA", 50, stall=5), H100, 1, 4).clocks == pytest.approx(250, abs=5)
    load = sass.parse(text_of(*[("LDS R1, [R2]", control(stall=1, sets=0, waits=1))] * 20))
    expected = 20 * (H100.latency["shared"] + units.use_of(load["kernel"][0], H100).busy)
    assert simulate.run(load["kernel"], H100, 1, 4).clocks == pytest.approx(expected, rel=0.1)


def test_a_barrier_holds_a_program_together():
    # Two warps of a quarter share the exponentials' unit: the first waits for the second.
    code = [*same("MUFU.EX2", 10), *same("BAR.SYNC", 1), *same("FFMA", 1)]
    alone = simulate.run(code, H100, 1, 4).clocks
    assert simulate.run(code, H100, 1, 8).clocks == pytest.approx(alone + 80, abs=10)


def test_programs_overlap_where_units_differ():
    product = same("HMMA.16816.F32.BF16", 64) + same("FFMA", 1, waits=0)
    special = same("MUFU.EX2", 64)
    code = product + special
    one = simulate.run(code * 4, A100, 1, 4).clocks
    two = simulate.run(code * 4, A100, 2, 4).clocks
    assert two < 1.6 * one  # without overlap: twice


def test_wgmma_takes_its_published_time_and_its_operands():
    (x,) = same("HGMMA.64x128x16.F32.BF16", 1)
    assert units.use_of(x, H100).busy == 64
    both = Instruction(0, "", "HGMMA.64x64x16.F32.BF16", "R24, gdesc[UR8], R24", 1, 7, 7, 0)
    left = Instruction(0, "", "HGMMA.64x64x16.F32.BF16", "R24, R8, gdesc[UR8], R24", 1, 7, 7, 0)
    assert units.use_of(both, H100).shared == 32 and units.use_of(left, H100).shared == 16


def test_other_products_of_groups():
    (half,) = same("HGMMA.64x128x16.F32", 1)
    assert units.use_of(half, H100).busy == 2 * 64 * 128 * 16 / 4096
    for opcode in ("IGMMA.64x128x32.S8.S8", "QGMMA.64x128x32.F32.E4M3.E4M3"):
        (small,) = same(opcode, 1)
        assert units.use_of(small, H100).busy == units.use_of(half, H100).busy
        assert predict.has_tensor([small])


def test_half_precision_is_slower_in_bfloat16_on_an_a100():
    used = [units.use_of(same(x, 1)[0], A100).busy for x in ("HFMA2.MMA", "HFMA2.BF16_V2")]
    assert used == [1, 2]


@pytest.mark.parametrize("opcode", ["TOKAMAK.F32", "UTMALDG.2D"])
def test_an_unknown_instruction_is_an_error(opcode):
    (x,) = same(opcode, 1)
    with pytest.raises(ValueError, match=f"nothing is known of {opcode}"):
        units.use_of(x, H100)


#: Stores that threads beyond the last row branch around, and one of what unrolling left over.
GUARDED = text_of(
    (".L_x_1",),
    ("@P1 BRA `(.L_x_2)", control(stall=5)),
    ("FADD R3, R3, R2", control()),
    ("STG.E.64 [R2], R4", control()),
    (".L_x_2",),
    ("@P0 BRA `(.L_x_1)", control(stall=5)),
    ("@P1 BRA `(.L_x_3)", control(stall=5)),
    ("STG.E.64 [R2], R4", control()),
    (".L_x_3",),
    ("EXIT", control(stall=5)),
)


@pytest.mark.parametrize("longest, rest", [(False, []), (True, ["STG"])])
def test_no_way_through_a_loop_leaves_out_a_store(longest, rest):
    graph = flow.Flow(sass.parse(GUARDED)["kernel"])
    way = [x.name for x in flow.Path(graph, {}, longest).trace()]
    assert way == ["BRA", "FADD", "STG", "BRA", "BRA", *rest, "EXIT"]


def test_residency_follows_registers_and_shared_memory():
    graph = flow.Flow(sass.parse(LOOP)["kernel"])

    def resident(warps, registers, shared):
        return predict.Kernel("k", graph, warps, registers, 0, shared).resident(H100)

    assert resident(8, 128, 0) == 2 and resident(8, 129, 0) == 1
    assert resident(4, 32, 100 << 10) == 2 and resident(4, 16, 0) == 16


def test_waves_and_memory():
    graph = flow.Flow(sass.parse(LOOP)["kernel"])
    kernel = predict.Kernel("k", graph, 8, 128, 0, 0)
    one = predict.predict(kernel, H100, 2 * 132, 1000)
    two = predict.predict(kernel, H100, 4 * 132, 1000)
    assert two.microseconds == pytest.approx(2 * one.microseconds, rel=0.01)
    assert one.limiter in ("latency", "special", "shared")
    bytes_ = predict.predict(kernel, H100, 1, 1, moved=1e9)
    assert bytes_.limiter == "memory"
    assert bytes_.microseconds == pytest.approx(1e15 / H100.copy_rate)


#: A pass takes 20 clocks, or 35 the longer way; a turn around it 15, all else 12.
NESTED = text_of(
    ("MOV R1, R2", control(stall=7)),
    (".L_x_1",),
    ("FADD R3, R3, R2", control(stall=11)),
    (".L_x_2",),
    ("FADD R3, R3, R2", control(stall=10)),
    ("@!P1 BRA `(.L_x_3)", control(stall=5)),
    ("FADD R3, R3, R2", control(stall=15)),
    (".L_x_3",),
    ("@P0 BRA `(.L_x_2)", control(stall=5)),
    ("@P2 BRA `(.L_x_1)", control(stall=4)),
    ("EXIT", control(stall=5)),
)


def nested():
    """A kernel of four warps that has a multiprocessor to itself, its inner and its outer loop."""
    graph = flow.Flow(sass.parse(NESTED)["kernel"])
    (outer,) = graph.loops
    (inner,) = outer.inner
    return predict.Kernel("k", graph, 4, 32, 0, 200 << 10), inner, outer


def clocks(prediction) -> float:
    return prediction.microseconds * H100.clock * 1e3


@pytest.mark.parametrize("programs, waves", [(132, 1), (3 * 132, 3), (3 * 132 + 5, 4)])
def test_a_wave_takes_as_long_as_its_programs(programs, waves):
    kernel, inner, outer = nested()
    found = predict.predict(kernel, H100, programs, passes=6, loop=inner, outer=outer, turns=2)
    assert found.resident == 1 and found.waves == programs / 132
    assert clocks(found) == pytest.approx(waves * (12 + 2 * 15 + 6 * 20))
    assert found.clocks == 20


def test_rare_passes_take_the_longest_way():
    kernel, inner, outer = nested()
    found = predict.predict(kernel, H100, 132, passes=6, loop=inner, rare=0.25)
    assert clocks(found) == pytest.approx(12 + 15 + 6 * (0.75 * 20 + 0.25 * 35))
    with pytest.raises(ValueError, match="no rare passes"):
        predict.predict(kernel, H100, 132, 6, loop=inner, rare=0.25, outer=outer)


def test_without_a_main_loop_each_is_passed_as_often_as_told():
    kernel, inner, outer = nested()
    fixed = {outer.header: 3, inner.header: 2}
    found = predict.predict(kernel, H100, 132, 1, fixed, straight=True)
    assert clocks(found) == pytest.approx(12 + 3 * (15 + 2 * 20))


def test_cards_do_not_share_costs_unless_they_are_alike():
    lines = [("LDG.E.128 R4, [R2]", control(sets=0))] * 8
    code = text_of((".L_x_1",), *lines, ("@P0 BRA `(.L_x_1)", control(5, waits=1)),
                   ("EXIT", control()))  # fmt: skip
    kernel = predict.Kernel("k", flow.Flow(sass.parse(code)["kernel"]), 4, 32, 0, 200 << 10)
    half = replace(H100, processors=66)  # which share what L2 gives
    whole, less, same_ = (predict.predict(kernel, c, 66, 10).clocks for c in (H100, half, H100))
    assert whole == same_
    # Eight loads of 512 bytes by each quarter.
    assert whole - less == pytest.approx(8 * 4 * 512 * 66 / H100.l2_per_clock, rel=0.05)

"""What the operators on patches take on a GPU: every launch of benchmarks/gpu_patch.py's cases.

A launch's warps take ways through its machine code (patch_launches.py names them); simulate.py says
how many clocks a multiprocessor takes for them. Three other times are set beside that: bytes at the
rate that a copy reaches; what is read, with the sectors of 32 bytes that it lies in; and what is
read at the rate that the bytes on their way allow (Little's law). The longest counts.
"""

import dataclasses
import functools
import math
from collections import Counter

from benchmarks.gpu_patch import DECODER, LENGTH, ORDER, WIDTH, bytes_of
from benchmarks.machine_code import patch_banks, patch_code, record
from benchmarks.machine_code.cards import CARDS, Card
from benchmarks.machine_code.patch_launches import CASES, SIZES, Launch, Part
from benchmarks.machine_code.patch_path import Way, is_from
from benchmarks.machine_code.predict import Kernel, Prediction
from benchmarks.machine_code.sass import Instruction
from benchmarks.machine_code.simulate import Result, run
from benchmarks.machine_code.units import KINDS, use_of

#: Loads that hit L1: rows of a block share their position, and all rows the mask token.
_NEAR = {
    "decoder's input": ("add[a] = load_raw<kCount>(pos + e)", "load_raw<kCount>(token + e)"),
    "rows of the mask token": ("places[first + a]",),
}
#: What all launches have off: many channels, lengths that vary.
_NEVER = ("float(table[", "return lengths ?")
#: Launches that read what the launch before them has just written: from L2.
_FROM_L2 = ("loss_last", "sum_last", "scale", "random_plan")
#: Bytes that PyTorch's kernels move beside ours: the casts to the compute type and the first
#: gradient, by case; each is a launch.
_TORCH = {
    ("loss", "bfloat16"): (4,),
    ("loss", "float32"): (4,),
    ("decoder", "bfloat16"): ((1 + LENGTH) * DECODER * 6, DECODER * 6, DECODER * 6),
    ("gather_tokens", "bfloat16"): ((1 + LENGTH) * WIDTH * 6,),
}


def kernel_of(launch: Launch, dtype: str, architecture: int) -> Kernel:
    """The compiled kernel of a launch."""
    return patch_code.kernel(architecture, launch.kernel, dtype, launch.threads, launch.shared)


@functools.cache
def way(launch: Launch, dtype: str, architecture: int, part: Part, passes: int) -> tuple:
    """What a warp executes that takes a part of a launch alone."""
    kernel = kernel_of(launch, dtype, architecture)
    trips = ((launch.loop, passes), *part.trips) if launch.loop else part.trips
    near = _NEAR.get(launch.case, ())
    code = Way(kernel.flow, trips, part.through, part.past, 3).trace()
    off = (*_NEVER, *part.off)
    code = [_as_off(x) if x.predicate and is_from(x, off) else x for x in code]
    return tuple(_as_near(x) if x.name == "LDG" and is_from(x, near) else x for x in code)


@functools.cache
def _as_off(x: Instruction) -> Instruction:
    return dataclasses.replace(x, predicate="!PT")


@functools.cache
def _as_near(x: Instruction) -> Instruction:
    """L1 is one with shared memory, and as quick."""
    return dataclasses.replace(x, opcode="LDS.128" if "128" in x.opcode else "LDS.64")


@functools.cache
def _card(name: str, far: bool) -> Card:
    """A card; `far`: with all loads from memory."""
    card = CARDS[name]
    if not far:
        return card
    return dataclasses.replace(card, latency={**card.latency, "l2": card.latency["memory"]})


@functools.cache
def _block(launch: Launch, dtype: str, name: str, far: bool, together: int) -> Result:
    """What a multiprocessor takes for so many blocks side by side, parts in their shares."""
    card = _card(name, far)
    kernel = kernel_of(launch, dtype, card.architecture)

    def clocks(part: Part, passes: int) -> Result:
        code = way(launch, dtype, card.architecture, part, passes)
        return run(code, card, together, kernel.warps)

    total, busy = 0.0, Counter()
    for part in launch.parts:
        few = clocks(part, 2)
        if launch.loop:
            many = clocks(part, 4)
            each = (many.clocks - few.clocks) / 2
            total += part.times * each
            rates = {u: (many.busy[u] - few.busy.get(u, 0)) / 2 for u in many.busy}
            if part is launch.parts[0]:
                total += max(0.0, few.clocks - 2 * each)
        else:
            rates = few.busy
            total += part.times * few.clocks
        busy.update({u: part.times * b for u, b in rates.items()})
    return Result(total, dict(busy))


def predicted(launch: Launch, dtype: str, card: Card) -> tuple[Prediction, float]:
    """The prediction of a launch, and bytes on their way on a multiprocessor."""
    kernel = kernel_of(launch, dtype, card.architecture)
    far = launch.kernel not in _FROM_L2
    resident = kernel.resident(card)
    full, rest = divmod(launch.blocks, card.processors * resident)
    parts = [(full, resident)] if full else []
    if rest:
        parts.append((1, math.ceil(rest / card.processors)))
    shown, clocks = None, 0.0
    for count, together in parts:
        found = _block(launch, dtype, card.name, far, together)
        clocks += count * found.clocks
        shown = shown or found
    seconds, limiter = clocks / (card.clock * 1e9), shown.limiter
    most = min(resident, math.ceil(launch.blocks / card.processors)) * kernel.warps
    in_flight = launch.ahead * most
    memory = (launch.read * _touched(launch) + launch.written) / card.copy_rate
    if memory > seconds:
        seconds, limiter = memory, "memory"
    latency = _card(card.name, far).latency["l2"] / (card.clock * 1e9)
    if in_flight:
        # What waits for memory has nothing else to do: all of it is on its way all the time.
        waiting = launch.read * latency / (in_flight * min(card.processors, launch.blocks))
        if waiting > seconds:
            seconds, limiter = waiting, "latency"
    share = {u: round(b / max(shown.clocks, 1e-9), 3) for u, b in shown.busy.items() if b > 0}
    waves = launch.blocks / (card.processors * resident)
    return Prediction(seconds * 1e6, limiter, shown.clocks, share, resident, waves), in_flight


def _touched(launch: Launch) -> float:
    """Bytes of the sectors that reads touch, over those that they want: 16 pixels of a patch are
    half a sector, and whether the other half is wanted is chance.
    """
    if launch.kernel == "gather":
        return (1 - 0.75**2) / 0.25
    if launch.kernel == "levels":
        size = launch.ahead / 768
        return ((1 - 0.25**2) / 0.75 + size - 1) / size
    return 1.0


def counts(launch: Launch, dtype: str, architecture: int) -> dict[str, float]:
    """Instructions of a warp on its way, in a pass where it takes more rows than one, by unit."""
    total: Counter = Counter()
    parts = launch.parts[:1] if launch.loop else launch.parts
    for part in parts:
        found = Counter(_kind(x) for x in way(launch, dtype, architecture, part, 2))
        if launch.loop:
            found.subtract(_kind(x) for x in way(launch, dtype, architecture, part, 1))
        times = 1 if launch.loop else part.times
        total.update({k: times * n for k, n in found.items()})
    return {k: round(n, 1) for k, n in total.items() if n > 0}


def _kind(x: Instruction) -> str:
    unit = use_of(x, CARDS["H100"]).unit
    return "double" if unit == "double" else KINDS.get(unit, "other")


def needed_in_flight(card: Card) -> float:
    """Bytes that a multiprocessor has to have on their way for reads at the copy's rate."""
    return card.copy_rate * card.latency["memory"] / (card.clock * 1e9) / card.processors


def _record(launch: Launch, batch: int, dtype: str, card: Card) -> dict:
    prediction, in_flight = predicted(launch, dtype, card)
    kernel = kernel_of(launch, dtype, card.architecture)
    found = counts(launch, dtype, card.architecture)
    per = {k: v for k, v in found.items() if k != "double"}
    per["float"] = round(found.get("float", 0) + found.get("double", 0), 1)
    floor = (launch.read + launch.written) / (card.bandwidth * 1e9) * 1e6
    rows = sum(p.times for p in launch.parts[:1]) if launch.loop else 1
    elements = launch.elements / launch.blocks / rows
    size = {"batch": batch, "dtype": dtype}
    made = record.launch(
        "patch", launch.case, kernel, card, size, floor, prediction, per, launch.test,
        launch.kernel, elements,
    )  # fmt: skip
    made["bytes_in_flight"] = int(in_flight)
    made["bytes_needed"] = int(
        needed_in_flight(card) * launch.read / max(1, launch.read + launch.written)
    )
    if (pattern := patch_banks.of(launch.kernel, dtype)) is not None:
        made["shared_wavefronts"] = pattern
    return made


@functools.cache
def _records(name: str, case: str, batch: int, dtype: str) -> tuple[dict, ...]:
    return tuple(_record(x, batch, dtype, CARDS[name]) for x in CASES[case](batch, dtype))


def launches(card: Card) -> list[dict]:
    """Records of the launches of benchmarks/gpu_patch.py's cases."""
    return [x for case in ORDER for x in _records(card.name, *case)]


def calls(card: Card) -> list[dict]:
    """Records of the cases: our launches and PyTorch's, one after the other."""
    found = []
    for case, batch, dtype in ORDER:
        ours = list(_records(card.name, case, batch, dtype))
        torchs = [
            {"predicted_us": n / card.copy_rate * 1e6 + 1.0} for n in _TORCH.get((case, dtype), ())
        ]
        moved = bytes_of(case, batch, SIZES[dtype])
        floor = moved / (card.bandwidth * 1e9) * 1e6
        size = {"batch": batch, "dtype": dtype}
        made = record.call("patch", case, card, size, floor, [*ours, *torchs])
        made["share_of_copy"] = round(moved / made["graph_us"] * 1e6 / card.copy_rate, 3)
        found.append(made)
    return found


if __name__ == "__main__":
    for shown in ("H200", "A100"):
        for x in launches(CARDS[shown]):
            print(
                shown, x["case"], x["size"], x["floor_us"], x["predicted_us"], x["limiter"],
                x["share"], x["registers"], x["occupancy_warps"], x["waves"],
                x["per_element"], x["bytes_in_flight"], x["bytes_needed"],
            )  # fmt: skip
        for x in calls(CARDS[shown]):
            print(shown, x["case"], x["size"], x["floor_us"], x["kernels_us"], x["graph_us"],
                  x["launches"], x["share_of_copy"])  # fmt: skip

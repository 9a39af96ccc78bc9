"""What augmentation takes on a GPU: each stage's machine code, times how often real views pass it.

Views come from a real batch of draws. A stage's items are dealt out to a team in rounds; a round
takes what simulate.py says of a multiprocessor's 16 warps, each with one item. Views go to
whichever multiprocessor is free, in the order of the launch.

Only views in shared memory with torchvision's arithmetic on uint8 are modelled, in bfloat16 and
channels last: what benchmarks/gpu_augment.py makes.
"""

import functools
import heapq
from collections import Counter
from dataclasses import dataclass

from benchmarks.gpu_augment import ORDER
from benchmarks.machine_code import augment_code, augment_views, record
from benchmarks.machine_code.augment_views import BLOCK, View
from benchmarks.machine_code.cards import CARDS, Card
from benchmarks.machine_code.predict import Kernel, Prediction
from benchmarks.machine_code.sass import Instruction
from benchmarks.machine_code.simulate import run
from benchmarks.machine_code.units import KINDS, use_of

TEST = "tests/ops/test_augment_team.py::test_large_views"
DRAW_TEST = "tests/ops/test_augment_draw.py"
SEMANTICS = "tv-uint8"
WARPS = BLOCK // 32
DRAW_THREADS = 128
#: Clocks of a barrier and of what a stage does before its first item and after its last.
_AROUND = 60
#: Clocks of a Gaussian's weights: a chain of sums of doubles, between two barriers.
_WEIGHTS = 2000


@dataclass(frozen=True)
class Cost:
    """A round of a stage: clocks, instructions of a warp by unit, and the busiest unit's share."""

    clocks: float
    units: Counter
    busy: Counter

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.clocks + other.clocks, self.units + other.units, self.busy + other.busy)

    def __mul__(self, n: float) -> "Cost":
        return Cost(
            self.clocks * n,
            Counter({k: v * n for k, v in self.units.items()}),
            Counter({k: v * n for k, v in self.busy.items()}),
        )


NOTHING = Cost(0.0, Counter(), Counter())


def cost_of(code: list[Instruction], card: Card, near: bool = True) -> Cost:
    """A pass of 16 warps through a way, in the steady state. `near`: loads of images hit L1."""
    few, many = 2, 5
    first = run(code * few, card, 1, WARPS, near)
    second = run(code * many, card, 1, WARPS, near)
    passes = many - few
    units = Counter(KINDS.get(use_of(x, card, near).unit, "other") for x in code)
    busy = {u: (b - first.busy.get(u, 0.0)) / passes for u, b in second.busy.items()}
    return Cost((second.clocks - first.clocks) / passes, units, Counter(busy))


class Stages:
    """Costs of a kernel's stages on a card, each simulated once."""

    def __init__(self, card: Card, semantics: str):
        self.card, self.semantics = card, semantics
        self.code = augment_code.code(card.architecture, semantics)
        self._items: dict[tuple, Cost] = {}
        self._first = self._start()
        self._known: dict[int, tuple[View, dict[str, Cost]]] = {}

    def item(self, name: str, trips: int = 1, near: bool = True, through=(), step=None) -> Cost:
        """A round of a stage: the arguments are those of `augment_code.Code.item`."""
        key = name, trips, near, through, step
        if key not in self._items:
            code = self.code.item(name, trips, through=through, step=step)
            self._items[key] = cost_of(code, self.card, near)
        return self._items[key]

    def _start(self) -> Cost:
        # One thread reads the draw and plans, the others wait.
        code = self.code.before("rows")
        result = run(code, self.card, 1, WARPS)
        # Two chains of loads from memory: the draw, and the weights' first source.
        clocks = result.clocks + 2 * self.card.latency["memory"]
        units = Counter(KINDS.get(use_of(x, self.card).unit, "other") for x in code)
        return Cost(clocks, units, Counter(result.busy))

    def of_view(self, view: View) -> dict[str, Cost]:
        """The stages of one view of a team, as if all of a multiprocessor's teams were alike."""
        if id(view) not in self._known:
            self._known[id(view)] = view, self._of_view(view)
        return self._known[id(view)][1]

    def _of_view(self, view: View) -> dict[str, Cost]:
        costs = {"start": self._first}
        rows, columns = NOTHING, NOTHING
        third = view.taps_across > 2.01
        for tile in view.tiles:
            miss = min(1.0, view.lines / max(1, view.width / 32))
            item = self.item("rows", 1) * (1 - miss) + self.item("rows", 1, False) * miss
            if third:
                item = self.item("rows", 1, True, ("if (left > 0)",)) + item
                item = item + self.item("rows", 1) * -1
            rows = rows + item * tile.row_rounds + Cost(_AROUND, Counter(), Counter())
            through = ("summand<semantics>(gray)",) if view.contrast else ()
            item = self.item("columns", 2, True, through)
            if view.taps_down > 2.01:
                item = item + (self.item("columns", 3) + self.item("columns", 2) * -1) * (
                    view.taps_down - 2
                )
            columns = columns + item * tile.column_rounds + Cost(_AROUND, Counter(), Counter())
        costs["rows"], costs["columns"] = rows, columns
        color = NOTHING
        rounds = sum(tile.column_rounds for tile in view.tiles)
        for step in view.first_steps:
            color = color + self.item("columns", 0, True, (), step) * rounds
        if view.contrast:
            item = self.item("sweep", 0)
            for step in view.last_steps:
                item = item + self.item("sweep", 0, True, (), step)
            color = color + item * view.sweep_rounds + Cost(3 * _AROUND, Counter(), Counter())
        costs["colour"] = color
        if view.blur:
            costs["blur"] = self._blur(view)
        costs["store"] = self.item("store", 0) * view.store_rounds
        return costs

    def _blur(self, view: View) -> Cost:
        total = NOTHING
        # Quads of taps are taken two at a time, and their number is odd.
        edge = self.item("blur, rows", 1, True, ("bytes_of(a, b",))
        plain = self.item("blur, rows", 1)
        for strip in view.strips:
            along = self.item("blur, rows", view.along // 2)
            along = along + (edge + plain * -1) * (strip.edges / 3)
            down = self.item("blur, columns", view.down)
            total = total + along * strip.row_rounds + down * strip.column_rounds
            total = total + Cost(2 * _AROUND, Counter(), Counter())
        return total * view.planes + Cost(_WEIGHTS, Counter(), Counter())


@functools.cache
def _stages(architecture: int) -> Stages:
    # Cards of one architecture differ in memory, number of processors and clock alone.
    return Stages(next(c for c in CARDS.values() if c.architecture == architecture), SEMANTICS)


def launch_cost(card: Card, case: str, batch: int) -> tuple[float, dict[str, Cost], float]:
    """(clocks of the launch, clocks of all its views by stage, waves of blocks)."""
    made = _stages(card.architecture)
    blocks = augment_views.blocks(
        augment_views.views(case, batch, card.shared_of_program, card.processors)
    )
    free = [0.0] * card.processors
    total: dict[str, Cost] = {}
    for block in blocks:
        # Teams of a block share its multiprocessor: a round of 16 warps is a round of all of them.
        costs = [made.of_view(v) for v in block]
        clocks = max(sum(c.clocks for c in one.values()) for one in costs)
        heapq.heappush(free, heapq.heappop(free) + clocks)
        for one in costs:
            for name, cost in one.items():
                total[name] = total.get(name, NOTHING) + cost * (1 / len(block))
    return max(free), total, len(blocks) / card.processors


def floor_us(card: Card, case: str, batch: int) -> float:
    """Images read once, views written once, at the memory's published rate."""
    return augment_views.moved(case, batch) / (card.bandwidth * 1e9) * 1e6


def arithmetic_floor_us(card: Card, case: str, batch: int) -> float:
    """The views' least arithmetic at the rate of float32 operations, on all processors at once."""
    views = augment_views.views(case, batch, card.shared_of_program, card.processors)
    return sum(v.operations for v in views) / card.rate("float") * 1e6


def _kernel(card: Card, semantics: str, name: str, warps: int, shared: int) -> Kernel:
    mangled = augment_code.mangled(card.architecture, semantics)
    registers, stack, _ = augment_code.resources(card.architecture)[mangled]
    return Kernel(
        name, augment_code.flow(card.architecture, semantics), warps, registers, stack, shared
    )


@functools.cache
def _apply(card_name: str, case: str, batch: int) -> dict:
    card = CARDS[card_name]
    clocks, total, waves = launch_cost(card, case, batch)
    whole = sum(total.values(), NOTHING)
    shares = {u: b / whole.clocks for u, b in whole.busy.items()}
    unit = max(shares, key=lambda u: shares[u])
    seconds, limiter = clocks / (card.clock * 1e9), unit if shares[unit] >= 0.7 else "latency"
    memory = augment_views.moved(case, batch) / card.copy_rate
    if memory > seconds:
        seconds, limiter = memory, "memory"
    prediction = Prediction(
        seconds * 1e6, limiter, whole.clocks, {u: round(s, 3) for u, s in shares.items()}, 1, waves
    )
    kernel = _kernel(card, SEMANTICS, "apply_kernel", WARPS, card.shared_of_program)
    found = record.launch(
        "augment", case, kernel, card, {"batch": batch}, floor_us(card, case, batch), prediction,
        {}, TEST,
    )  # fmt: skip
    found["arithmetic_floor_us"] = round(arithmetic_floor_us(card, case, batch), 3)
    pixels = augment_views.pixels(case) * batch
    found["per_element"] = {
        k: round(v * 32 * WARPS / pixels, 2) for k, v in sorted(whole.units.items())
    }
    found["stages"] = {n: round(c.clocks / whole.clocks, 3) for n, c in total.items()}
    return found


@functools.cache
def _draw(card_name: str, case: str, batch: int) -> dict:
    """A thread for each view: as long as one of them takes."""
    card = CARDS[card_name]
    views = batch * augment_views.places(case)
    blocks = -(-views // DRAW_THREADS)
    code = augment_code.straight(card.architecture, "draw")
    resident = -(-blocks // card.processors)
    result = run(code, card, resident, DRAW_THREADS // 32)
    # What it reads has been written by others, and comes from L2 or further.
    clocks = result.clocks + card.latency["memory"]
    prediction = Prediction(
        clocks / card.clock / 1e3, "latency", clocks, {}, resident, blocks / card.processors
    )
    kernel = _kernel(card, "draw", "draw_kernel", DRAW_THREADS // 32, 0)
    moved = views * (4 * 4 + 5 + 4 + 5 * 4) + 8 * batch
    return record.launch(
        "augment", case, kernel, card, {"batch": batch}, moved / card.bandwidth / 1e3, prediction,
        {}, DRAW_TEST,
    )  # fmt: skip


def launches(card: Card) -> list[dict]:
    """Records of what the cases of benchmarks/gpu_augment.py launch.

    Raises:
        FileNotFoundError: there is neither a built library nor nvcc.
    """
    return [make(card.name, case, batch) for case, batch in ORDER for make in (_draw, _apply)]


def calls(card: Card) -> list[dict]:
    """Records of those cases: draws, then views."""
    return [
        record.call(
            "augment", case, card, {"batch": batch}, floor_us(card, case, batch),
            [_draw(card.name, case, batch), _apply(card.name, case, batch)],
        )
        for case, batch in ORDER
    ]  # fmt: skip

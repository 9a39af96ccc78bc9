"""Time of a launch from its machine code: waves of programs, a main loop, memory."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.machine_code.cards import H100, Card
from benchmarks.machine_code.flow import Flow, Loop, Path
from benchmarks.machine_code.sass import Instruction, disassemble
from benchmarks.machine_code.simulate import Result, run, steady
from benchmarks.machine_code.units import KINDS, TENSOR, use_of

#: Registers are handed out to a warp in units of so many.
_REGISTER_UNIT = 8 * 32
#: What the system keeps of shared memory for each program, from compute capability 8 on.
_SHARED_OF_SYSTEM = 1024


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    `registers` and `spills` (bytes of stack) are a thread's; `shared` (bytes) is a program's.
    """

    name: str
    flow: Flow
    warps: int
    registers: int
    spills: int
    shared: int
    _steady: dict = field(default_factory=dict, compare=False, repr=False)

    def resident(self, card: Card) -> int:
        """How many programs a multiprocessor holds at once."""
        by_registers = card.registers // (
            -(-self.registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT * self.warps
        )
        by_shared = card.shared_bytes // (self.shared + _SHARED_OF_SYSTEM)
        return max(1, min(by_registers, by_shared, card.warps // self.warps, card.programs))

    def main_loop(self) -> Loop | None:
        """The loop with the products, the innermost of them; without any, the longest loop."""
        loops = self.flow.all_loops()
        matrix = [x for x in loops if has_tensor(self.flow.instructions(x))]
        if matrix:
            return min(matrix, key=lambda x: len(x.blocks))
        return max(loops, key=lambda x: len(self.flow.instructions(x)), default=None)

    def around(self, loop: Loop) -> Loop | None:
        """The loop that holds another one directly."""
        return next((x for x in self.flow.all_loops() if loop in x.inner), None)


def has_tensor(code: list[Instruction]) -> bool:
    """Whether there are matrix products in some code."""
    return any(x.name in TENSOR for x in code)


def kernel_of(compiled, found) -> Kernel:
    """A kernel that Triton compiled; `found`: its `compiled.resources`."""
    (name, code), *_ = disassemble(compiled.asm["cubin"]).items()
    return Kernel(name, Flow(code), found.warps, found.registers, found.stack, found.shared)


@dataclass(frozen=True)
class Prediction:
    """What a launch takes.

    `limiter`: the unit that is busy for at least 70 % of the main loop's time, "memory" where the
    card's memory takes longer than the code, "latency" where nothing is busy so long. `clocks`: of
    a pass through the main loop by all programs of a multiprocessor; `share`: the share of it for
    which each unit is busy.
    """

    microseconds: float
    limiter: str
    clocks: float
    share: dict[str, float]
    resident: int
    waves: float


def _clock(card: Card, result: Result) -> float:
    """GHz: tensor cores draw the power that the highest clock needs."""
    part = min(1.0, result.busy.get("tensor", 0.0) / max(result.clocks, 1.0))
    return card.clock - (card.clock - card.tensor_clock) * part


def predict(
    kernel: Kernel,
    card: Card,
    programs: int,
    passes: float,
    fixed: Mapping[int, int] | None = None,
    loop: Loop | None = None,
    straight: bool = False,
    rare: float = 0.0,
    moved: float = 0.0,
    cached: bool = True,
    outer: Loop | None = None,
    turns: float = 1.0,
) -> Prediction:
    """Predicts a launch.

    Args:
        kernel: the compiled kernel.
        card: the card.
        programs: thread blocks of the launch.
        passes: how often a program passes its main loop, on average.
        fixed: how often other loops are passed each time, by the header's block.
        loop: the main loop, if it is not `kernel.main_loop()`.
        straight: there is no main loop; `fixed` says how often each loop is passed.
        rare: the share of passes that take the longest way through the loop.
        moved: bytes that the launch reads from and writes to the card's memory.
        cached: whether loads of less than 16 bytes a thread hit L1.
        outer: a loop around the main loop; `passes` are then those of all its turns.
        turns: how often `outer` is passed.

    Raises:
        ValueError: `rare` and `outer` are both given.
    """
    if rare and outer:
        raise ValueError("a loop inside another one has no rare passes")
    loop = None if straight else loop or kernel.main_loop()
    resident = kernel.resident(card)
    full, rest = divmod(programs, card.processors * resident)
    parts = [(full, resident)] if full else []
    if rest:
        parts.append((1, math.ceil(rest / card.processors)))
    seconds, shown = 0.0, None
    for count, together in parts:
        clocks, each = _wave(
            kernel, card, together, passes, fixed, loop, rare, cached, outer, turns
        )
        seconds += count * clocks / (_clock(card, each) * 1e9)
        shown = shown or each
    limiter = shown.limiter
    if moved / card.copy_rate > seconds:
        seconds, limiter = moved / card.copy_rate, "memory"
    share = {u: round(b / max(shown.clocks, 1e-9), 3) for u, b in shown.busy.items() if b > 0}
    waves = programs / (card.processors * resident)
    return Prediction(seconds * 1e6, limiter, shown.clocks, share, resident, waves)


def _wave(
    kernel, card, together, passes, fixed, loop, rare, cached, outer, turns
) -> tuple[float, Result]:
    """Clocks of programs that run side by side, and what one pass of them costs."""
    if outer:
        fixed = dict(fixed or {})
        each = _cost(kernel, card, together, fixed, loop, False, cached)[1]
        once, turn = _cost(kernel, card, together, {**fixed, loop.header: 1}, outer, False, cached)
        start = max(0.0, turn.clocks - each.clocks)
        return max(0.0, once.clocks) + turns * start + passes * each.clocks, each
    once, each = _cost(kernel, card, together, fixed, loop, False, cached)
    if not loop:
        return once.clocks, once
    clocks = each.clocks
    if rare:
        clocks += rare * (
            _cost(kernel, card, together, fixed, loop, True, cached)[1].clocks - clocks
        )
    return max(0.0, once.clocks) + passes * clocks, each


def _cost(kernel, card, together, fixed, loop, longest, cached) -> tuple[Result, Result]:
    """(once, each pass); kept, as some cards differ in memory alone."""
    trips = dict(fixed or {})
    at = loop and loop.header
    key = *card.pace, together, tuple(sorted(trips.items())), longest, cached, at
    if key not in kernel._steady:

        def body(count: int) -> list[Instruction]:
            return Path(kernel.flow, {**trips, loop.header: count}, longest).trace()

        if loop:
            found = steady(body, card, together, kernel.warps, cached)
        else:
            trace = Path(kernel.flow, trips, longest).trace()
            found = run(trace, card, together, kernel.warps, cached), Result(0.0, {})
        kernel._steady[key] = found
    return kernel._steady[key]


def counts(kernel: Kernel, loop: Loop | None, fixed=None) -> dict[str, int]:
    """Instructions of a warp in a pass through a loop, by what they are."""
    trips = {**(fixed or {}), **({loop.header: 1} if loop else {})}
    path = Path(kernel.flow, trips)
    code = path.body(loop) if loop else path.trace()
    found = Counter(KINDS.get(use_of(x, H100).unit) for x in code)
    return {
        k: found[k] for k in ("tensor", "exp", "float", "integer", "shared", "global", "barrier")
    }

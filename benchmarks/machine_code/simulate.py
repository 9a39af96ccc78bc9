"""Clocks that compiled code takes on one quarter of a multiprocessor.

Every resident warp of the quarter follows the same path. A warp issues in order, no sooner than
the compiler's stall counts and scoreboards allow; of those that can, the one that issued last goes
on, else the youngest (the policy that Huerta et al., arXiv:2503.20481, find in these cards), one
instruction a clock. Units take what they are given in turn, each for the time that its published
rate says. Barriers hold a program's warps together; other quarters do the same as this one.

Not modelled: bank conflicts, the register file's ports and caches, instruction cache misses, TLB
misses, contention beyond bandwidth, boost and power limits.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.machine_code.cards import Card
from benchmarks.machine_code.sass import NO_BARRIER, Instruction
from benchmarks.machine_code.units import OF_GROUPS, QUARTERS, Use, use_of

#: How many instructions may stand in front of a unit before issuing stops.
_QUEUE = {"special": 2, "shared": 6, "global": 6, "tensor": 1, "double": 2}
_FORWARD = 1e9


@dataclass
class Result:
    """What a run took: clocks, and clocks that each unit was busy."""

    clocks: float
    busy: dict[str, float]

    @property
    def limiter(self) -> str:
        """The unit that was busy most; "latency" where none was for 70 % of the time."""
        unit, most = max(self.busy.items(), key=lambda item: item[1])
        return unit if most >= 0.7 * self.clocks else "latency"


@dataclass
class _Warp:
    program: int
    at: int = 0
    ready: float = 0.0
    scoreboards: list[float] = field(default_factory=lambda: [0.0] * 8)
    copies: float = 0.0  # when the last of its asynchronous copies is there
    groups: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)  # ends of committed matrix products
    product: float = 0.0
    waiting: bool = False
    able: float = 0.0  # when it could issue its next instruction, units aside


class _Quarter:
    def __init__(self, card: Card, programs: int, warps: int, cached: bool):
        self.card, self.cached, self.free = card, cached, defaultdict(float)
        self.busy: dict[str, float] = defaultdict(float)
        self.warps = [_Warp(p) for p in range(programs) for _ in range(warps)]
        self.of_program = [[w for w in self.warps if w.program == p] for p in range(programs)]
        self.issue = 0.0
        self.uses: dict[int, Use] = {}

    def use(self, x: Instruction) -> Use:
        found = self.uses.get(id(x))
        if found is None:
            found = self.uses[id(x)] = use_of(x, self.card, self.cached)
        return found

    def able(self, warp: _Warp, x: Instruction) -> float:
        """When a warp could issue its next instruction, were the units free."""
        at = warp.ready
        if x.waits:
            for i in range(6):
                if x.waits >> i & 1:
                    at = max(at, warp.scoreboards[i])
        if x.name == "DEPBAR":
            at = max(at, self._copies(warp, x))
        elif x.opcode.startswith("WARPGROUP.DEPBAR"):
            left = int(x.operands.rsplit("0x", 1)[1].split()[0], 16)
            done = warp.products[: len(warp.products) - left] if left else warp.products
            at = max([at, *done])
        return at

    @staticmethod
    def _copies(warp: _Warp, x: Instruction) -> float:
        if not warp.groups:
            return 0.0
        parts = x.operands.split(",")
        left = int(parts[1].strip(), 16) if len(parts) > 1 else 0
        done = warp.groups[: len(warp.groups) - left] if left else warp.groups
        return max(done, default=0.0)

    def execute(self, warp: _Warp, x: Instruction, use: Use, at: float) -> None:
        """Issues an instruction."""
        start = max(at, self.free[use.unit]) if use.busy else at
        end = start + use.busy
        if use.busy:
            self.free[use.unit] = end
            self.busy[use.unit] += use.busy
        self.busy["issue"] += 1
        read = end + 2  # when its operands have been read
        if use.unit == "global" or x.name == "LDGSTS":
            # Through L1, which is one with shared memory, and L2.
            self.free["shared"] = max(self.free["shared"], start) + use.busy
            self.busy["shared"] += use.busy
            self.free["l2"] = max(self.free["l2"], start) + use.l2
            self.busy["l2"] += use.l2
            end = max(end, self.free["l2"])
        elif use.shared:
            self.free["shared"] = max(self.free["shared"], start) + use.shared
            self.busy["shared"] += use.shared
            end = max(end, self.free["shared"])
            self.free["tensor"] = max(self.free["tensor"], end)
        elif use.unit in ("multiply", "float"):
            # Two pipes: integer products have one of them, float operations both.
            both = self.card.per_clock["float"] > self.card.per_clock["multiply"]
            other = "float" if use.unit == "multiply" else "multiply"
            part = use.busy / 2 if both and use.unit == "multiply" else use.busy
            if use.unit == "multiply" or not both:
                self.free[other] = max(self.free[other], start) + part
                self.busy[other] += part
        done = end + use.latency
        if x.name == "LDGSTS":
            warp.copies = max(warp.copies, done)
        elif x.name == "LDGDEPBAR":
            warp.groups.append(warp.copies)
        elif x.name in OF_GROUPS:
            warp.product = max(warp.product, done)
            if "gsb0" in x.operands:
                warp.products.append(warp.product)
        if x.sets != NO_BARRIER:
            board = warp.scoreboards
            board[x.sets] = max(board[x.sets], done)
        if x.frees != NO_BARRIER:
            board = warp.scoreboards
            board[x.frees] = max(board[x.frees], read)
        warp.ready = at + max(1, x.stall)
        self.issue = at + 1
        warp.at += 1


def run(
    trace: Sequence[Instruction], card: Card, programs: int, warps: float, cached: bool = False
) -> Result:
    """Runs a path on one quarter.

    Args:
        trace: the path of a warp, as `flow.Path.trace` gives it.
        card: whose rates.
        programs: programs (thread blocks) that a multiprocessor holds at once.
        warps: warps of one program. Where a quarter has less than one of each, programs share it.
        cached: see `units.use_of`.
    """
    each = max(1, round(warps / QUARTERS))
    here = max(1, round(programs * warps / QUARTERS / each))
    quarter = _Quarter(card, here, each, cached)
    live = list(quarter.warps)
    # Programs are not in step: each starts when the one before it has come a little further.
    for warp in live:
        warp.ready = 37.0 * warp.program
    uses = [quarter.use(x) for x in trace]
    rooms = [_QUEUE.get(u.unit, 0) * u.busy for u in uses]
    for warp in live:
        warp.able = quarter.able(warp, trace[0])
    end, last, free = 0.0, None, quarter.free
    while live:
        best, when = None, _FORWARD
        for warp in live:  # from the oldest to the youngest
            if warp.waiting:
                continue
            at = warp.able
            use = uses[warp.at]
            if use.busy and (turn := free[use.unit] - rooms[warp.at]) > at:
                at = turn
            at = max(at, quarter.issue)
            if at < when or (at == when and best is not last):
                best, when = warp, at
        last = best
        x = trace[best.at]
        quarter.execute(best, x, uses[best.at], when)
        if x.opcode.startswith("BAR.SYNC"):
            _meet(quarter, best, card)
        if best.at == len(trace):
            live.remove(best)
            end = max(end, best.ready, *best.scoreboards)
        for warp in quarter.of_program[best.program] if not best.waiting else ():
            if warp.at < len(trace) and not warp.waiting and (warp is best or x.name == "BAR"):
                warp.able = quarter.able(warp, trace[warp.at])
    return Result(end, dict(quarter.busy))


def _meet(quarter: _Quarter, warp: _Warp, card: Card) -> None:
    """Holds a warp at a barrier until all of its program have come."""
    mates = quarter.of_program[warp.program]
    warp.waiting = True
    if all(w.waiting for w in mates):
        last = max(w.ready for w in mates)
        for w in mates:
            w.waiting = False
            w.ready = max(w.ready, last + card.latency["barrier"])


def steady(
    bodies, card: Card, programs: int, warps: float, cached: bool = False
) -> tuple[Result, Result]:
    """What a loop costs: (once, each pass), from two runs of different length.

    Args:
        bodies: function of a number of passes that gives the path.
        card: whose rates.
        programs: programs that a multiprocessor holds at once.
        warps: warps of one program.
        cached: see `units.use_of`.
    """
    few, many = 4, 8
    first = run(bodies(few), card, programs, warps, cached)
    second = run(bodies(many), card, programs, warps, cached)
    units = second.busy.keys()
    passes = many - few
    each = Result(
        (second.clocks - first.clocks) / passes,
        {u: (second.busy[u] - first.busy.get(u, 0.0)) / passes for u in units},
    )
    once = Result(
        first.clocks - few * each.clocks,
        {u: first.busy.get(u, 0.0) - few * each.busy[u] for u in units},
    )
    return once, each

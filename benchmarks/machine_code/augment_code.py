"""The stages of the augmentation kernel in its machine code, found by lines of the source.

A loop belongs to the stage whose call it was inlined from. What a warp executes for one item of a
stage is the way through that loop's body that real views take: `STAGES` names lines that are on
it and lines that are not.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine_code import cuda_code
from benchmarks.machine_code.flow import Flow, Loop
from benchmarks.machine_code.patch_path import Way
from benchmarks.machine_code.sass import Instruction, disassemble

ROOT = Path(__file__).resolve().parents[2]
SEMANTICS = {"tv-float": 1, "tv-uint8": 0, "pil": 2}
#: What views in shared memory are inlined from; those in scratch memory have their own function.
NEAR = "make_near_view<semantics, Source>(team"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Lines that tell a stage.

    `call`: what its loop is inlined from; `within`: further lines around it; `through` and `past`:
    on the way and off it; `inner`: a line of the loop inside that runs over taps or steps.
    """

    call: str
    within: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    inner: str = ""


_RARE = (
    "computed(p",
    "R::inside(q.r)",
    "if (before)",
    "partial[(c",
    "put(plane + spot.i + k",
    "x >= threshold",
)
STAGES = {
    "rows": Stage(
        "resample_rows<R, Source, true>", through=("*to = R::between_passes",),
        past=(*_RARE, "if (left > 0)"), inner="add(1, weight[1])",
    ),
    "columns": Stage(
        "resample_columns<R>(", through=("put_quad(plane", "store(view + "), past=_RARE,
        inner="add(weight[r])",
    ),
    "sweep": Stage(
        "team.for_each((pixels + kQuad", through=("store(view + ",), past=("summand",)
    ),
    "blur, rows": Stage(
        "blur_rows(team, strip", past=("bytes_of(a, b", "row[reflected"), inner="weights[n + 1]"
    ),
    "blur, columns": Stage(
        "blur_columns<R>(team, strip", through=("if (even) return put_quad",),
        past=("load_quad(waiting", "put_quad(strip.waiting"),
        inner="weights[n + 1]",
    ),
    "store": Stage(
        "write_interleaved<type>(", within=("write_as<OutputType::kBFloat16>",), past=_RARE
    ),
}  # fmt: skip
#: Lines of each kind of step, inside `columns` and `sweep`.
STEPS = {
    "hue": ("hue(p, s.factor)",),
    "brightness": ("finished(q.r * s.factor)",),
    "gray": ("q.r = q.g = q.b = gray(q)",),
    "blend": ("blended(q.r, other, s)",),
}


@functools.lru_cache
def _lines(file: str) -> list[str]:
    path = ROOT / file[file.rindex("csrc/") :] if "csrc/" in file else None
    return path.read_text().splitlines() if path and path.exists() else []


@functools.cache
def _text(file: str, line: int) -> str:
    lines = _lines(file)
    return lines[line - 1] if line <= len(lines) else ""


def comes_from(x: Instruction, mark: str) -> bool:
    """Whether an instruction is of a line with this text, or inlined there."""
    return any(mark in _text(*place) for place in x.source)


def is_fresh() -> bool:
    """Whether a built library is newer than the kernels' sources."""
    return cuda_code.is_fresh("augment")


def _cubin(architecture: int) -> bytes:
    return cuda_code.cubin("augment", "apply_kernel", architecture)


@functools.lru_cache
def _kernels(architecture: int) -> dict[str, list[Instruction]]:
    return disassemble(_cubin(architecture), lines=True)


def resources(architecture: int) -> dict[str, tuple[int, int, int]]:
    """(registers, bytes on the stack, static shared memory) of each kernel, by its mangled name."""
    return cuda_code.resources(_cubin(architecture))


def mangled(architecture: int, semantics: str) -> str:
    """The mangled name of a kernel that reads uint8 images; "draw" is the drawing one."""
    part = "draw_kernel" if semantics == "draw" else f"SemanticsE{SEMANTICS[semantics]}EhE"
    return next(name for name in _kernels(architecture) if part in name)


@functools.lru_cache
def flow(architecture: int, semantics: str) -> Flow:
    """A kernel's control flow."""
    return Flow(_kernels(architecture)[mangled(architecture, semantics)])


def straight(architecture: int, semantics: str) -> list[Instruction]:
    """The shortest way through a kernel without stages."""
    return Way(flow(architecture, semantics)).trace()


@functools.lru_cache
def code(architecture: int, semantics: str) -> "Code":
    """One kernel's stages."""
    return Code(_kernels(architecture)[mangled(architecture, semantics)])


class Code:
    """A kernel's machine code, and the ways through its stages."""

    def __init__(self, instructions: list[Instruction]):
        self.flow = _with_tables(Flow(instructions))

    def loop(self, stage: Stage, place: str = NEAR) -> Loop:
        """The loop over a stage's items.

        Raises:
            LookupError: there is none.
        """
        marks = (stage.call, place, *stage.within)
        found = [x for x in self.flow.all_loops() if self._share(x, marks) > 0.9]
        if not found:
            raise LookupError(f"no loop comes from {marks}")
        return max(found, key=lambda x: len(self.flow.instructions(x)))

    def _share(self, loop: Loop, marks: Sequence[str]) -> float:
        instructions = self.flow.instructions(loop)
        ours = sum(all(comes_from(x, m) for m in marks) for x in instructions)
        return ours / len(instructions)

    def blocks(self, marks: Sequence[str], inside: Loop) -> frozenset[int]:
        """Blocks of a loop with an instruction of one of these lines."""
        flow = self.flow
        return frozenset(
            b
            for b in inside.blocks
            if any(comes_from(flow.code[i], m) for i in flow.blocks[b] for m in marks)
        )

    def item(
        self, name: str, trips: int = 1, place: str = NEAR, through: Sequence[str] = (),
        step: str | None = None,
    ) -> list[Instruction]:  # fmt: skip
        """What a warp executes for one item of a stage, its inner loop passed `trips` times; with
        `step`, for one step of that kind alone.
        """
        stage = STAGES[name]
        loop = self.loop(stage, place)
        past = [m for m in stage.past if m not in through]
        steps = [x for x in loop.walk() if x is not loop and self._is(x, "C::run(p, steps")]
        way = Way(self.flow)
        way.trips = {x.header: 0 for x in loop.walk() if x is not loop}
        way.past = self.blocks(past, loop)
        if step:
            others = [m for k, marks in STEPS.items() if k != step for m in marks]
            way.through = self.blocks(STEPS[step], loop)
            way.past = self.blocks(others, loop) - way.through
            return way.body(max(steps, key=lambda x: len(x.blocks)))
        way.through = self.blocks([*stage.through, *through], loop)
        if stage.inner:
            inner = [x for x in loop.inner if self._is(x, stage.inner)]
            over = max(inner, key=lambda x: len(x.blocks))
            way.trips[over.header] = trips
            way.through |= over.blocks if trips else frozenset()
        return way.body(loop)

    def _is(self, loop: Loop, mark: str) -> bool:
        return any(comes_from(x, mark) for x in self.flow.instructions(loop))

    def before(self, name: str, place: str = NEAR) -> list[Instruction]:
        """The shortest way from the kernel's start to a stage."""
        header = self.loop(STAGES[name], place).header
        came: dict[int, int | None] = {0: None}
        queue = [0]
        for b in queue:
            for to in self.flow.next[b]:
                if to not in came:
                    came[to] = b
                    queue.append(to)
        way, at = [], came.get(header)
        while at is not None:
            way.append(at)
            at = came[at]
        return [self.flow.code[i] for b in reversed(way) for i in self.flow.blocks[b]]


def _with_tables(flow: Flow) -> Flow:
    """Branches through a table go to the blocks behind them that nothing else leads to."""
    led = {to for following in flow.next for to in following}
    tables = [b for b, block in enumerate(flow.blocks) if flow.code[block[-1]].name == "BRX"]
    if not tables:
        return flow
    for at, after in zip(tables, [*tables[1:], len(flow.blocks)], strict=True):
        orphans = [b for b in range(at + 1, after) if b not in led or b == at + 1]
        limit = next((b for b in orphans if b - at > 40), after)
        flow.next[at] = [b for b in orphans if b < limit]
    flow.loops = flow._nested(flow._loops())
    return flow

"""The way that a warp takes through a compiled C++ kernel, told by lines of its source.

One kernel serves many cases: every kind of loss, lengths that vary, rows that lie anyhow. A line of
the source that the case goes through, or does not, says which branches are taken; between those
that it leaves open the shortest way is the usual one.
"""

import functools
from collections.abc import Sequence
from pathlib import Path as File

from benchmarks.machine_code.flow import Flow, Loop, Path
from benchmarks.machine_code.sass import Instruction

SOURCES = File(__file__).resolve().parents[2] / "csrc"


@functools.lru_cache
def lines_of(name: str) -> list[str]:
    """A source file's lines, by its path below csrc; empty where it is none of ours."""
    path = SOURCES / name
    return path.read_text().splitlines() if path.exists() else []


@functools.cache
def text_at(file: str, line: int) -> str:
    """A line of a source file of ours, by the path that the compiler wrote down."""
    _, found, name = file.rpartition("/csrc/")
    lines = lines_of(name) if found else []
    return lines[line - 1] if 0 < line <= len(lines) else ""


def is_from(x: Instruction, marks: Sequence[str]) -> bool:
    """Whether an instruction comes from a line with one of these texts, or was inlined there."""
    return any(mark in text_at(*place) for place in x.source for mark in marks)


class Way(Path):
    """A path that goes through some lines and avoids others.

    Args:
        flow: the kernel's control flow.
        trips: (text of a line in the loop, passes) pairs; the first that fits counts. A loop that
            none fits is passed once.
        through: texts of lines; as many blocks of them as possible are passed.
        past: texts of lines whose blocks are not entered.
        weight: for how many blocks of `through` one of `past` is entered; 0: never, if there is
            another way.
    """

    def __init__(
        self,
        flow: Flow,
        trips: Sequence[tuple[str, int]] = (),
        through: Sequence[str] = (),
        past: Sequence[str] = (),
        weight: int = 0,
    ):
        self.through = frozenset(b for b in range(len(flow.blocks)) if _has(flow, b, through))
        self.past = frozenset(b for b in range(len(flow.blocks)) if _has(flow, b, past))
        self.weight = weight
        counts = {}
        for loop in flow.all_loops():
            own = loop.blocks - {b for inner in loop.inner for b in inner.blocks}
            code = [flow.code[i] for b in sorted(own) for i in flow.blocks[b]]
            for mark, count in trips:
                if any(is_from(x, (mark,)) for x in code):
                    counts[loop.header] = count
                    break
        super().__init__(flow, counts)

    def _run(self, start: int, loops: list[Loop], inside, is_end) -> list[Instruction]:
        owner = {b: loop for loop in loops for b in loop.blocks}

        def following(node: int) -> set[int]:
            if node in owner:
                inner = owner[node].blocks
                out = {to for b in inner for to in self.flow.next[b] if to not in inner}
            else:
                out = set(self.flow.next[node])
            if inside is not None:
                out = {to for to in out if to in inside.blocks and to != inside.header}
            return {owner[to].header if to in owner else to for to in out}

        best: dict[int, tuple[tuple[int, int, int], list[int]] | None] = {}

        def search(node: int):
            if node in best:
                return best[node]
            best[node] = None  # a way back that is no loop's counts as none
            loop = owner.get(node)
            here = loop.blocks if loop else {node}
            gain = len(here & self.through) * (self.trips.get(node, 1) > 0 if loop else 1)
            cost = 0 if loop else len(self.flow.blocks[node])
            avoided = 0 if loop else int(node in self.past)
            options = [found for to in following(node) if (found := search(to)) is not None]
            if is_end(node) or (loop and any(is_end(b) for b in loop.blocks)):
                options.append(((0, 0, 0), []))
            if options:
                rank, way = max(options, key=lambda option: option[0])
                if self.weight:
                    gain, avoided = gain - self.weight * avoided, 0
                best[node] = (
                    (rank[0] - avoided, rank[1] + gain, rank[2] - cost),
                    [node, *way],
                )
            return best[node]

        found = search(owner[start].header if start in owner else start)
        if found is None:
            raise ValueError(f"no way from block {start} to an end")
        trace: list[Instruction] = []
        for node in found[1]:
            trace += self._loop(owner[node]) if node in owner else self._block(node)
        return trace


def _has(flow: Flow, block: int, marks: Sequence[str]) -> bool:
    return bool(marks) and any(is_from(flow.code[i], marks) for i in flow.blocks[block])

"""Control flow of machine code: basic blocks, natural loops, and the path that a warp takes.

A warp's path is found without running it: every loop is passed a given number of times, and where
code branches inside a loop the shortest way through it is the usual one (what is skipped are tiles
with exceptions and slow paths of divisions), the longest the other. There no way leaves out what
another one stores in the card's memory: such branches are for threads beyond the last row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.machine_code.sass import Instruction

#: What ends a thread or goes back to who called.
_ENDS = ("EXIT", "RET", "BPT", "KILL")
#: What writes to the card's memory.
_STORES = ("ST", "STG")


def _jumps(x: Instruction) -> bool:
    """Whether an instruction is a branch; far ones are calls to a label that never return."""
    far = x.name == "CALL" and (x.target or "").startswith(".L")
    return x.name == "BRA" or far


@dataclass
class Loop:
    """A natural loop: its header's block, its blocks, the blocks that jump back, inner loops."""

    header: int
    blocks: frozenset[int]
    latches: tuple[int, ...]
    inner: list["Loop"] = field(default_factory=list)

    def walk(self):
        """The loop and all inside it."""
        yield self
        for loop in self.inner:
            yield from loop.walk()


class Flow:
    """Basic blocks of a kernel and how they follow each other."""

    def __init__(self, code: Sequence[Instruction]):
        self.code = list(code)
        at = {label: i for i, x in enumerate(self.code) for label in x.labels}
        starts = {0}
        for i, x in enumerate(self.code):
            if _jumps(x) and x.target in at:
                starts.add(at[x.target])
            if x.labels:
                starts.add(i)
            if _jumps(x) or x.name in ("BRX", *_ENDS):
                starts.add(i + 1)
        order = sorted(s for s in starts if s < len(self.code))
        ends = [*order[1:], len(self.code)] if order else []
        self.blocks = [range(a, b) for a, b in zip(order, ends, strict=True)]
        block_at = {a: i for i, a in enumerate(order)}
        self.callable = {label: block_at[i] for label, i in at.items() if i in block_at}
        self.next: list[list[int]] = []
        for number, block in enumerate(self.blocks):
            last = self.code[block[-1]]
            after = [number + 1] if number + 1 < len(self.blocks) else []
            if _jumps(last):
                to = [self.callable[last.target]] if last.target in self.callable else []
                sure = not last.predicate and "," not in last.operands and ".DIV" not in last.opcode
                after = to if sure else ([] if ".DIV" in last.opcode else to) + after
            elif last.name in _ENDS and not last.predicate:
                after = []
            self.next.append(list(dict.fromkeys(after)))
        self.loops = self._nested(self._loops()) if self.code else []

    def reached(self, start: int = 0) -> list[int]:
        """Blocks that can be reached, in reverse postorder."""
        seen, order = {start}, []
        stack = [(start, iter(self.next[start]))]
        while stack:
            node, following = stack[-1]
            for to in following:
                if to not in seen:
                    seen.add(to)
                    stack.append((to, iter(self.next[to])))
                    break
            else:
                order.append(node)
                stack.pop()
        return order[::-1]

    def _loops(self) -> list[Loop]:
        order = self.reached()
        position = {b: i for i, b in enumerate(order)}
        before: dict[int, list[int]] = {b: [] for b in order}
        for b in order:
            for to in self.next[b]:
                before[to].append(b)
        dominators = {b: set(order) for b in order}
        dominators[order[0]] = {order[0]}
        changed = True
        while changed:
            changed = False
            for b in order[1:]:
                meet = set.intersection(*(dominators[p] for p in before[b])) | {b}
                if meet != dominators[b]:
                    dominators[b], changed = meet, True
        found: dict[int, tuple[set[int], list[int]]] = {}
        for b in order:
            for to in self.next[b]:
                # A block that jumps to itself and holds nothing else is padding.
                alone = b == to and len(self.blocks[b]) == 1
                if to in dominators[b] and not alone:
                    body, stack = {to}, [b]
                    while stack:
                        node = stack.pop()
                        if node not in body:
                            body.add(node)
                            stack += before[node]
                    blocks, latches = found.setdefault(to, (set(), []))
                    blocks |= body
                    latches.append(b)
        loops = [Loop(h, frozenset(b), tuple(latches)) for h, (b, latches) in found.items()]
        return sorted(loops, key=lambda loop: position[loop.header])

    @staticmethod
    def _nested(loops: list[Loop]) -> list[Loop]:
        outer = []
        for loop in loops:
            around = [o for o in loops if o is not loop and loop.blocks < o.blocks]
            if around:
                min(around, key=lambda o: len(o.blocks)).inner.append(loop)
            else:
                outer.append(loop)
        return outer

    def all_loops(self) -> list[Loop]:
        """Every loop, outer before inner, in the order of the code."""
        return [x for loop in self.loops for x in loop.walk()]

    def instructions(self, loop: Loop) -> list[Instruction]:
        """What stands in a loop, inner loops included."""
        return [self.code[i] for b in sorted(loop.blocks) for i in self.blocks[b]]


class Path:
    """The instructions that a warp executes, in order.

    Args:
        flow: the kernel's control flow.
        trips: how often each loop's body is passed, by the header's block; a loop that is not named
            is passed once.
        longest: take the longest way through every body instead of the shortest, of those that
            store most.
    """

    def __init__(self, flow: Flow, trips: dict[int, int], longest: bool = False):
        self.flow, self.trips, self.longest = flow, trips, longest
        self.of_block: dict[int, Loop] = {}

    def trace(self, start: int = 0) -> list[Instruction]:
        """From the kernel's first instruction to its last."""
        return self._run(start, self.flow.loops, None, lambda b: not self.flow.next[b])

    def _run(self, start: int, loops: list[Loop], inside, is_end) -> list[Instruction]:
        """The best way from `start` to an end, inner loops being single steps."""
        owner = {b: loop for loop in loops for b in loop.blocks}

        def following(node: int) -> list[int]:
            if node in owner:
                loop = owner[node]
                out = {to for b in loop.blocks for to in self.flow.next[b] if to not in loop.blocks}
            else:
                out = set(self.flow.next[node])
            if inside is not None:
                out = {to for to in out if to in inside.blocks and to != inside.header}
            return [owner[to].header if to in owner else to for to in out]

        # By node: (loops passed, bits stored, instructions) of the best way on, and its nodes.
        best: dict[int, tuple[tuple[int, int, int], list[int]] | None] = {}

        def search(node: int) -> tuple[tuple[int, int, int], list[int]] | None:
            if node in best:
                return best[node]
            best[node] = None  # an unstructured way back counts as none
            loop = owner.get(node)
            size = 0 if loop else len(self.flow.blocks[node])
            # Outside of loops such branches are around what is left of unrolled ones.
            stored = 0 if loop or inside is None else self._stored(node)
            gain = 1 if loop and self.trips.get(node, 1) else 0
            options = [found for to in following(node) if (found := search(to)) is not None]
            blocks = loop.blocks if loop else (node,)
            # Threads may leave early; a warp does where there is no other way on.
            if any(map(is_end, blocks)) or not options and any(map(self._may_exit, blocks)):
                options.append(((0, 0, 0), []))
            if options:
                sign = 1 if self.longest else -1
                rank, way = max(options, key=lambda o: (*o[0][:2], sign * o[0][2]))
                best[node] = (
                    (rank[0] + gain, rank[1] + stored, rank[2] + size),
                    [node, *way],
                )
            return best[node]

        first = owner[start].header if start in owner else start
        found = search(first)
        if found is None:
            raise ValueError(f"no way from block {start} to an end")
        trace: list[Instruction] = []
        for node in found[1]:
            trace += self._loop(owner[node]) if node in owner else self._block(node)
        return trace

    def _stored(self, number: int) -> int:
        code = (self.flow.code[i] for i in self.flow.blocks[number])
        return sum(x.width for x in code if x.name in _STORES and not x.never)

    def _may_exit(self, number: int) -> bool:
        return self.flow.code[self.flow.blocks[number][-1]].name == "EXIT"

    def _loop(self, loop: Loop) -> list[Instruction]:
        count = self.trips.get(loop.header, 1)
        if not count:
            return []
        return self.body(loop) * count

    def body(self, loop: Loop) -> list[Instruction]:
        """One pass through a loop."""
        return self._run(loop.header, loop.inner, loop, lambda b: b in loop.latches)

    def _block(self, number: int) -> list[Instruction]:
        trace = []
        for i in self.flow.blocks[number]:
            x = self.flow.code[i]
            trace.append(x)
            # Slow paths of divisions and roots are called for numbers that do not occur.
            if x.name == "CALL" and not _jumps(x) and not x.predicate and self._wanted(x):
                to = self.flow.callable.get(x.target)
                if to is not None:
                    trace += Path(self.flow, self.trips, self.longest)._called(to)
        return trace

    @staticmethod
    def _wanted(x: Instruction) -> bool:
        return x.target is not None and "__internal_" not in x.target

    def _called(self, start: int) -> list[Instruction]:
        return self._run(start, [], None, lambda b: not self.flow.next[b])

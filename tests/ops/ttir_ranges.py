"""Ranges of the integers in a Triton kernel, from its intermediate form (TTIR).

Arguments and the grid of a launch are known; what follows from them is interval arithmetic over the
text of the compiled kernel. Whatever a 32-bit operation may yield must fit 32 bits: an offset that
is multiplied in 32 bits and does not shows here, on a machine without a GPU.
"""

import math
import re
from dataclasses import dataclass, field

from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend

_NAME = re.compile(r"%[\w$.\-]+(?:#\d+)?")
_RESULT = re.compile(r"^(%[\w$.\-]+)(?::(\d+))? = \"?([a-z]+\.[a-z_]+)\"?(.*)$")
_INTEGER = re.compile(r"(?:^|x)i(1|8|16|32|64)>?$")
_SAME = {
    "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.trans", "tt.reshape", "arith.extsi",
    "arith.trunci", "tt.reduce",
}  # fmt: skip
_POINTWISE = {
    "arith.subi": lambda a, b: a - b,
    "arith.minsi": min,
    "arith.maxsi": max,
    "arith.shli": lambda a, b: a << b,
    "arith.shrsi": lambda a, b: a >> b,
    "arith.divsi": lambda a, b: abs(a) // b * (1 if a >= 0 else -1),
}


@dataclass(frozen=True)
class Range:
    """`low`, `low + unit`, ..., to `high`; of a pointer: from the start of the argument `base`."""

    low: int
    high: int
    base: str = ""
    unit: int = 1

    def joined(self, other: "Range") -> "Range":
        """What may be either."""
        return Range(
            min(self.low, other.low), max(self.high, other.high), self.base, self._common(other)
        )

    def plus(self, other: "Range") -> "Range":
        """The sum; a pointer moved."""
        unit = math.gcd(self.unit, other.unit)
        return Range(self.low + other.low, self.high + other.high, self.base, unit)

    def times(self, other: "Range") -> "Range":
        """The product."""
        ends = [x * y for x in (self.low, self.high) for y in (other.low, other.high)]
        cross = self.low * other.unit, other.low * self.unit, self.unit * other.unit
        return Range(min(ends), max(ends), "", math.gcd(*cross))

    def below(self, end: "Range", step: "Range") -> "Range":
        """What a loop counts, from here."""
        unit = math.gcd(self.unit, step.low)
        most = max(self.low, end.high - 1)
        return Range(self.low, most - (most - self.low) % max(unit, 1), "", unit)

    def _common(self, other: "Range") -> int:
        return math.gcd(self.unit, other.unit, self.low - other.low)


def number(value: int) -> Range:
    """A known number."""
    return Range(value, value, "", 0)


@dataclass
class Ranges:
    """What one launch of a kernel computes with integers."""

    grid: tuple[int, ...]
    loaded: dict[str, Range]  # by pointer argument: the integers that lie there
    too_wide: list[str] = field(default_factory=list)
    #: By pointer argument, the farthest element that is read or written where no mask says no.
    reached: dict[str, int] = field(default_factory=dict)

    def of(self, text: str, arguments: list[Range | None]) -> "Ranges":
        """Goes through a kernel's text; `arguments` are those that are no constants."""
        lines = [line for line in text.splitlines() if line.strip()]
        start = next(i for i, line in enumerate(lines) if "tt.func public" in line)
        assert not any("tt.call" in line for line in lines), "a function was not inlined"
        env = {f"%arg{i}": value for i, value in enumerate(arguments)}
        self._block(_inside(lines, start), env)
        return self

    def _block(self, lines: list[str], env: dict) -> list:
        """Runs a block's lines; returns what it yields."""
        i, yielded = 0, []
        while i < len(lines):
            line = lines[i].strip()
            inner = _inside(lines, i) if line.endswith(("{", "({")) else []
            if "tt.reduce" in line:
                line += " " + lines[i + len(inner) + 1].strip()
            found = _RESULT.match(line)
            name, count, op, rest = found.groups() if found else (None, None, "", line)
            if line.startswith(("scf.for", "scf.if")):
                op, rest = line.split(" ", 1)
            if op == "scf.for":
                results = self._loop(rest, inner, env)
            elif op == "scf.if":
                results = self._block(inner, dict(env))
                i += len(inner) + 1
                if lines[i].strip().startswith("} else"):
                    inner = _inside(lines, i)
                    other = self._block(inner, dict(env))
                    results = [_joined(a, b) for a, b in zip(results, other, strict=True)]
                else:
                    inner = []
                    i -= 1
            elif line.startswith("scf.yield"):
                yielded = [env.get(n) for n in _NAME.findall(line.split(" : ")[0])]
                results = []
            else:
                results = [self._operation(op, rest, env, line)]
            if name:
                env[name] = results[0] if results else None
                for k, value in enumerate(results if count else ()):
                    env[f"{name}#{k}"] = value
            i += 1 + len(inner) + (1 if inner else 0)
        return yielded

    def _loop(self, rest: str, body: list[str], env: dict) -> list:
        head = re.match(r"\s*(%\S+) = (%\S+) to (%\S+) step (%\S+)", rest)
        variable, *bounds = head.groups()
        first, last, step = (env[n] for n in bounds)
        env[variable] = first.below(last, step)
        turns = max(0, -(-(last.high - first.low) // step.low))
        carried = re.search(r"iter_args\((.*?)\)", rest)
        pairs = re.findall(r"(%\S+) = (%[^\s,)]+)", carried.group(1)) if carried else []
        before = [env.get(start) for _, start in pairs]

        def once(values, tool=None):
            tool = tool or Ranges(self.grid, self.loaded)
            return tool._block(body, {**env, **_named(pairs, values)})

        def within(inner, outer):
            return all(
                b is None or (a is not None and b.low <= a.low and a.high <= b.high)
                for a, b in zip(inner, outer, strict=True)
            )

        # What a second turn does not widen stays so; what else there is grows by a step a turn.
        after = once(before)
        most = [_joined(a, b) for a, b in zip(before, after, strict=True)]
        if within(once(most), most):
            once(most, self)
            return most
        most = [_grown(a, b, turns) for a, b in zip(before, after, strict=True)]
        last_but_one = [_grown(a, b, turns - 1) for a, b in zip(before, after, strict=True)]
        assert within(once(last_but_one, self), most), rest
        return most

    def _operation(self, op: str, rest: str, env: dict, line: str) -> Range | None:
        values, _, kind = rest.rpartition(" : ")
        kind = kind.split(" -> ")[-1].split(" to ")[-1]
        kind = kind.split(", ")[-1] if op == "arith.select" else kind
        width = _INTEGER.search(kind)
        operands = [env.get(n) for n in _NAME.findall(values)]
        a = operands[0] if operands else None
        if line.startswith("tt.store") or op == "tt.load":
            return self._access(op, line, operands, kind)
        if op == "arith.constant":
            written = re.search(r"(?:dense<)?(-?\d+|true|false)>?(?: :|$)", rest)
            if width is None or written is None:
                return None
            value = {"true": 1, "false": 0}.get(written.group(1))
            value = int(written.group(1)) if value is None else value
            return number(value)
        if op in ("tt.get_program_id", "tt.get_num_programs"):
            count = (*self.grid, 1, 1)["xyz".index(values.strip()[0])]
            return Range(0, count - 1) if op == "tt.get_program_id" else number(count)
        if op == "tt.make_range":
            ends = dict(re.findall(r"(start|end) = (\d+)", rest))
            return Range(int(ends["start"]), int(ends["end"]) - 1)
        if op == "tt.addptr":
            return a.plus(operands[1])
        if op in _SAME:
            return self._fitting(a, width, line) if width or (a and a.base) else None
        if width is None:
            return operands[1] if op == "arith.select" and operands[1] else None
        bits = int(width.group(1))
        everything = Range(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if bits > 1 else Range(0, 1)
        if op == "arith.select":
            return _joined(*operands[1:3]) or everything
        if op == "arith.remsi":
            return Range(0 if a.low >= 0 else 1 - operands[1].high, operands[1].high - 1)
        if op in ("arith.addi", "arith.muli") and bits > 1:
            made = a.plus(operands[1]) if op == "arith.addi" else a.times(operands[1])
            return self._fitting(made, width, line)
        if op in _POINTWISE and bits > 1 and all(operands[:2]):
            ends = [
                _POINTWISE[op](x, y)
                for x in (a.low, a.high)
                for y in (operands[1].low, operands[1].high)
            ]
            unit = 1
            if op in ("arith.minsi", "arith.maxsi"):
                unit = a._common(operands[1])
            if op == "arith.subi":
                unit = math.gcd(a.unit, operands[1].unit)
            return self._fitting(Range(min(ends), max(ends), "", unit), width, line)
        return everything

    def _access(self, op, line, operands, kind) -> Range | None:
        where = operands[0]
        masked = line.split(" : ")[0].count(",") >= (1 if op == "tt.load" else 2)
        if not masked:
            self.reached[where.base] = max(self.reached.get(where.base, 0), where.high)
        element = re.search(r"!tt\.ptr<i(\d+)>", kind)
        if op != "tt.load" or not element:
            return None
        half = 2 ** (int(element.group(1)) - 1)
        return self.loaded.get(where.base, Range(-half, half - 1))

    def _fitting(self, value: Range, width, line: str) -> Range:
        if width is None or int(width.group(1)) == 1:
            return value
        half = 2 ** (int(width.group(1)) - 1)
        if value.low < -half or value.high >= half:
            self.too_wide.append(f"{line.strip()}  [{value.low}, {value.high}]")
            return Range(max(value.low, -half), min(value.high, half - 1), value.base)
        return value


def _inside(lines: list[str], start: int) -> list[str]:
    """The lines between the one that opens a block and the one that closes it."""
    depth = len(lines[start]) - len(lines[start].lstrip())
    for end in range(start + 1, len(lines)):
        if len(lines[end]) - len(lines[end].lstrip()) == depth and "}" in lines[end]:
            return lines[start + 1 : end]
    raise AssertionError(f"no end: {lines[start]}")


def _joined(a: Range | None, b: Range | None) -> Range | None:
    return None if a is None or b is None else a.joined(b)


def _grown(a: Range | None, b: Range | None, turns: int) -> Range | None:
    """What is a at first and b after a turn, as far as it gets in so many."""
    if a is None or b is None:
        return None
    down, up = min(0, b.low - a.low), max(0, b.high - a.high)
    unit = math.gcd(a.unit, b.unit, b.low - a.low)
    return Range(a.low + turns * down, a.high + turns * up, a.base, unit)


def _named(pairs, values) -> dict:
    return {name: value for (name, _), value in zip(pairs, values, strict=True)}


def ttir_of(kernel, signature: dict, constants: dict, architecture: int, options: dict) -> str:
    """The optimised intermediate form of a kernel, functions inlined."""
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs={})
    target = GPUTarget("cuda", architecture, 32)
    backend = make_backend(target)
    chosen = backend.parse_options(dict(options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    codegen, modules = backend.get_codegen_implementation(chosen), backend.get_module_map()
    module = source.make_ir(target, chosen, codegen, modules, context)
    stages = {}
    backend.add_stages(stages, chosen, source.language)
    return stages["ttir"](module, {}).str_nodebug()

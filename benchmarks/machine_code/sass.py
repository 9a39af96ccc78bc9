"""Machine code of NVIDIA GPUs as lists of instructions, by the nvdisasm of Triton's wheel.

Beside what the disassembler prints, an instruction has what the compiler scheduled: how many cycles
its warp waits before the next one, and which of six scoreboards it sets and waits for. These are
bits 105 to 125 of the 128 (zeroes and stalls as in the descriptions of Volta's and later encodings
by Jia et al., arXiv:1804.06826, section 2).
"""

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(
    r"/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<predicate>!?U?P[0-9T]+)\s+)?"
    r"(?P<opcode>[A-Z0-9_][A-Za-z0-9_.]*)\s*(?P<operands>[^;]*?)\s*;"
    r"\s*/\* 0x(?P<low>[0-9a-f]{16}) \*/"
)
_HIGH = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
_SECTION = re.compile(r"^\.text\.(\S+):")
_LABEL = re.compile(r"^\s*(\.L_x_\d+|\$?[\w$]+|\.L_\w+):\s*$")
_TARGET = re.compile(r"`\(([^)]+)\)")
_SOURCE = re.compile(r'//## File "([^"]+)", line (\d+)')
_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "32": 32, "64": 64, "128": 128}
#: No scoreboard.
NO_BARRIER = 7


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    `stall`: cycles until its warp may issue again; `sets` and `frees`: the scoreboard that tells
    when its result is there, when its operands have been read (7: none); `waits`: bit mask of
    scoreboards that must be clear before it issues; `source`: (file, line), innermost function
    first, where the code was compiled with line numbers.
    """

    address: int
    predicate: str
    opcode: str
    operands: str
    stall: int
    sets: int
    frees: int
    waits: int
    labels: tuple[str, ...] = ()
    source: tuple[tuple[str, int], ...] = ()

    @functools.cached_property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".", 1)[0]

    @property
    def width(self) -> int:
        """Bits that a thread moves, if it moves any."""
        return next((_BITS[x] for x in self.opcode.split(".")[1:] if x in _BITS), 32)

    @property
    def target(self) -> str | None:
        """The label that a branch or a call goes to."""
        found = _TARGET.search(self.operands)
        return found.group(1) if found else None

    @property
    def never(self) -> bool:
        """Whether its predicate is always false."""
        return self.predicate == "!PT"


def tool(name: str) -> Path:
    """A program of the CUDA toolkit that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def disassemble(cubin: bytes, lines: bool = False) -> dict[str, list[Instruction]]:
    """The kernels of a cubin (an ELF file of one architecture) by their mangled names.

    Args:
        cubin: the file's bytes.
        lines: whether to read line numbers, too; the code must have been compiled with them.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        options = ["-c", "-hex", *(["-gi"] if lines else [])]
        text = subprocess.run(
            [tool("nvdisasm"), *options, file.name], check=True, capture_output=True, text=True
        ).stdout
    return parse(text)


def parse(text: str) -> dict[str, list[Instruction]]:
    """What nvdisasm printed with -c -hex."""
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    labels: list[str] = []
    source: list[tuple[str, int]] = []
    pending = None
    fresh = False
    for line in text.splitlines():
        if found := _SECTION.match(line):
            current = kernels.setdefault(found.group(1), [])
            labels = [found.group(1)]
        elif found := _LINE.search(line):
            pending, fresh = found, False
        elif pending is not None and (found := _HIGH.match(line)):
            current.append(_instruction(pending, int(found.group(1), 16), labels, source))
            labels, pending = [], None
        elif found := _LABEL.match(line):
            labels.append(found.group(1))
        elif found := _SOURCE.search(line):
            source = [] if not fresh else source
            source = [*source, (found.group(1), int(found.group(2)))]
            fresh = True
    return kernels


def _instruction(found, high: int, labels, source) -> Instruction:
    control = high >> 41
    return Instruction(
        address=int(found["address"], 16),
        predicate=found["predicate"] or "",
        opcode=found["opcode"],
        operands=found["operands"],
        stall=control & 15,
        sets=control >> 5 & 7,
        frees=control >> 8 & 7,
        waits=control >> 11 & 63,
        labels=tuple(labels),
        source=tuple(source),
    )

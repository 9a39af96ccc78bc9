"""Which unit of a multiprocessor executes an instruction, and how long it is busy with it.

Times are in clocks of one of a processor's four quarters, all of which do the same. What the
quarters share (shared memory and L1, L2) is busy for what all four ask of it.
"""

import re
from dataclasses import dataclass

from benchmarks.machine_code.cards import Card
from benchmarks.machine_code.sass import Instruction

WARP, QUARTERS = 32, 4
#: What the tables count, by unit.
KINDS = {
    "tensor": "tensor", "special": "exp", "float": "float", "double": "float",
    "multiply": "integer", "alu": "integer", "uniform": "integer", "shared": "shared",
    "global": "global", "shuffle": "shared", "barrier": "barrier",
}  # fmt: skip
#: Instructions that multiply matrices: of four warps together, of one.
OF_GROUPS = ("HGMMA", "IGMMA", "QGMMA")
TENSOR = (*OF_GROUPS, "HMMA", "IMMA")
_SMALL = ("U8", "S8", "U16", "S16")


@dataclass(frozen=True)
class Use:
    """What an instruction costs.

    `unit`: where it waits its turn; `busy`: clocks of that unit; `latency`: clocks from the end of
    those to the result; `l2`: clocks that its bytes take of L2's share of a quarter; `shared`:
    clocks that a tensor instruction's operands take of shared memory.
    """

    unit: str
    busy: float
    latency: float = 0
    l2: float = 0
    shared: float = 0


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALU = _names(
    "LOP3 LOP IADD3 IADD ISETP FSETP FSEL SEL FMNMX FMNMX3 IMNMX VIMNMX VIMNMX3 SHF SHL SHR PRMT "
    "LEA VIADD VIADDMNMX PLOP3 P2R R2P ICMP FCMP FCHK VABSDIFF VABSDIFF4 SGXT BMSK F2FP I2FP I2IP "
    "CSET MOV MOV32I FSWZADD LEPC HSETP2 HMNMX2 DSETP R2UR VOTE VOTEU S2UR IABS FSET VHMNMX"
)
_FLOAT = _names("FADD FMUL FFMA FFMA32I FADD32I FMUL32I")
_HALF = _names("HADD2 HMUL2 HFMA2 HADD2_32I")
_MULTIPLY = _names("IMAD IMUL IDP IMAD32I IDP4A")
_DOUBLE = _names("DADD DMUL DFMA DMNMX")
_CONVERT = _names("F2I F2F I2F F2IP FRND POPC FLO BREV")
_SHARED = _names("LDS STS LDSM STSM ATOMS LDGSTS")
_GLOBAL = _names("LDG STG LD ST ATOMG ATOM RED LDL STL")
_UNIFORM = _names(
    "UIADD3 UIMAD UISETP ULDC ULEA ULOP ULOP3 UMOV UPLOP3 UPRMT USEL USGXT USHF USHL USHR UFLO "
    "UPOPC UBREV UBMSK UIABS UP2UR UR2UP"
)
#: What takes no unit's time beside its slot: control, and waits that the simulation knows.
_CONTROL = _names(
    "BMOV BPT BRA BREAK BRX BSSY BSYNC CALL COLLECTIVE DEPBAR ENDCOLLECTIVE EXIT JMP JMX KILL "
    "LDGDEPBAR NANOSLEEP NOP RET USETMAXREG WARPGROUP YIELD"
)


def _tensor(x: Instruction, card: Card) -> Use:
    rate = card.per_clock["tensor" if x.name in OF_GROUPS else "hmma"] / QUARTERS
    if x.name in OF_GROUPS:
        m, n, k = (int(s) for s in re.search(r"\.(\d+)x(\d+)x(\d+)", x.opcode).groups())
        # Four bytes an element or one instead of two, and half the rate or twice as much.
        wide = 2 if "TF32" in x.opcode else 1 if x.name == "HGMMA" else 0.5
        # A quarter multiplies its 16 of 64 rows. Operands in shared memory are read as they come:
        # both matrices, or the right one where the left is in registers.
        busy = 2 * m / QUARTERS * n * k / rate * wide
        right = n * k * 2 * wide
        left = m * k * 2 * wide if x.operands.count("gdesc") and _both(x) else 0
        return Use("tensor", busy, 24, shared=(left + right) / card.shared_per_clock)
    shape = re.search(r"\.(\d{4,5})", x.opcode).group(1)
    m, n, k = 16, 8, int(shape[3:]) if shape.startswith("168") else 8
    scale = {"TF32": 2, "IMMA": 0.5}.get("TF32" if "TF32" in x.opcode else x.name, 1)
    busy = 2 * m * n * k * scale / rate
    return Use("tensor", busy, card.latency["hmma_16816"] - busy)


def _both(x: Instruction) -> bool:
    """Whether a group's product reads its left operand from shared memory, not from registers."""
    return re.search(r"R\d+, R\d+, u?gdesc", x.operands) is None


def _memory(x: Instruction, card: Card, cached: bool) -> Use:
    width = x.width
    if x.name in ("LDSM", "STSM"):
        width = 32 * int(x.opcode.rsplit(".", 1)[1]) if x.opcode.rsplit(".", 1)[1].isdigit() else 32
    moved = WARP * width // 8
    # A warp's access takes a pass for every 128 bytes, at least one; the four quarters take turns.
    passes = QUARTERS * max(1.0, moved / card.shared_per_clock)
    if x.name in ("LDS", "STS", "LDSM", "STSM", "ATOMS"):
        latency = card.latency["shared"] if not x.name.startswith("ST") else 0
        return Use("shared", passes, latency)
    if cached and x.name == "LDG" and width < 128:
        return Use("shared", passes, card.latency["l1"])
    l2 = QUARTERS * moved / (card.l2_per_clock / card.processors)
    latency = 0 if x.name in ("STG", "ST", "RED", "STL") else card.latency["l2"]
    return Use("global", passes, latency, l2=l2)


def use_of(x: Instruction, card: Card, cached: bool = False) -> Use:
    """What one instruction of a warp costs on a card.

    `cached`: loads of less than 16 bytes a thread, which read vectors again and again, hit L1.

    Raises:
        ValueError: an opcode that is not known here.
    """
    name, rate = x.name, card.per_clock

    def busy(kind: str) -> float:
        return WARP * QUARTERS / rate[kind]

    if x.never:
        return Use("issue", 0)
    if name in TENSOR:
        return _tensor(x, card)
    if name in _SHARED or name in _GLOBAL:
        return _memory(x, card, cached)
    if name == "MUFU":
        return Use("special", busy("special"), card.latency["special"])
    if name in _CONVERT:
        kind = "convert_small" if any(s in x.opcode for s in _SMALL) else "convert"
        kind = "convert_64" if "64" in x.opcode else kind
        kind = "convert_to_integer" if name == "F2I" and kind != "convert_64" else kind
        kind = "bits" if name in ("POPC", "FLO", "BREV") else kind
        return Use("special", busy(kind), card.latency["special"])
    if name == "SHFL":
        return Use("shared", busy("shuffle"), card.latency["shuffle"])
    if name in _FLOAT:
        return Use("float", busy("float"))
    if name in _HALF:
        return Use("float", busy("bfloat2" if "BF16" in x.opcode else "half2"))
    if name in _MULTIPLY:
        # They share a pipe with float operations, of which cards since 8.6 and 9.0 have another.
        wide = 2 if "WIDE" in x.opcode or ".HI" in x.opcode else 1
        moves = ".MOV" in x.opcode or x.opcode in ("IMAD.IADD", "IMAD.SHL.U32", "IMAD.SHL")
        return Use("float" if moves and rate["float"] > 64 else "multiply", busy("multiply") * wide)
    if name in _DOUBLE:
        return Use("double", busy("double"), 8)
    if name in ("BAR", "WARPSYNC", "MEMBAR", "FENCE", "CCTL", "ERRBAR"):
        return Use("barrier", 2, card.latency["barrier"])
    if name in ("REDUX",):
        return Use("shared", busy("reduce"), card.latency["shuffle"])
    if name in ("LDC", "S2R", "CS2R"):
        return Use("issue", 0, 20 if name != "CS2R" else 0)
    if name in _CONTROL:
        return Use("issue", 0)
    if name in _ALU:
        return Use("alu", busy("logic"))
    if name in _UNIFORM:
        return Use("uniform", 2, 4)
    raise ValueError(f"nothing is known of {x.opcode}: it needs a place in units.py")

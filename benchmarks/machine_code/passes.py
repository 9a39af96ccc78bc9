"""How often the Triton kernels of nt_xent and contrast pass their loops, and what they must do."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.machine_code.flow import Loop
from benchmarks.machine_code.launched import Launched
from benchmarks.machine_code.predict import Kernel, has_tensor
from benchmarks.machine_code.record import Work
from fastssl.ops.nt_xent.triton_rows import AT_ONCE
from fastssl.ops.nt_xent.triton_tiles import Tile, most_tiles

#: Numbers that a kernel may read from device memory; elsewhere any pointer stands in.
_NUMBERS = ("temperature", "bias")
_INDICES = ("excluded", "partner", "row_labels", "column_labels", "index")
_VECTORS = (*_INDICES, "inverse", "positive")
_DOUBLES = ("window", "other_window", "known", "statistics", "gradient")
#: Kernels that multiply matrices.
MATRIX = (
    "sum_triangle", "sum_exponentials", "accumulate_gradient", "write_gradient_weights",
    "multiply_weights", "sum_pairs", "accumulate_pairs", "write_pair_weights",
    "multiply_turned", "write_shares",
)  # fmt: skip


#: Tensors of which a chunk's launch touches its own rows alone, and the dimension of the rows.
_OF_A_CHUNK = {
    "write_gradient_weights": {"weights": 1},
    "write_pair_weights": {"left": 1, "out": 1, "turned": 1},
    "write_shares": {"left": 1, "out": 1, "turned": 1, "sums": 1},
    "multiply_weights": {"weights": 1, "out": 1},
    "multiply_turned": {"turned": 1, "packed": 1},
}


@dataclass
class Passes:
    """How often loops are passed: the arguments of `predict.predict`."""

    passes: float = 1.0
    fixed: dict[int, int] = field(default_factory=dict)
    loop: Loop | None = None
    straight: bool = False
    rare: float = 0.0
    outer: Loop | None = None
    turns: float = 1.0


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _shared_out(loops: list[Loop], kernel: Kernel, count: int) -> dict[int, int]:
    """Trips of the machine's loops over `count` items: the compiler makes one, or one for four
    items at a time and one for the rest.
    """
    loads = {
        x.header: sum(i.name in ("LDG", "LD") for i in kernel.flow.instructions(x)) for x in loops
    }
    least = min([n for n in loads.values() if n], default=1)
    trips = {}
    for x in loops:
        at_once = max(1, round(loads[x.header] / least))
        trips[x.header] = count // at_once if at_once > 1 else count % 4 if _wide(loads) else count
    return trips


def _wide(loads: dict[int, int]) -> bool:
    some = [n for n in loads.values() if n]
    return bool(some) and max(some) >= 4 * min(some)


def _depth_loops(x: Launched, kernel: Kernel) -> dict[int, int]:
    """Kernels over rows pass their columns in blocks; what is inside is over splits."""
    chunks = _ceil(x["DEPTH"], x["BLOCK_D"])
    splits = x.arguments.get("splits", 1) - 1
    loops = kernel.flow.all_loops()
    outer = [y for y in loops if y.inner or chunks > 1 and y in kernel.flow.loops]
    trips = _shared_out([y for y in loops if y not in outer], kernel, splits)
    trips |= {y.header: chunks for y in outer}
    if x.name == "pack" and kernel.flow.loops:  # the last clears the padding, in one program
        trips |= {y.header: 0 for y in kernel.flow.loops[-1].walk()}
    return trips


def _headers(kernel: Kernel) -> list[int]:
    return [loop.header for loop in kernel.flow.all_loops()]


def _add_up_pairs(x: Launched, kernel: Kernel) -> Passes:
    """Sums over the blocks' products, over the tiles' sums of G for the bias, over the pulls."""
    blocks, tiles = (_ceil(x[name], x["BLOCK"]) for name in ("blocks", "tiles"))
    return Passes(
        straight=True, fixed=dict(zip(_headers(kernel), (blocks, tiles, blocks), strict=False))
    )


def _over(count: Callable[[Launched], int]) -> Callable[[Launched, Kernel], Passes]:
    def passes(x: Launched, kernel: Kernel) -> Passes:
        return Passes(straight=True, fixed=dict.fromkeys(_headers(kernel), count(x)))

    return passes


def _exceptions(x: Launched) -> int:
    """How many columns of each row are exceptions. A partner's partner is the row itself in every
    call, so inverses name no column more; labels and windows are no exceptions.
    """
    if "DIAGONAL" not in x.arguments:  # nt_xent: the row and its partner
        return 2
    return int(x["DIAGONAL"] or x["EXCLUDED"]) + int(x["PARTNER"])


def _columns(rows: str) -> Callable[[Launched, Kernel], Passes]:
    """Kernels that pass tiles of columns; tiles with exceptions take the longest way."""

    def passes(x: Launched, kernel: Kernel) -> Passes:
        inner = kernel.main_loop()
        outer = kernel.around(inner)
        fixed = {inner.header: _ceil(x["DEPTH"], x["BLOCK_K"])} if outer else {}
        columns = x[rows]
        # Each exception of a block of rows lies in as many columns as there are rows.
        share = min(1.0, _exceptions(x) * max(x["BLOCK_M"], x["BLOCK_N"]) / columns)
        across = _ceil(columns, x["BLOCK_N"]) / x.grid[1]
        return Passes(across, fixed, outer or inner, rare=share)

    return passes


def _triangle(x: Launched, kernel: Kernel) -> Passes:
    """Blocks of columns and the tiles above the diagonal of each; of the program with most."""
    outer = next(y for y in kernel.flow.loops if has_tensor(kernel.flow.instructions(y)))
    inner = [y for y in outer.inner if has_tensor(kernel.flow.instructions(y))]
    # Tiles with exceptions have a loop of their own, which does more.
    usual, *others = sorted(inner, key=lambda y: len(kernel.flow.instructions(y)))
    chunks = _ceil(x["DEPTH"], x["BLOCK_K"])
    fixed = {y.header: 1 for y in others}
    fixed |= {k.header: chunks for y in inner for k in y.inner}
    groups, bands = x.grid
    tile = Tile(x["BLOCK_M"], x["BLOCK_N"], x["BLOCK_K"], 0, 0)
    turns = _ceil(_ceil(x["rows"], tile.columns), groups)
    tiles = most_tiles(x["rows"], tile, groups, bands, start=0) - turns * len(others)
    return Passes(max(0, tiles), fixed, usual, outer=outer, turns=turns)


def _one_tile(x: Launched, kernel: Kernel) -> Passes:
    loop = kernel.main_loop()
    if loop is None or not has_tensor(kernel.flow.instructions(loop)):
        return Passes(straight=True)
    return Passes(_ceil(x["DEPTH"], x["BLOCK_K"]), loop=loop)


def _rows(x: Launched, kernel: Kernel) -> Passes:
    return Passes(straight=True, fixed=_depth_loops(x, kernel))


_KERNELS: dict[str, Callable[[Launched, Kernel], Passes]] = {
    "sum_triangle": _triangle,
    "sum_exponentials": _columns("rows"),
    "accumulate_gradient": _columns("rows"),
    "sum_pairs": _columns("columns"),
    "accumulate_pairs": _columns("columns"),
    "write_gradient_weights": _one_tile,
    "write_pair_weights": _one_tile,
    "write_shares": _one_tile,
    "multiply_weights": lambda x, k: Passes(_ceil(x["padded"], x["BLOCK_K"])),
    "multiply_turned": lambda x, k: Passes(_ceil(x["count"], x["BLOCK_K"])),
    "pack": _rows,
    "pack_rows": _rows,
    "partner_products": _rows,
    "finish_gradient": _rows,
    "finish_pairs": _rows,
    "finish_rows": _over(lambda x: _ceil(x["splits"], AT_ONCE.value)),
    "finish_statistics": _over(lambda x: x["splits"]),
    "finish_metrics": _over(lambda x: x["splits"]),
    "weigh_rows": _over(lambda x: _ceil(x["padded"], x["BLOCK"])),
    "add_up": _over(lambda x: _ceil(x["count"], x["BLOCK"])),
    "add_up_pairs": _add_up_pairs,
    "bound_gradients": _over(lambda x: _ceil(x["rows"], x["BLOCK"])),
    "weigh_pairs": _over(lambda x: 1),
    "invert": _over(lambda x: 1),
}


def passes_of(x: Launched, kernel: Kernel) -> Passes:
    """How often a launch passes its loops.

    Raises:
        KeyError: a kernel that is not known here.
    """
    return _KERNELS[x.name](x, kernel)


def moved(x: Launched) -> float:
    """Bytes that a launch reads and writes, each tensor's once, of a chunk's its own rows'."""
    total, seen = 0.0, set()
    of_a_chunk = _OF_A_CHUNK.get(x.name, {})
    for name, value in x.arguments.items():
        if not isinstance(value, torch.Tensor) or id(value) in seen or _stands_in(x, name, value):
            continue
        seen.add(id(value))
        share = 1.0
        if name in of_a_chunk:
            share = _rows_of_chunk(x) / value.shape[of_a_chunk[name]]
        total += share * value.numel() * value.element_size()
    if x.name == "multiply_turned" and x["chunk"]:  # reads what it adds to
        total += x["out"].numel() * x["out"].element_size()
    return total


def _rows_of_chunk(x: Launched) -> int:
    if x.name == "multiply_turned":
        return x["count"]
    if x.name == "multiply_weights":
        return x.grid[0] * x["BLOCK_M"]
    padded = x.arguments.get("right_padded", x.arguments.get("padded"))
    return x.programs * x["BLOCK_M"] * x["BLOCK_N"] // padded


def _stands_in(x: Launched, name: str, value: torch.Tensor) -> bool:
    number = name in _NUMBERS or (name == "scale" and value.dim() != 1)
    index = name in _INDICES and value.dtype != torch.int64 or name in _VECTORS and value.dim() != 1
    double = name in _DOUBLES and value.dtype != torch.float64
    return (number and value.numel() > 1) or index or double


def work_of(x: Launched) -> Work:
    """What a launch has to do by what it is asked: products of two-part operands are three."""
    if x.name not in MATRIX:
        return Work(moved=moved(x))
    products = 3 if x["PARTS"] == 2 else 1
    depth = x["DEPTH"]
    if x.name == "multiply_weights":
        rows, columns, exponentials = x.grid[0] * x["BLOCK_M"], x["padded"], 0
    elif x.name == "multiply_turned":
        rows, columns, exponentials = x["right_padded"], x["count"], 0
    elif x.name.startswith("write"):
        rows, columns = x.programs * x["BLOCK_M"], x["BLOCK_N"]
        exponentials = rows * columns
    else:
        columns = x.arguments.get("columns", x["rows"])
        rows = x.grid[0] * x["BLOCK_M"]
        exponentials = rows * columns
    if x.name == "sum_triangle":
        rows = columns / 2
        exponentials = rows * columns
    twice = 2 if x.name.startswith("accumulate") else 1
    return Work(2.0 * twice * products * rows * columns * depth, exponentials, moved(x))

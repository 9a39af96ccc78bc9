"""Launches of the operators on patches: what benchmarks/gpu_patch.py's cases start.

What csrc/patch/launch_cuda.h and operator_cuda.h lay out, for the sizes of that benchmark; and by
which lines of the source a warp passes. tests/test_gpu_model_patch.py holds the two together.
"""

from dataclasses import dataclass

from benchmarks.gpu_patch import DECODER, KEEP, LENGTH, NUMBERS, WIDTH

THREADS, LAST_THREADS = 256, 1024
LOSS_TEAMS, CHUNKS, SCALE_BLOCKS = 8192, 512, 1024
AREA = 256  # pixels of a patch
SIZES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Part:
    """A way through a kernel that a share of its warps take.

    `times`: how often one warp goes it; `through`, `past`, `trips`: see `patch_path.Way`; `off`:
    texts of lines whose instructions with a predicate do nothing.
    """

    times: float
    through: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    trips: tuple[tuple[str, int], ...] = ()
    off: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """A launch.

    `kernel`: a key of `patch_code.NAMES`; `read`, `written`: bytes of memory; `ahead`: bytes that a
    warp has asked for before it uses the first of them; `loop`: a line of the loop over rows where
    warps take more than one, whose passes are `parts`; `elements`: what all of it works on.
    """

    case: str
    kernel: str
    threads: int
    blocks: int
    shared: int
    elements: float
    read: float
    written: float
    ahead: float
    parts: tuple[Part, ...]
    loop: str = ""
    test: str = "tests/ops/test_patch_team.py::test_loss"


def row_threads(packs: int, most: int) -> int:
    """launch_cuda.h's."""
    threads = 4
    while threads < THREADS and threads * most < packs:
        threads *= 2
    return threads


_LEVELS = (
    "levels.load(", "load_raw<kLevelsOf>", "numbers->moments[c] =", "numbers->affine[c] =",
    "inverse_width_less", "by_pixel[c]", "compare<Kind::kMse>", "store_pack(gradient + pack",
)  # fmt: skip


def loss(batch: int, dtype: str) -> list[Launch]:
    """The loss with its gradient, the sum of its teams, the factor of backward."""
    size, rows = SIZES[dtype], batch * LENGTH
    removed = batch * (LENGTH - KEEP)
    teams = min(rows, LOSS_TEAMS)
    shared = THREADS // 32 * (4 * NUMBERS + 96)
    main = Launch(
        "loss with gradient", "levels", THREADS, teams // 8, shared, removed * NUMBERS,
        removed * NUMBERS * (1 + size), rows * NUMBERS * size, NUMBERS * (1 + size),
        (
            Part(removed / teams, _LEVELS),
            Part((rows - removed) / teams, ("Pack<T, kCount>{}",), ("levels.load(",)),
        ),
        "r < rows; r += teams",
    )  # fmt: skip
    last = Launch(
        "sum of the teams", "loss_last", LAST_THREADS, 1, 0, teams, 8 * teams, 4,
        8 * 32 * 8, (Part(1, ("some[a] =",), (), (("i < batch.teams", 1), ("warp < size", 4))),),
    )  # fmt: skip
    packs = rows * NUMBERS * size // 16
    scale = Launch(
        "factor of backward", "scale", THREADS, min(SCALE_BLOCKS, packs // 1024), 0, 0, 4, 0, 4,
        (Part(1, (), ("from[a] =",), (("kAhead * stride", 0),)),),
        test="tests/ops/test_patch_team.py::test_scale",
    )  # fmt: skip
    return [main, last, scale]


def _tokens(case: str, rows: int, width: int, dtype: str, read, parts, ahead) -> Launch:
    size = SIZES[dtype]
    threads = row_threads(width * size // 16, 4)
    return Launch(
        case, "tokens", THREADS, -(-rows * threads // THREADS), 0, rows * width,
        read, rows * width * size, ahead, parts, test="tests/ops/test_patch_team.py::test_tokens",
    )  # fmt: skip


def _token_part(share: float, source: str, pos: bool, restores: bool) -> Part:
    # A row of tokens, or of the mask token: two calls of write_token.
    calls = {"tokens": "load_raw<kCount>(from + e * stride)", "token": "to, [&](int32_t e) {"}
    taken = calls.pop(source)
    (other,) = calls.values()
    look = "place = plan.restore" if restores else "l = plan.shuffle"
    position = ("if (pos) add[a] = load_raw",)
    through = (taken, look, "x[a] = load(e)", "store_pack(to + e, pack)")
    through += position if pos else ()
    return Part(
        share,
        through,
        (other, "return row / each"),
        (("x[a] = load(e)", 2),),
        off=() if pos else position,
    )


def decoder(batch: int, dtype: str) -> list[Launch]:
    """The decoder's input, and backward: visible tokens gathered, the mask token's rows summed."""
    size = SIZES[dtype]
    visible, whole = batch * (1 + KEEP), batch * (1 + LENGTH)
    share = visible / whole
    restore = _tokens(
        "decoder's input", whole, DECODER, dtype, visible * DECODER * size,
        (_token_part(share, "tokens", True, True), _token_part(1 - share, "token", True, True)),
        2 * 32 * (16 + 64 // size),
    )  # fmt: skip
    back = _tokens(
        "gradient of visible tokens", visible, DECODER, dtype, visible * DECODER * size,
        (_token_part(1, "tokens", False, False),), 2 * 32 * 16,
    )  # fmt: skip
    rows, removed = batch * LENGTH, batch * (LENGTH - KEEP)
    chunk = max(16, -(-rows // CHUNKS))
    chunks = -(-rows // chunk)
    threads = row_threads(DECODER * size // 8, 1)
    groups = -(-chunk // 8)
    total = Launch(
        "rows of the mask token", "sum", THREADS, -(-chunks * threads // THREADS), 0,
        removed * DECODER, removed * DECODER * size, 8 * chunks * DECODER, 6 * 32 * 8,
        (Part(1, ("x[a] = load_raw<kCount>(from)", "sum[k] +="),
                (),
              (("taken |= 1u << a", groups),)),),
        test="tests/ops/test_patch_team.py::test_sums_of_many_rows_and_columns",
    )  # fmt: skip
    last = Launch(
        "sum of the chunks", "sum_last", THREADS, DECODER // 8, 0,
        chunks * DECODER, 8 * chunks * DECODER, 4 * DECODER, 8 * 32 * 8,
        (Part(1, ("some[a] =",), (), (("kAhead * groups", 2), ("g < groups", 2))),),
        test="tests/ops/test_patch_team.py::test_sums_of_many_rows_and_columns",
    )  # fmt: skip
    return [restore, back, total, last]


def gather_patches(batch: int, dtype: str) -> list[Launch]:
    """Visible patches out of levels of uint8."""
    size, rows = SIZES[dtype], batch * KEEP
    threads = row_threads(NUMBERS * size // 16, 3)
    return [
        Launch(
            "visible patches", "gather", THREADS, -(-rows * threads // THREADS), 0,
            rows * NUMBERS, rows * NUMBERS, rows * NUMBERS * size, 3 * 32 * 16 // size,
            (Part(1, ("x[a] = load_raw<kCount>(from + offset)", "store_pack(to + int64_t(i + a"),
                  ("float(table[", "return row / each",)),),
            test="tests/ops/test_patch_team.py::test_gather",
        )
    ]  # fmt: skip


def gather_tokens(batch: int, dtype: str) -> list[Launch]:
    """Visible tokens with their positions."""
    size, rows = SIZES[dtype], batch * (1 + KEEP)
    return [
        _tokens(
            "visible tokens", rows, WIDTH, dtype, rows * WIDTH * size,
            (_token_part(1, "tokens", True, False),), 2 * 32 * (16 + 64 // size),
        )
    ]  # fmt: skip


def plan(batch: int, dtype: str) -> list[Launch]:
    """A random plan: a sort of 256 keys in 36 steps."""
    threads = 128
    return [
        Launch(
            "random plan", "random_plan", threads, batch, 8 * (256 + threads), batch * LENGTH,
            8 * batch, batch * LENGTH * 17, 0,
            (Part(1, ("draws.block(uint32_t(n))", "keys[a] = y", "row.restore[p] = i"),
                  (),
                  (("run *= 2", 1), ("apart /= 2", 36))),),
            test="tests/ops/test_patch_team.py::test_random_plans",
        )
    ]  # fmt: skip


CASES = {
    "loss": loss, "decoder": decoder, "gather_patches": gather_patches,
    "gather_tokens": gather_tokens, "plan": plan,
}  # fmt: skip

"""What the views of a real batch of draws make the augmentation kernel do: tiles, rounds, taps.

The layout follows csrc/augment/{launch_cuda,resample_team,blur_team}.h.
"""

import functools
from dataclasses import dataclass, field

import torch

from benchmarks.gpu_augment import RECIPES
from fastssl.ops import augment

BLOCK = 512
QUAD, BAND = 4, 4
#: Bytes in front of a team's memory: `Desk`; words of a plan of float weights.
DESK, PLAN = 480, 64
#: Draws of a batch are those of so many images, over and over.
DRAWN = 256
#: Operations on a pixel: bounds and roundings count, selections do not.
_OPERATIONS = {"brightness": 12, "blend": 17, "hue": 56, "gray": 4}


def quads(n: int) -> int:
    """Groups of four."""
    return -(-n // QUAD)


@dataclass(frozen=True)
class Tile:
    """Rounds of a team over a tile's items: rows of the image, quads of the view."""

    row_rounds: int
    column_rounds: int


@dataclass(frozen=True)
class Strip:
    """Rounds of a team over a strip's items, and quads of taps that are mirrored."""

    row_rounds: int
    column_rounds: int
    edges: float


@dataclass
class View:
    """One view's work."""

    width: int
    height: int
    threads: int
    lines: float  # of 128 bytes, in a row of the crop
    taps_across: float
    taps_down: float
    tiles: list[Tile]
    first_steps: tuple[str, ...]
    last_steps: tuple[str, ...]
    contrast: bool
    blur: bool
    planes: int
    along: int = 0
    down: int = 0
    strips: list[Strip] = field(default_factory=list)
    radius: int = 0
    crop: tuple[int, int] = (0, 0)

    @property
    def operations(self) -> float:
        """The least that the definition asks: products of resampling and of the blur, each step's
        arithmetic as csrc/augment/pixel.h has it, a product and a conversion for each sample.
        """
        pixels = self.width * self.height
        rows = 3 * self.taps_across * self.crop[0] * self.width
        each = sum(_OPERATIONS[s] for s in self.first_steps + self.last_steps)
        blur = 2 * (2 * self.radius + 1) * self.planes if self.blur else 0
        return rows + pixels * (3 * self.taps_down + each + 5 * self.contrast + blur + 6)

    @property
    def sweep_rounds(self) -> int:
        """Rounds of a team over the view's quads."""
        return -(-(self.width * self.height // QUAD) // self.threads)

    @property
    def store_rounds(self) -> int:
        """Rounds over 16 bytes of a bfloat16 plane."""
        return -(-(self.width * self.height // 8) // self.threads)


def team_threads(pixels: int, items: int, work: int, shared: int, processors: int) -> int:
    """`lay_out` of launch_cuda.h, for views of uint8 samples."""
    threads = 64
    while threads < BLOCK and (
        threads * 64 <= pixels
        or items * threads < processors * BLOCK
        or DESK + 3 * (-(-pixels // 16) * 16) + work > shared // (BLOCK // threads)
    ):
        threads *= 2
    return threads


def taps(size: int, out: int) -> tuple[float, int]:
    """(taps of a position on average, at most) of an antialiased bilinear axis."""
    scale = size / out
    support = max(scale, 1.0)
    most = min(2 * (int(support) + 1) + 1, size)
    return min(2 * support, size), most


def tiles_of(height: int, width: int, out: int, words: int, threads: int) -> list[Tile]:
    """`tile_for` of resample_team.h and the rounds that follow from it."""
    _, most_across = taps(width, out)
    _, most_down = taps(height, out)
    across, down = 4 + (most_across | 1), 4 + (most_down | 1)
    scale = height / out
    columns = quads(out) * QUAD
    while True:
        left = words - QUAD - columns * across
        row = columns * 3
        rows = int(min((left - (most_down + 2) * row) / (down + scale * row), out))
        enough = rows == out or scale * rows >= most_down
        if rows >= 1 and (enough or columns <= 8) or columns <= 8:
            break
        columns = quads(columns // 2) * QUAD
    rows = max(1, rows)
    tiles = []
    support = max(scale, 1.0)
    for _ in range(0, out, columns):
        for y0 in range(0, out, rows):
            count = min(rows, out - y0)
            first = max(0, int(scale * (y0 + 0.5) - support + 0.5))
            last = min(height, int(scale * (y0 + count - 0.5) + support + 0.5))
            bands = -(-(last - first) // BAND)
            tiles.append(
                Tile(
                    -(-bands * min(columns, out) // threads),
                    -(-count * quads(min(columns, out)) // threads),
                )
            )
    return tiles


def strips_of(size: int, radius: int, words: int, threads: int) -> list[Strip]:
    """`blur_gaussian` of blur_team.h."""
    across = quads(radius) * QUAD
    tables, kept = 4 * quads(across + QUAD) * QUAD, max(across, QUAD)
    most = (words - tables - size * kept // 4) // size // QUAD * QUAD
    step = min(most, quads(size) * QUAD)
    if step < size:
        rounds = step // QUAD * quads(size) // threads
        if rounds:
            step = max(rounds * threads // quads(size) * QUAD, kept)
    strips = []
    for x0 in range(0, size, step):
        columns = min(step, size - x0)
        # A warp has a thread at either end of a row wherever a strip has one.
        edges = quads(across) * ((x0 == 0) + (x0 + step >= size))
        strips.append(
            Strip(
                -(-size * quads(columns) // threads),
                -(-quads(size) * quads(columns) // threads),
                min(edges, 2 * quads(across) + 1),
            )
        )
    return strips


@functools.cache
def draws(case: str):
    """A batch's draws, made on the CPU."""
    recipe, side = RECIPES[case]
    made = recipe()
    x = torch.empty(1, dtype=torch.uint8).expand(DRAWN, 3, side, side)
    return augment.draw(made.recipes, x, seed=made.seed), made.recipes, side


def radius_of(size: int, sigma: float) -> int:
    """filter.h's `gaussian_radius`."""
    most = ((size // 10) | 1) // 2
    s = max(sigma, 0.05)
    return min(int(4.5 * s) + 1, most) if 4.5 * s < most else most


@functools.cache
def views(case: str, batch: int, shared: int, processors: int) -> tuple[View, ...]:
    """The views of a launch, the largest first, views of an image side by side."""
    drawn, recipes, side = draws(case)
    sizes = [r.size if isinstance(r.size, int) else r.size[0] for r in recipes]
    found = []
    for size in sorted(set(sizes), reverse=True):
        places = [i for i, s in enumerate(sizes) if s == size]
        work = 4 * max(2048, size * 12 + 3 * size + 96)
        threads = team_threads(size * size, len(places) * batch, work, shared, processors)
        stride = -(-size * size // 16) * 16
        words = (shared // (BLOCK // threads) // 16 * 16 - DESK - 3 * stride) // 4
        alike = functools.cache(
            lambda v, b, size=size, words=words, threads=threads: _view(
                drawn, v, b, size, words, threads
            )
        )
        found += [alike(v, b % DRAWN) for b in range(batch) for v in places]
    return tuple(found)


def _view(drawn, v: int, b: int, size: int, words: int, threads: int) -> View:
    def of(name):
        return getattr(drawn, name)[v, b].item()

    height, width = of("height"), of("width")
    steps = []
    if of("jitter"):
        names = ("brightness", "blend", "blend", "hue")
        order = drawn.order[v, b].tolist()
        steps = [(op, names[op]) for op in order]
    gray = [(4, "gray")] if of("gray") else []
    at = next((i for i, (op, _) in enumerate(steps) if op == 1), None)
    first = steps if at is None else steps[:at]
    last = [] if at is None else steps[at:]
    (last if at is not None else first).extend(gray)
    radius = radius_of(size, of("sigma"))
    blur = bool(of("blur"))
    return View(
        width=size,
        height=size,
        threads=threads,
        lines=width / 128 + 0.5,
        taps_across=taps(width, size)[0],
        taps_down=taps(height, size)[0],
        tiles=tiles_of(height, width, size, words - PLAN, threads),
        first_steps=tuple(n for _, n in first),
        last_steps=tuple(n for _, n in last),
        contrast=at is not None,
        blur=blur,
        planes=1 if gray else 3,
        along=2 * quads(radius) + 1,
        down=quads(2 * radius + QUAD),
        strips=strips_of(size, radius, words, threads) if blur else [],
        radius=radius,
        crop=(height, width),
    )


def blocks(made: tuple[View, ...]) -> list[tuple[View, ...]]:
    """Teams that share a block, in the order of the launch."""
    found, at = [], 0
    while at < len(made):
        teams = BLOCK // made[at].threads
        end = at
        while end < len(made) and end - at < teams and made[end].width == made[at].width:
            end += 1
        found.append(made[at:end])
        at = end
    return found


def places(case: str) -> int:
    """Views of an image."""
    return len(RECIPES[case][0]().recipes)


def pixels(case: str) -> int:
    """Pixels of all views of an image."""
    recipe, _ = RECIPES[case]
    sizes = [r.size if isinstance(r.size, int) else r.size[0] for r in recipe().recipes]
    return sum(s * s for s in sizes)


def moved(case: str, batch: int) -> float:
    """Bytes: every image read once where its crops reach, every view written once in bfloat16."""
    drawn, recipes, side = draws(case)
    union = torch.zeros(DRAWN)
    for b in range(DRAWN):
        seen = torch.zeros(side, side, dtype=torch.bool)
        for v in range(len(recipes)):
            top, left = drawn.top[v, b].item(), drawn.left[v, b].item()
            height, width = drawn.height[v, b].item(), drawn.width[v, b].item()
            seen[top : top + height, left : left + width] = True
        union[b] = 3 * seen.sum()
    return batch * (union.mean().item() + 6 * pixels(case))

"""Pretext tasks on whole images: jigsaw puzzles, rotations, relative patches."""

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._checks import checked_integer
from fastssl._library import raw
from fastssl._random import checked_ids, checked_seed, checked_step
from fastssl.ops.patch import reference_pretext, schema_pretext  # noqa: F401 (registers)
from fastssl.ops.patch.reference_pretext import JIGSAW, RELATIVE, ROTATE


def jigsaw(
    images: Tensor,
    grid: int | tuple[int, int] = 3,
    *,
    permutations: Tensor,
    tile: int | tuple[int, int] | None = None,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Shuffled tiles of each image, and which permutation shuffled them.

    Noroozi & Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
    2016. An image is cut into cells of H // rows by W // columns pixels (what is left over at the
    bottom and at the right belongs to none). Out of each cell comes a tile, at an offset drawn
    uniformly from all that fit; place j holds the tile of cell permutations[label][j]. Cells are
    numbered in raster order, those of VISSL by columns; offsets include the last one, as lightly's
    do and VISSL's do not.

    The puzzle is undone by the inverse permutation:

        tiles, labels = jigsaw(images, permutations=permutations, seed=0)
        inverse = permutations[labels].argsort(1)
        cells = tiles[torch.arange(len(tiles))[:, None], inverse]  # cells[b, i] is from cell i

    Args:
        images: [B, C, H, W] of any dtype and strides.
        grid: rows and columns of cells, one number for both.
        permutations: int64 [N, rows * columns], each row a permutation of 0 to rows * columns - 1:
            `hamming_permutations`. Rows are checked on the CPU only. For images on a GPU, keep it
            there: copying it at every call waits.
        tile: height and width, one number for both; at most those of a cell. None for the cell.
        seed: in [0, 2^63).
        step: in [0, 2^32), or a 0-d int64 tensor on the images' device.
        sample_ids: what identifies each image, int64 [B]; None for 0 to B - 1.
        impl: "auto", or one of "reference", "cpu", "cuda" by name. Where a gradient for the images
            is wanted, "auto" takes "reference", which alone has one.

    Returns:
        (tiles [B, rows * columns, C, height, width] of the images' dtype, labels int64 [B], uniform
        in [0, N)).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    _check_images(images)
    rows, columns = _pair("grid", grid)
    cell = (images.shape[2] // rows, images.shape[3] // columns)
    if not all(cell):
        sides = tuple(images.shape[2:])
        raise ValueError(f"grid: got {grid}, must be at most height and width, {sides}")
    height, width = cell if tile is None else _pair("tile", tile)
    if height > cell[0] or width > cell[1]:
        raise ValueError(f"tile: got {tile}, must be at most a cell, {cell}")
    count = rows * columns
    _check_permutations(permutations, count)

    words = _words(images, JIGSAW, 1 + count, seed, step, sample_ids)
    labels = words[0, :, 0] * len(permutations) >> 32
    number = torch.arange(count, device=images.device)
    top = number // columns * cell[0] + (words[0, :, 1:] * (cell[0] - height + 1) >> 32)
    left = number % columns * cell[1] + (words[1, :, 1:] * (cell[1] - width + 1) >> 32)
    order = permutations.to(images.device, non_blocking=True)[labels]  # [B, count]
    corners = torch.stack([top.gather(1, order), left.gather(1, order)], 2)
    return _tiles(images, corners, height, width, impl), labels


def relative_patches(
    images: Tensor,
    tile: int,
    gap: int,
    jitter: int,
    *,
    seed: int,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """A tile from the middle of each image, one of its eight neighbours, and which one it is.

    Doersch et al., "Unsupervised Visual Representation Learning by Context Prediction", 2015. Three
    by three tiles with `gap` pixels between them lie in the middle of the image; the two that are
    cut are each moved by -jitter to +jitter pixels along each axis, drawn uniformly. Gap and jitter
    keep a network from solving the task by lines that run on from one tile to the next. Where
    2 * jitter > gap the two may overlap: they then share pixels, and the label can be read off
    those.

    Args:
        images: [B, C, H, W] of any dtype and strides.
        tile: its side in pixels.
        gap: pixels between tiles, at least 0.
        jitter: pixels, at least 0; 3 * tile + 2 * gap + 2 * jitter must be at most H and W.
        seed: in [0, 2^63).
        step: in [0, 2^32), or a 0-d int64 tensor on the images' device.
        sample_ids: what identifies each image, int64 [B]; None for 0 to B - 1.
        impl: "auto", or one of "reference", "cpu", "cuda" by name. Where a gradient for the images
            is wanted, "auto" takes "reference", which alone has one.

    Returns:
        (centre, neighbour, labels): tiles [B, C, tile, tile] of the images' dtype; int64 [B],
        uniform in 0 to 7, the eight neighbours in raster order: above left, above, above right,
        left, right, below left, below, below right.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a value, shape or device is not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    _check_images(images)
    for name, value, low in (("tile", tile, 1), ("gap", gap, 0), ("jitter", jitter, 0)):
        checked_integer(name, value, low)
    span, (height, width) = 3 * tile + 2 * gap, images.shape[2:]
    if span + 2 * jitter > min(height, width):
        raise ValueError(
            f"tile, gap, jitter: got {tile}, {gap}, {jitter}, 3 * tile + 2 * gap + 2 * jitter = "
            f"{span + 2 * jitter} must be at most height and width, {(height, width)}"
        )
    words = _words(images, RELATIVE, 3, seed, step, sample_ids)
    labels = words[0, :, 0] * 8 >> 32
    neighbour = labels + (labels >= 4)  # of nine, without the middle one
    place = torch.stack([torch.full_like(labels, 4), neighbour], 1)  # [B, 2]
    moved = (words[:2, :, 1:] * (2 * jitter + 1) >> 32) - jitter  # [2, B, 2]
    top = (height - span) // 2 + place // 3 * (tile + gap) + moved[0]
    left = (width - span) // 2 + place % 3 * (tile + gap) + moved[1]
    tiles = _tiles(images, torch.stack([top, left], 2), tile, tile, impl)
    return tiles[:, 0], tiles[:, 1], labels


def rotate4(
    images: Tensor,
    *,
    seed: int | None = None,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Images turned by 0, 90, 180 and 270 degrees, or by one of these, and by which.

    Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations", 2018.
    Rotation k is torch.rot90(images, k, (-2, -1)), counter-clockwise. Differentiable.

    Args:
        images: [B, C, H, W] with H = W, of any dtype and strides.
        seed: in [0, 2^63), to draw one rotation for each image; None for all four of each.
        step: in [0, 2^32), or a 0-d int64 tensor on the images' device; with a seed only.
        sample_ids: what identifies each image, int64 [B]; None for 0 to B - 1; with a seed only.

    Returns:
        (views, labels): [4, B, C, H, W] and int64 [4, B] without a seed, [B, C, H, W] and int64
        [B] with one.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: images are not square, or a value, shape or device is not acceptable.
    """
    _check_images(images)
    batch, side = images.shape[0], images.shape[2]
    if images.shape[3] != side:
        raise ValueError(f"images: got shape {tuple(images.shape)}, H and W must be equal")
    if seed is None:
        if sample_ids is not None or isinstance(step, Tensor) or step != 0:
            raise ValueError("seed: got None, step and sample_ids need one")
        labels = torch.arange(4, device=images.device).unsqueeze(1).repeat(1, batch)
        return torch.stack([images.rot90(k, (-2, -1)) for k in range(4)]), labels
    labels = _words(images, ROTATE, 1, seed, step, sample_ids)[0, :, 0] >> 30
    pixels = torch.arange(side * side, device=images.device).view(side, side)
    source = torch.stack([pixels.rot90(k) for k in range(4)]).flatten(1)[labels]  # [B, H * W]
    found = images.flatten(2).gather(2, source.unsqueeze(1).expand(-1, images.shape[1], -1))
    return found.view(images.shape), labels


def _words(images: Tensor, task: int, blocks: int, seed, step, sample_ids) -> Tensor:
    """Random words [4, B, blocks] of one task."""
    checked_seed(seed)
    counters = checked_step(step, images.device, "images")
    sample_ids = checked_ids(sample_ids, images.shape[0], images.device)
    return raw("patch_words")(sample_ids, *counters, seed, task, blocks)


def _tiles(images: Tensor, corners: Tensor, height: int, width: int, impl: str) -> Tensor:
    chosen = _dispatch.choose("patch", impl, images.device)
    if images.requires_grad and torch.is_grad_enabled() and chosen != "reference":
        if impl != "auto":
            raise RuntimeError(
                f"impl={impl!r} has no gradient for images, which require one; 'reference' has"
            )
        chosen = "reference"
    run = reference_pretext.tiles if chosen == "reference" else raw("patch_tiles")
    return run(images, corners.int(), height, width)


def _check_images(images) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images: got {type(images).__name__}, must be a tensor")
    if images.dim() != 4:
        raise ValueError(f"images: got shape {tuple(images.shape)}, must be [B, C, H, W]")


def _check_permutations(permutations, count: int) -> None:
    if not isinstance(permutations, Tensor) or permutations.dtype != torch.int64:
        got = getattr(permutations, "dtype", type(permutations).__name__)
        raise TypeError(f"permutations: got {got}, must be an int64 tensor")
    if permutations.dim() != 2 or permutations.shape[1] != count or not len(permutations):
        got = tuple(permutations.shape)
        raise ValueError(f"permutations: got shape {got}, must be [N, {count}] with N at least 1")
    # A tracer cannot look at values, and to look at those on a GPU would wait for it.
    if permutations.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = (permutations.sort(1).values != torch.arange(count)).any(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            got = permutations[row].tolist()
            raise ValueError(
                f"permutations[{row}]: got {got}, must be a permutation of 0 to {count - 1}"
            )


def _pair(name: str, value) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name}: got {value}, must be one number or two")
    for number in values:
        checked_integer(name, number, 1)
    return values

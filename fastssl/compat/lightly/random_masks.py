"""The functions of `lightly.models.utils` that draw masks; users import them from `.utils`."""

import math

import torch
from torch import Tensor

from fastssl import masking
from fastssl.compat._draw import keyed, moved, seeded


def random_token_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.6,
    mask_class_token: bool = False,
    device: torch.device | str | None = None,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Which tokens to keep and which to mask, at random.

    Args:
        size: (B, S), S with the class token.
        mask_ratio: in [0, 1], of the S - 1 tokens that are no class token; of all S with
            `mask_class_token`.
        mask_class_token: whether the class token may be masked.
        device: of the result; None for the CPU.
        generator: to draw from.
        seed: instead of drawing.

    Returns:
        idx_keep [B, K] and idx_mask [B, S - K], in random order. K is int((S - 1) * (1 - ratio))
        and one for the class token, which comes first; int(S * (1 - ratio)) with
        `mask_class_token`.

    Raises:
        ValueError: `mask_ratio` is out of range.
    """
    batch, length = size
    prefix = int(not mask_class_token and length > 0)
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"mask_ratio: got {mask_ratio}, must be in [0, 1]")
    keep = int((length - prefix) * (1 - mask_ratio))
    drawn = keyed(batch, device, generator, seed)
    if length > prefix:
        order = masking.random_masks(batch, length - prefix, 0.0, **drawn).ids_shuffle
    else:
        order = torch.empty(batch, 0, dtype=torch.int64, device=device)
    return _with_prefix(order[:, :keep], prefix), order[:, keep:] + prefix


def random_grid_token_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.75,
    grid_size: int = 4,
    num_prefix_tokens: int = 1,
    device: torch.device | str | None = None,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Keeps and masks whole cells of patches, as Pixio does (arXiv:2512.15715).

    Args:
        size: (B, S), S the prefix and a square of patches.
        mask_ratio: in [0, 1), of the cells.
        grid_size: patches along a cell's side; divides the square's.
        num_prefix_tokens: class and register tokens, never masked.
        device: of the result; None for the CPU.
        generator: to draw from.
        seed: instead of drawing.

    Returns:
        idx_keep [B, prefix + K], the prefix first, and idx_mask [B, S - prefix - K], with K =
        int(cells * (1 - ratio)) * grid_size^2. Only the order within them is not lightly's.

    Raises:
        ValueError: the patches are no square, or `grid_size` does not divide it; or `mask_ratio`
            is out of range.
    """
    grid = _square(size, num_prefix_tokens)
    plan = masking.grid_masks(
        size[0], grid, mask_ratio, cell=grid_size, **keyed(size[0], device, generator, seed)
    )
    return _indices(plan, num_prefix_tokens)


def random_inverse_block_mask(
    size: tuple[int, int],
    mask_ratio: float = 0.65,
    num_prefix_tokens: int = 1,
    min_aspect: float = 0.5,
    max_aspect: float | None = None,
    roll: bool = True,
    device: torch.device | str | None = None,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Keeps one block and masks the rest, as CAPI does (arXiv:2502.08769).

    Args:
        size: (B, S), S the prefix and a square of patches.
        mask_ratio: in [0, 1), of the patches.
        num_prefix_tokens: class and register tokens, never masked.
        min_aspect: least height over width of the block.
        max_aspect: greatest; None for 1 / min_aspect.
        roll: move the block around the edges of the grid.
        device: of the result; None for the CPU.
        generator: to draw from.
        seed: instead of drawing.

    Returns:
        idx_keep [B, S - M], the prefix first, and idx_mask [B, M], each ascending, with M =
        int(patches * ratio).

    Raises:
        ValueError: the patches are no square, or a number is out of range.
    """
    grid = _square(size, num_prefix_tokens)
    aspect = (min_aspect, 1 / min_aspect if max_aspect is None else max_aspect)
    drawn = keyed(size[0], device, generator, seed)
    plan = masking.inverse_block_masks(size[0], grid, mask_ratio, aspect=aspect, roll=roll, **drawn)
    return _indices(plan, num_prefix_tokens)


def random_prefix_mask(
    size: tuple[int, int],
    max_prefix_length: int,
    device: torch.device | str | None = None,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Masks what comes after a prefix of random length, as AIM does.

    The length is uniform in 0 to `max_prefix_length`, as lightly documents it; its code never draws
    the greatest.

    Args:
        size: (B, S).
        max_prefix_length: at least 0.
        device: of the result; None for the CPU.
        generator: to draw from.
        seed: instead of drawing.

    Returns:
        bool [B, S].

    Raises:
        ValueError: `max_prefix_length` is negative.
    """
    batch, length = size
    if max_prefix_length < 0:
        raise ValueError(f"max_prefix_length: got {max_prefix_length}, must be at least 0")
    drawn = seeded(generator, seed)
    prefixes = moved(torch.randint(max_prefix_length + 1, (batch, 1), **drawn), device)
    return torch.arange(length, device=device) >= prefixes


def random_block_mask(
    size: tuple[int, int, int],
    batch_mask_ratio: float = 0.5,
    min_image_mask_ratio: float = 0.1,
    max_image_mask_ratio: float = 0.5,
    min_num_masks_per_block: int = 4,
    max_num_masks_per_block: int | None = None,
    min_block_aspect_ratio: float = 0.3,
    max_block_aspect_ratio: float | None = None,
    max_attempts_per_block: int = 10,
    device: torch.device | str | None = None,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """Block masks for some images of a batch, as DINOv2 does (arXiv:2304.07193).

    Args:
        size: (B, H, W) in patches.
        batch_mask_ratio: in [0, 1], of the images that get a mask.
        min_image_mask_ratio: least part of such an image to mask. From there to the greatest the
            images divide the range among them.
        max_image_mask_ratio: greatest part.
        min_num_masks_per_block: least area of a block.
        max_num_masks_per_block: most patches that a block may add; None for all that are left.
        min_block_aspect_ratio: least height over width.
        max_block_aspect_ratio: greatest; None for 1 / least.
        max_attempts_per_block: must be 10.
        device: of the result; None for the CPU. Nothing waits for a GPU.
        generator: to draw from.
        seed: instead of drawing.

    Returns:
        bool [B, H, W]. As in lightly an image may end with fewer than it should have.

    Raises:
        ValueError: a number is out of range.
    """
    batch, *grid = size
    for name, least, most in (
        ("batch_mask_ratio", 0.0, batch_mask_ratio),
        ("max_image_mask_ratio", min_image_mask_ratio, max_image_mask_ratio),
    ):
        if not 0 <= least <= most <= 1:
            raise ValueError(f"{name}: got {most}, must be in [{least}, 1]")
    masked = int(batch * batch_mask_ratio)
    drawn = seeded(generator, seed)
    # Image i of n takes its part from the i-th of n equal pieces of the range.
    places = torch.arange(masked, device=drawn["device"])
    places = (places + torch.rand(masked, dtype=torch.float64, **drawn)) / max(masked, 1)
    ratios = min_image_mask_ratio + (max_image_mask_ratio - min_image_mask_ratio) * places
    counts = torch.zeros(batch, dtype=torch.int64, device=drawn["device"])
    counts[torch.randperm(batch, **drawn)[:masked]] = (math.prod(grid) * ratios).long()
    blocks = (min_num_masks_per_block, max_num_masks_per_block)
    aspect = (min_block_aspect_ratio, max_block_aspect_ratio)
    keywords = keyed(batch, device, generator, seed)
    counts = moved(counts, device)
    return _blocks(batch, grid, counts, blocks, aspect, max_attempts_per_block, keywords)


def random_block_mask_image(
    size: tuple[int, int],
    num_masks: int,
    min_num_masks_per_block: int = 4,
    max_num_masks_per_block: int | None = None,
    min_block_aspect_ratio: float = 0.3,
    max_block_aspect_ratio: float | None = None,
    max_attempts_per_block: int = 10,
    device: torch.device | str | None = None,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """A block mask of one image.

    Args:
        size: (H, W) in patches.
        num_masks: how many to mask, at least 0; lightly raises below `min_num_masks_per_block`.
        min_num_masks_per_block: as in `random_block_mask`.
        max_num_masks_per_block: as there.
        min_block_aspect_ratio: as there.
        max_block_aspect_ratio: as there.
        max_attempts_per_block: must be 10.
        device: of the result; None for the CPU.
        generator: to draw from.
        seed: instead of drawing.

    Returns:
        bool [H, W].

    Raises:
        ValueError: a number is out of range.
    """
    blocks = (min_num_masks_per_block, max_num_masks_per_block)
    aspect = (min_block_aspect_ratio, max_block_aspect_ratio)
    keywords = keyed(1, device, generator, seed)
    return _blocks(1, size, num_masks, blocks, aspect, max_attempts_per_block, keywords)[0]


def _blocks(batch, grid, counts, blocks, aspect, attempts, keywords) -> Tensor:
    least, most = blocks
    low, high = aspect
    high = 1 / low if high is None else high
    if most is not None and most < least:
        raise ValueError(f"max_num_masks_per_block: got {most}, must be at least {least}")
    if high < low:
        raise ValueError(f"max_block_aspect_ratio: got {high}, must be at least {low}")
    if attempts != 10:
        raise ValueError(f"max_attempts_per_block: got {attempts}, must be 10")
    how = {"counts": counts, "least": least, "most": most, "aspect": (low, high), "exact": False}
    return masking.block_masks(batch, tuple(grid), **how, **keywords).mask.view(batch, *grid)


def _square(size: tuple[int, int], prefix: int) -> tuple[int, int]:
    side = math.isqrt(max(size[1] - prefix, 0))
    if side * side != size[1] - prefix or not side:
        allowed = f"{prefix} and a square of patches"
        raise ValueError(f"size: got {size[1]} tokens, must be {allowed}")
    return side, side


def _indices(plan, prefix: int) -> tuple[Tensor, Tensor]:
    return _with_prefix(plan.ids_keep, prefix), plan.ids_removed + prefix


def _with_prefix(index: Tensor, prefix: int) -> Tensor:
    first = torch.arange(prefix, device=index.device).expand(len(index), -1)
    return torch.cat([first, index + prefix], 1)

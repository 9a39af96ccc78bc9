"""Sets of permutations for jigsaw puzzles."""

import math

import torch
from torch import Tensor

from fastssl._checks import checked_integer
from fastssl._library import _C
from fastssl._random import checked_seed
from fastssl.ops.patch import reference_pretext

CRITERIA = ("max_avg", "max_min")
MOST_TILES = 10


def hamming_permutations(
    count: int, tiles: int, criterion: str = "max_avg", *, seed: int = 0
) -> Tensor:
    """Permutations that differ in many places, the classes of a jigsaw puzzle.

    Noroozi & Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
    2016: the first permutation is drawn from all with equal chances; each further one is, of those
    not yet taken, the one with the largest distance to those taken. Of several the first in
    lexicographic order is taken, so that a seed fixes the set. Sets are nested: a smaller count
    gives the first rows of a larger one.

    Args:
        count: of permutations, at most tiles!.
        tiles: that are permuted, 1 to 10; 9 for a grid of three by three.
        criterion: what is as large as can be: "max_avg", the mean Hamming distance to those taken,
            or "max_min", the least.
        seed: in [0, 2^63).

    Returns:
        int64 [count, tiles] on the CPU.

    Raises:
        TypeError: `count`, `tiles` or `seed` is no integer.
        ValueError: a value is not acceptable.
    """
    checked_integer("tiles", tiles, 1, MOST_TILES)
    if not 1 <= checked_integer("count", count, 1) <= math.factorial(tiles):
        allowed = f"[1, {tiles}!] = [1, {math.factorial(tiles)}]"
        raise ValueError(f"count: got {count}, must be in {allowed}")
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: got {criterion!r}, must be one of {', '.join(CRITERIA)}")
    arguments = (count, tiles, criterion == "max_min", checked_seed(seed))
    if _C is None:
        return reference_pretext.hamming_permutations(*arguments)
    found = bytearray(_C.hamming_permutations(*arguments))
    return torch.frombuffer(found, dtype=torch.uint8).view(count, tiles).long()

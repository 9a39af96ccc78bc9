"""The mask generators of BEiT, DINOv2, SimMIM and VideoMAE: what they return, counts, coverage."""

import math
import pickle
import random

import numpy as np
import pytest
import torch

from fastssl.compat.beit import MaskingGenerator
from fastssl.compat.simmim import MaskGenerator
from fastssl.compat.videomae import TubeMaskingGenerator

GENERATORS = {
    "beit": lambda **keywords: MaskingGenerator(14, 75, 16, **keywords),
    "simmim": lambda **keywords: MaskGenerator(**keywords),
    "videomae": lambda **keywords: TubeMaskingGenerator((8, 14, 14), 0.9, **keywords),
}


def beit(height, width, count, least, most, low=0.3):
    """Bao et al. 2022: rectangles until there are enough, or until ten in a row do not fit."""
    mask, ends = np.zeros((height, width), dtype=int), (math.log(low), -math.log(low))
    while mask.sum() < count:
        limit, before = min(count - mask.sum(), most), mask.sum()
        for _ in range(10):
            area, ratio = random.uniform(least, limit), math.exp(random.uniform(*ends))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                y, x = random.randint(0, height - h), random.randint(0, width - w)
                if 0 < (mask[y : y + h, x : x + w] == 0).sum() <= limit:
                    mask[y : y + h, x : x + w] = 1
                    break
        if mask.sum() == before:
            break
    return mask


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_seeds(make):
    free = make()
    torch.manual_seed(1)
    first, second = free(), free()
    torch.manual_seed(1)
    assert (free() == first).all()
    assert (first != second).any()
    seeded = [make(seed=4) for _ in range(2)]
    for _ in range(3):
        masks = [generator() for generator in seeded]
        assert (masks[0] == masks[1]).all()
        assert (masks[0] != make(seed=5)()).any()
    assert (make(seed=4)() != masks[0]).any(), "the third call is like the first"
    again = pickle.loads(pickle.dumps(seeded[0]))
    assert (again() == seeded[1]()).all(), "a pickled generator goes on where it was"
    with pytest.raises(TypeError, match="seed: got 1.5"):
        make(seed=1.5)


@pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)
def test_batches(make):
    plan = make(seed=2).batch(6)
    assert len(plan) == 6
    assert plan.mask.dtype == torch.bool
    assert len({tuple(row) for row in plan.mask.tolist()}) == 6
    alone = make(seed=2)()
    assert (alone.reshape(-1) == plan.mask[0].numpy()).all(), "a call is a batch of one"


def test_beit_returns_what_beit_returns():
    mask = MaskingGenerator((14, 10), 60, 16)()
    assert isinstance(mask, np.ndarray)
    assert (mask.shape, mask.dtype) == ((14, 10), np.int64)
    assert set(np.unique(mask)) <= {0, 1}
    generator = MaskingGenerator(14, num_masking_patches=75)
    assert generator.get_shape() == (14, 14)
    assert (generator.height, generator.width, generator.num_patches) == (14, 14, 196)
    assert (generator.num_masking_patches, generator.max_num_patches) == (75, 75)
    assert "14, 14" in repr(generator)


def test_beit_falls_short_as_beit_does():
    ours = MaskingGenerator(14, 75, 16, seed=0).batch(2000)
    theirs = np.stack([beit(14, 14, 75, 16, 75) for _ in range(400)])
    counts = ours.mask.sum(1).double(), torch.tensor(theirs.sum((1, 2))).double()
    assert counts[0].max() <= 75
    assert abs(counts[0].mean() - counts[1].mean()) < 0.25
    full = [(c == 75).double().mean() for c in counts]
    assert abs(full[0] - full[1]) < 5 * (0.25 / 400) ** 0.5
    edges = [(m[:, 1:] != m[:, :-1]).mean() for m in (ours.mask.view(-1, 14, 14).numpy(), theirs)]
    assert abs(edges[0] - edges[1]) < 0.01, "rectangles of other sizes"
    places = [m.mean(0) for m in (ours.mask.view(-1, 14, 14).double().numpy(), theirs)]
    assert np.abs(places[0] - places[1]).max() < 6 * (0.25 / 400) ** 0.5


def test_exact_counts():
    plan = MaskingGenerator((14, 14), 75, 16, exact=True).batch(64)
    assert torch.equal(plan.mask.sum(1), torch.full((64,), 75))
    assert plan.keep == 121
    counts = torch.arange(0, 60, 10)
    plan = MaskingGenerator(14, exact=True).batch(6, num_masking_patches=counts)
    assert torch.equal(plan.mask.sum(1), counts)


def test_dinov2_says_the_count_in_the_call():
    generator = MaskingGenerator((16, 16), max_num_patches=0.5 * 256)
    for count in (0, 1, 30, 100):
        mask = generator(count)
        assert (mask.shape, mask.dtype) == ((16, 16), np.bool_)
        assert mask.sum() <= count
        assert mask.sum() >= 0.7 * count - 4
    with pytest.raises(ValueError, match="num_masking_patches: got None"):
        generator()
    with pytest.raises(ValueError, match="counts: got 300"):
        generator(300)


def test_simmim():
    generator = MaskGenerator()
    assert (generator.rand_size, generator.scale) == (6, 8)
    assert (generator.token_count, generator.mask_count) == (36, 22)
    mask = generator()
    assert (mask.shape, mask.dtype) == ((48, 48), np.int64)
    cells = mask.reshape(6, 8, 6, 8).mean((1, 3))
    assert set(np.unique(cells)) == {0, 1}
    assert cells.sum() == 22
    cells = generator.batch(3000).mask.view(3000, 6, 8, 6, 8)[:, :, 0, :, 0].double().mean(0)
    assert (cells - 22 / 36).abs().max() < 5 * (0.24 / 3000) ** 0.5
    for sizes, match in (
        ((100, 32, 4), "mask_patch_size: got 32, must divide input_size = 100"),
        ((96, 32, 5), "model_patch_size: got 5, must divide mask_patch_size = 32"),
    ):
        with pytest.raises(ValueError, match=match):
            MaskGenerator(*sizes)


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_videomae(ratio):
    generator = TubeMaskingGenerator((8, 14, 12), ratio)
    mask = generator()
    assert (mask.shape, mask.dtype) == ((8 * 14 * 12,), np.float64)
    frames = mask.reshape(8, -1)
    assert (frames == frames[0]).all()
    assert frames[0].sum() == int(ratio * 168) == generator.num_masks_per_frame
    assert mask.sum() == generator.total_masks
    assert (generator.num_patches_per_frame, generator.total_patches) == (168, 1344)
    assert str(generator.total_masks) in repr(generator)
    covered = generator.batch(2000).mask.view(2000, 8, 168)[:, 0].double().mean(0)
    wanted = int(ratio * 168) / 168
    assert (covered - wanted).abs().max() < 5 * (0.25 / 2000) ** 0.5

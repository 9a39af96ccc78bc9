"""lightly's random masks: counts and shapes as lightly's, coverage as it should be."""

import pytest
import torch
from compat_cases import library, partition

from fastssl.compat.lightly import utils


@pytest.fixture
def theirs():
    return library("lightly.models.utils")


def shapes(*tensors):
    return [tuple(t.shape) for t in tensors]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("length", [1, 2, 11, 50, 197])
def test_random_token_mask(theirs, length, class_token):
    for ratio in (0.0, 0.3, 0.6, 0.75, 0.9, 1.0):
        ours, other = (
            m.random_token_mask((6, length), ratio, class_token) for m in (utils, theirs)
        )
        assert shapes(*ours) == shapes(*other), ratio
        partition(*ours, length)
        if not class_token:
            assert not ours[0][:, 0].any()


def test_random_token_mask_covers_all_tokens_equally():
    keep, _ = utils.random_token_mask((4000, 9), 0.5, seed=0)
    counts = torch.bincount(keep[:, 1:].flatten(), minlength=9)[1:]
    assert (counts - 2000).abs().max() < 5 * (4000 * 0.25) ** 0.5
    first = torch.bincount(keep[:, 1], minlength=9)[1:]  # of random order, not raster
    assert (first - 500).abs().max() < 5 * (4000 * 7 / 64) ** 0.5
    keep, _ = utils.random_token_mask((4000, 8), 0.5, mask_class_token=True, seed=0)
    assert abs((keep == 0).sum().item() - 2000) < 5 * 1000**0.5


def test_draws_follow_torchs_seed_or_their_own():
    draws = {
        "random_token_mask": ((8, 17),),
        "random_grid_token_mask": ((8, 65), 0.75, 2),
        "random_inverse_block_mask": ((8, 65),),
        "random_prefix_mask": ((8, 65), 60),
        "random_block_mask": ((8, 14, 14),),
        "random_block_mask_image": ((14, 14), 60),
    }
    for name, arguments in draws.items():

        def draw(name=name, arguments=arguments, **keywords):
            found = getattr(utils, name)(*arguments, **keywords)
            return torch.cat(found, 1) if isinstance(found, tuple) else found

        torch.manual_seed(5)
        first, second = draw(), draw()
        torch.manual_seed(5)
        assert torch.equal(draw(), first), name
        assert not torch.equal(first, second), name
        assert torch.equal(draw(seed=1), draw(seed=1)), name
        assert not torch.equal(draw(seed=1), draw(seed=2)), name
        state = torch.get_rng_state()
        drawn = [draw(generator=torch.Generator().manual_seed(5)) for _ in range(2)]
        assert torch.equal(*drawn), name
        assert torch.equal(torch.get_rng_state(), state), f"{name} draws from torch's generator too"
        with pytest.raises(ValueError, match="seed: got a seed and a generator"):
            draw(seed=1, generator=torch.Generator())


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("side, cell", [(8, 4), (14, 2), (12, 1), (4, 4)])
def test_random_grid_token_mask(theirs, side, cell, prefix):
    size = (7, prefix + side * side)
    for ratio in (0.0, 0.5, 0.75, 0.9):
        ours, other = (m.random_grid_token_mask(size, ratio, cell, prefix) for m in (utils, theirs))
        assert shapes(*ours) == shapes(*other)
        partition(*ours, size[1])
        assert ours[0][:, :prefix].tolist() == [list(range(prefix))] * 7
        kept = torch.zeros(size, dtype=torch.bool).scatter_(1, ours[0], True)[:, prefix:]
        cells = kept.view(7, side // cell, cell, side // cell, cell).float().mean((2, 4))
        assert torch.equal(cells, cells.round()), "a cell is kept in part"


@pytest.mark.parametrize("roll", [True, False])
@pytest.mark.parametrize("prefix", [0, 1])
def test_random_inverse_block_mask(theirs, roll, prefix):
    size = (40, prefix + 196)
    for ratio in (0.0, 0.33, 0.65, 0.95):
        ours, other = (
            m.random_inverse_block_mask(size, ratio, prefix, roll=roll) for m in (utils, theirs)
        )
        assert shapes(*ours) == shapes(*other)
        partition(*ours, size[1])
        assert ours[0][:, :prefix].tolist() == [list(range(prefix))] * 40
        for index in ours:
            assert (index.diff() > 0).all(), "patches are in raster order"
    kept = torch.zeros(40, 196, dtype=torch.bool)
    keep, _ = utils.random_inverse_block_mask((40, 196), 0.65, 0, roll=roll)
    kept = kept.scatter_(1, keep, True).view(40, 14, 14)
    if not roll:
        for image in kept:
            rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
            box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            # One rectangle, of which only its last rows may be cut.
            assert box - image.sum() < 2 * max(columns[-1] - columns[0] + 1, 14)


def test_squares_are_asked_for():
    for function in (utils.random_grid_token_mask, utils.random_inverse_block_mask):
        with pytest.raises(ValueError, match="size: got 60 tokens, must be 1 and a square"):
            function((2, 60))
        with pytest.raises(ValueError, match="size: got 1 tokens"):
            function((2, 1))
    with pytest.raises(ValueError, match="cell"):
        utils.random_grid_token_mask((2, 50), grid_size=4)


def test_random_prefix_mask(theirs):
    mask = utils.random_prefix_mask((3000, 20), 9)
    assert shapes(mask) == shapes(theirs.random_prefix_mask((3000, 20), 9))
    assert mask.dtype == torch.bool
    lengths = (~mask).sum(1)
    assert torch.equal(mask, torch.arange(20) >= lengths.unsqueeze(1))
    counts = torch.bincount(lengths, minlength=10)
    assert counts.shape == (10,), "the greatest length is drawn, and none beyond"
    assert (counts - 300).abs().max() < 5 * 270**0.5
    assert utils.random_prefix_mask((2, 4), 0).all()
    with pytest.raises(ValueError, match="max_prefix_length: got -1"):
        utils.random_prefix_mask((2, 4), -1)


def test_random_block_mask_divides_the_range_among_images(theirs):
    for module in (utils, theirs):
        mask = module.random_block_mask((64, 16, 16), 0.5, 0.1, 0.5)
        assert mask.shape == (64, 16, 16)
        assert mask.dtype == torch.bool
        counts = mask.flatten(1).sum(1).sort().values
        assert not counts[:32].any()
        upper = (256 * torch.linspace(0.1, 0.5, 33)[1:]).int()
        assert (counts[32:] <= upper).all()
        assert (counts[32:] >= upper - 24).all(), "far fewer than asked for"
    where = utils.random_block_mask((64, 16, 16)).flatten(1).any(1)
    assert where[:32].any(), "the images without a mask come at random places"
    assert where[32:].any()
    assert not utils.random_block_mask((3, 8, 8), 0.2).any()
    covered = [m.random_block_mask((1500, 8, 6), 1.0).float().mean(0) for m in (utils, theirs)]
    assert (covered[0] - covered[1]).abs().max() < 5 * (2 * 0.25 / 1500) ** 0.5


def test_random_block_mask_image(theirs):
    ours, other = (
        torch.stack([m.random_block_mask_image((14, 12), 60) for _ in range(100)])
        for m in (utils, theirs)
    )
    assert shapes(ours) == shapes(other)
    means = [x.flatten(1).sum(1).float().mean() for x in (ours, other)]
    assert ours.flatten(1).sum(1).max() <= 60
    assert abs(means[0] - means[1]) < 1.5
    neighbours = [(x[:, 1:] == x[:, :-1]).float().mean() for x in (ours, other)]
    assert abs(neighbours[0] - neighbours[1]) < 0.03, "blocks of other sizes than lightly's"
    assert not utils.random_block_mask_image((8, 8), 0).any()
    assert utils.random_block_mask_image((8, 8), 3).sum() <= 3


def test_errors_of_block_masks():
    for keywords, match in (
        ({"max_num_masks_per_block": 3}, "max_num_masks_per_block: got 3, must be at least 4"),
        ({"max_block_aspect_ratio": 0.2}, "max_block_aspect_ratio: got 0.2"),
        ({"max_attempts_per_block": 9}, "max_attempts_per_block: got 9, must be 10"),
    ):
        with pytest.raises(ValueError, match=match):
            utils.random_block_mask_image((8, 8), 9, **keywords)
    with pytest.raises(ValueError, match="max_image_mask_ratio: got 0.1"):
        utils.random_block_mask((2, 8, 8), 0.5, 0.3, 0.1)
    with pytest.raises(ValueError, match="batch_mask_ratio: got 1.1"):
        utils.random_block_mask((2, 8, 8), 1.1)
    with pytest.raises(ValueError, match="mask_ratio: got 1.5"):
        utils.random_token_mask((2, 8), 1.5)

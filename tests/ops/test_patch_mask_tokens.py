"""BERT's masking: the same bits everywhere, and the distribution that the definition names."""

import math

import pytest
import torch
from test_augment_draw import LEAST, chi_square

from fastssl.ops.patch import reference_pretext
from fastssl.ops.patch.mask_tokens import mask_tokens

VOCAB, MASK = 1000, 103


def text(batch=16, length=40, dtype=torch.int64, seed=77):
    """Ids from 200 on, of which the first, the last and some between are special."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(200, VOCAB, (batch, length), generator=g)
    special = torch.rand(batch, length, generator=g) < 0.1
    special[:, [0, -1]] = True
    ids[special] = 101
    return ids.to(dtype), special


def same(a, b):
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("vocab", [1, VOCAB, 1 << 31])
def test_same_bits_in_every_implementation(dtype, vocab, impl):
    sample_ids = torch.tensor([0, 1, 77, 1 << 31, (1 << 32) + 5, (1 << 62) + 1, -1, -(1 << 40)])
    ids, special = text(8, 300, dtype)
    for seed, step in ((0, 0), (0x123456789ABCDEF, 12345), ((1 << 63) - 1, (1 << 32) - 1)):
        for some in (special, None):
            settings = {"seed": seed, "sample_ids": sample_ids}
            arguments = (ids, some, MASK, vocab, 0.4, 0.3, 0.5)
            ours = mask_tokens(*arguments, **settings, step=step, impl=impl)
            reference = mask_tokens(*arguments, **settings, step=step, impl="reference")
            assert same(ours, reference)
            assert ours[0].dtype == ours[1].dtype == dtype
            tensor = torch.tensor(step)
            assert same(ours, mask_tokens(*arguments, **settings, step=tensor, impl=impl))


def test_a_draw_depends_on_nothing_but_its_counters(impl):
    ids, special = text()

    def run(rows=slice(None), columns=slice(None), **changed):
        settings = {"seed": 5, "step": 3, "sample_ids": torch.arange(16)[rows], "impl": impl}
        given = (ids[rows, columns], special[rows, columns])
        return mask_tokens(*given, MASK, VOCAB, 0.5, **(settings | changed))

    whole = run()
    for rows in (slice(0, 1), slice(3, 11), slice(15, 16)):
        assert same(run(rows), [x[rows] for x in whole])
    assert same(run(columns=slice(0, 25)), [x[:, :25] for x in whole])  # padded less
    assert same(run(sample_ids=None), whole)
    for change in ({"seed": 6}, {"step": 4}, {"seed": 5 + (1 << 32)}):
        assert not same(run(**change), whole)


def test_ids_of_any_strides(impl):
    ids, special = text(8, 8)
    packed = mask_tokens(ids.T.contiguous(), special.T.contiguous(), MASK, VOCAB, seed=1, impl=impl)
    assert same(mask_tokens(ids.T, special.T, MASK, VOCAB, seed=1, impl=impl), packed)
    assert all(x.is_contiguous() for x in packed)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (0, 4), (3, 0)])
def test_small_batches(batch, length, impl):
    ids = torch.arange(batch * length).view(batch, length)
    inputs, labels = mask_tokens(ids, None, MASK, VOCAB, 1.0, 1.0, 0.0, seed=0, impl=impl)
    assert torch.equal(labels, ids)
    assert torch.equal(inputs, torch.full_like(ids, MASK))


def test_certain_and_impossible_fates(impl):
    ids, special = text()

    def run(*shares):
        return mask_tokens(ids, special, MASK, VOCAB, *shares, seed=2, impl=impl)

    assert same(run(0.0), (ids, torch.full_like(ids, -100)))
    inputs, labels = run(1.0, 0.0, 0.0)  # to be predicted, but left as they are
    assert torch.equal(inputs, ids)
    assert torch.equal(labels, torch.where(special, -100, ids))
    inputs, _ = run(1.0, 1.0, 0.0)
    assert torch.equal(inputs, torch.where(special, ids, MASK))
    inputs, _ = run(1.0, 0.0, 1.0)
    assert (inputs[~special] == ids[~special]).double().mean() < 0.02
    before = ids.clone()
    run(0.9)
    assert torch.equal(ids, before)


def binomial(yes, n, p):
    """The probability of a count so far from n p, in the normal limit."""
    return math.erfc(abs(yes - n * p) / math.sqrt(2 * n * p * (1 - p)))


def shares_are_berts(ids, special, inputs, labels):
    """15 % are to be predicted; of those 80 % are masked and 10 % random; special ones never."""
    assert torch.equal(inputs[special], ids[special])
    assert (labels[special] == -100).all()
    predicted = labels != -100
    assert torch.equal(labels[predicted], ids[predicted])
    assert torch.equal(inputs[~predicted], ids[~predicted])
    n = predicted.sum().item()
    assert binomial(n, (~special).sum().item(), 0.15) > LEAST
    now, then = inputs[predicted], ids[predicted]
    masked, kept = now == MASK, now == then
    # A random id is once in a while the mask or the token itself.
    assert binomial(masked.sum().item(), n, 0.8 + 0.1 / VOCAB) > LEAST
    assert binomial(kept.sum().item(), n, 0.1 + 0.1 / VOCAB) > LEAST
    drawn = now[~masked & ~kept]
    assert 0 <= drawn.min() < 50
    assert VOCAB - 50 < drawn.max() < VOCAB
    tenths = (drawn * 20 // VOCAB).bincount(minlength=20)
    # The mask's own id cannot be told from a mask: it is missing in its twentieth.
    chances = torch.full((20,), VOCAB / 20, dtype=torch.float64)
    chances[MASK * 20 // VOCAB] -= 1
    assert chi_square(tenths.double(), chances / chances.sum()) > LEAST


def test_distribution(impl):
    ids, special = text(256, 512)
    shares_are_berts(ids, special, *mask_tokens(ids, special, MASK, VOCAB, seed=4, impl=impl))


def test_distribution_is_that_of_hugging_face():
    """Its collator passes the same test on the same text, with a vocabulary of the same size."""
    transformers = pytest.importorskip("transformers")

    class Tokenizer:
        mask_token = "[MASK]"
        mask_token_id = MASK

        def __len__(self):
            return VOCAB

        def convert_tokens_to_ids(self, token):
            return MASK

    ids, special = text(256, 512)
    collator = transformers.DataCollatorForLanguageModeling(Tokenizer())
    inputs, labels = collator.torch_mask_tokens(ids.clone(), special_tokens_mask=special)
    shares_are_berts(ids, special, inputs, labels)


def test_tokens_and_fates_are_independent():
    ids = torch.zeros(200, 200, dtype=torch.int64)
    _, labels = mask_tokens(ids, None, MASK, VOCAB, 0.5, seed=9)
    predicted = (labels == 0).long()
    for a, b in (
        (predicted[:, 1:], predicted[:, :-1]),
        (predicted[1:], predicted[:-1]),
        (predicted, (mask_tokens(ids, None, MASK, VOCAB, 0.5, seed=10)[1] == 0).long()),
    ):
        pairs = (2 * a + b).flatten().bincount(minlength=4).double()
        assert chi_square(pairs, [0.25] * 4) > LEAST


def test_opcheck():
    ids, special = text(3, 5)
    sample_ids, shares = torch.arange(3), [0.5, 0.5, 0.3]
    for some, step, x in ((special, None, ids), (None, torch.tensor(2), ids.int())):
        inputs = (x, some, sample_ids, step, 1, 5, MASK, VOCAB, shares)
        torch.library.opcheck(torch.ops.fastssl.patch_mask_tokens, inputs)
        found = torch.ops.fastssl.patch_mask_tokens(*inputs)
        assert same(found, reference_pretext.mask_tokens(*inputs))


def test_compiles_into_one_graph():
    def loss(ids, special, step):
        inputs, labels = mask_tokens(ids, special, MASK, VOCAB, seed=3, step=step)
        return inputs + 1, labels

    torch._dynamo.reset()
    ids, special = text()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in (torch.tensor(0), torch.tensor(7)):
        assert same(compiled(ids, special, step), loss(ids, special, step))


IDS, SPECIAL = text(2, 6)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"ids": IDS.float()}, TypeError, "ids: got torch.float32, must be an int64 or int32"),
        ({"ids": IDS.short()}, TypeError, "ids: got torch.int16"),
        ({"ids": [[1]]}, TypeError, "ids: got list"),
        ({"ids": IDS[0]}, ValueError, r"ids: got shape \(6,\), must be \[B, S\]"),
        ({"special_mask": IDS}, TypeError, "special_mask: got torch.int64, must be a bool"),
        ({"special_mask": [True]}, TypeError, "special_mask: got list"),
        (
            {"special_mask": SPECIAL[:, :5]},
            ValueError,
            r"special_mask: got shape \(2, 5\), .*, 6\)",
        ),
        ({"special_mask": SPECIAL.to("meta")}, ValueError, "special_mask: got device meta"),
        ({"mask_id": -1}, ValueError, "mask_id: got -1, must be in"),
        ({"mask_id": 1 << 63}, ValueError, "mask_id: got"),
        ({"ids": IDS.int(), "mask_id": 1 << 31}, ValueError, "mask_id: got 2147483648"),
        ({"mask_id": None}, TypeError, "mask_id: got None, must be an integer"),
        ({"vocab_size": 0}, ValueError, r"vocab_size: got 0, must be in \[1, 2147483648\]"),
        ({"vocab_size": (1 << 31) + 1}, ValueError, "vocab_size: got 2147483649"),
        ({"vocab_size": 10.0}, TypeError, "vocab_size: got 10.0"),
        ({"probability": 1.1}, ValueError, r"probability: got 1.1, must be in \[0, 1\]"),
        ({"probability": float("nan")}, ValueError, "probability: got nan"),
        ({"probability": "0.1"}, TypeError, "probability: got '0.1', must be a number"),
        ({"mask_share": -0.1}, ValueError, "mask_share: got -0.1"),
        ({"random_share": 2}, ValueError, r"random_share: got 2, must be in \[0, 1\]"),
        (
            {"random_share": 0.3},
            ValueError,
            "random_share: got 0.3, must be at most 1 - mask_share",
        ),
        ({"seed": -1}, ValueError, "seed: got -1"),
        ({"seed": None}, TypeError, "seed: got None"),
        ({"step": 1 << 32}, ValueError, "step: got"),
        ({"step": torch.zeros(1).long()}, ValueError, "step: got torch.int64"),
        ({"sample_ids": torch.zeros(3).long()}, ValueError, r"sample_ids: got shape \(3,\)"),
        ({"sample_ids": torch.zeros(2)}, TypeError, "sample_ids: got torch.float32"),
        ({"impl": "triton"}, ValueError, "impl: got 'triton'"),
        ({"impl": "cuda"}, RuntimeError, "impl='cuda'"),
    ],
)
def test_errors(keywords, error, message):
    settings = {
        "ids": IDS,
        "special_mask": SPECIAL,
        "mask_id": MASK,
        "vocab_size": VOCAB,
        "seed": 0,
    }
    with pytest.raises(error, match=message):
        mask_tokens(**settings | keywords)

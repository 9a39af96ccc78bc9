"""MAE's bookkeeping on the CPU, ViT-B/16 at 224 x 224, B = 64: fastssl against what people use.

The floor of a case is what torch takes, in the same run, to read its inputs and to write its
results once into memory fresh from the system.
"""

import mmap
import time

import pytest
import torch

from benchmarks import measure
from benchmarks import patch_peers as peers
from fastssl import masking
from fastssl.masking import MaskPlan

BATCH, SIDE, LENGTH, WIDTH, DECODER = 64, 224, 196, 768, 512


@pytest.fixture(scope="module", autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def noise():
    return torch.rand(BATCH, LENGTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def plan(noise):
    return MaskPlan.from_order(noise.argsort(1), peers.KEEP, (14, 14))


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=g)


@pytest.fixture(scope="module")
def normalized_images(images):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (peers.MEAN, peers.STD))
    return (images.float() / 255 - mean) / std


def fresh(like, dtype=None):
    """Memory as the system hands it out: no page of it was touched."""
    pages = mmap.mmap(-1, like.numel() * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    flat = torch.frombuffer(pages, dtype=torch.float32)
    return flat.view(dtype or like.dtype)[: like.numel()].view(like.shape)


def median_ms(call, rounds=9):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2] * 1e3


def run(benchmark, case, name, call, floor, expected=None, dtype=torch.float32, memory=False):
    """One row: parity with the eager results, then the time, beside the floor of this moment."""
    try:
        found = call()
    except measure.Missing as error:
        pytest.skip(str(error))
    parity = None if expected is None else measure.assert_parity(found, expected, dtype)
    del found
    measure.run(
        benchmark,
        call,
        seconds=2.0,
        op="patch",
        case=case,
        size=BATCH,
        impl=name,
        dtype=str(dtype).removeprefix("torch."),
        parity=parity,
        peak_mib=measure.peak_memory(call) if memory else None,
        floor_ms=None if floor is None else median_ms(floor),
    )


def compiled(function):
    return torch.compile(function, fullgraph=True)


LOSSES = {
    "eager: all patches": peers.loss_of_all,
    "eager: removed patches": peers.loss_of_removed,
    "compiled: all patches": compiled(peers.loss_of_all),
    "compiled: removed patches": compiled(peers.loss_of_removed),
}
LOSS_ROWS = [(name, torch.float32) for name in (*LOSSES, "fastssl", "fastssl, from uint8")]
LOSS_ROWS += [("eager: all patches", torch.bfloat16), ("fastssl", torch.bfloat16)]


@pytest.mark.parametrize(("name", "dtype"), LOSS_ROWS)
def test_loss(benchmark, name, dtype, images, normalized_images, plan):
    """Forward and backward of MAE's loss with norm_pix, prediction of all patches."""
    g = torch.Generator().manual_seed(1)
    pred = torch.randn(BATCH, LENGTH, WIDTH, generator=g).to(dtype).requires_grad_()
    mask, removed = plan.mask.float(), plan.ids_removed.contiguous()
    statistics = {"mean": peers.MEAN, "std": peers.STD}
    functions = {
        **{key: lambda f=f: f(normalized_images, pred, mask, removed) for key, f in LOSSES.items()},
        "fastssl": lambda: masking.masked_patch_loss(normalized_images, pred, plan, 16),
        "fastssl, from uint8": lambda: masking.masked_patch_loss(
            images, pred, plan, 16, **statistics
        ),
    }

    def step(function=functions[name]):
        loss = function()
        return loss.detach(), torch.autograd.grad(loss, pred)[0]

    expected = step(functions["eager: all patches"])
    pixels, guesses = normalized_images.view(-1), pred.detach().view(-1)
    # The types' own sum would widen: the gradient is written in that of the prediction.
    floor = (
        (lambda: torch.add(pixels, guesses, out=fresh(guesses)))
        if dtype == torch.float32
        else (lambda: (pixels.amax(), fresh(guesses).copy_(guesses)))
    )
    case = "loss, forward and backward"
    run(benchmark, case, name, step, floor, expected, dtype, memory=True)


@pytest.mark.parametrize("name", ["eager", "compiled", "fastssl"])
def test_loss_of_a_masked_only_head(benchmark, name, normalized_images, plan):
    g = torch.Generator().manual_seed(1)
    pred = torch.randn(BATCH, LENGTH - peers.KEEP, WIDTH, generator=g).requires_grad_()
    removed = plan.ids_removed.contiguous()

    def eager():
        return peers.loss_of_masked_only(normalized_images, pred, None, removed)

    function = {
        "eager": eager,
        "compiled": compiled(eager),
        "fastssl": lambda: masking.masked_patch_loss(normalized_images, pred, plan, 16),
    }[name]

    def step(function=function):
        loss = function()
        return loss.detach(), torch.autograd.grad(loss, pred)[0]

    pixels, guesses = normalized_images.view(-1), pred.detach().view(-1)
    pixels = pixels[: len(guesses)]

    def floor():
        return torch.add(pixels, guesses, out=fresh(guesses))

    run(benchmark, "loss of a masked-only head", name, step, floor, step(eager), memory=True)


MASK_AND_GATHER = {
    "published": peers.mask_and_gather_published,
    "expanded index": peers.mask_and_gather,
    "by rows": peers.mask_and_select,
}
DRAWN = [f"{how}: {name}" for how in ("eager", "compiled") for name in MASK_AND_GATHER]


@pytest.mark.parametrize("name", [*DRAWN, "lightly", "fastssl"])
def test_mask_and_gather(benchmark, name, noise):
    """Draw, mask, gather the visible tokens; forward."""
    x = torch.randn(BATCH, LENGTH, WIDTH)

    def ours(noise=None):
        plan = masking.random_masks(BATCH, (14, 14), 0.75, seed=0, noise=noise)
        return masking.gather_tokens(x, plan), plan.mask.float(), plan.ids_restore

    def drawn(function):
        return lambda: function(x, torch.rand(BATCH, LENGTH))

    expected = peers.mask_and_gather(x, noise)
    measure.assert_parity(ours(noise), expected, torch.float32)
    how, _, form = name.partition(": ")
    if form:
        function = MASK_AND_GATHER[form]
        measure.assert_parity(function(x, noise), expected, torch.float32)
        call = drawn(compiled(function) if how == "compiled" else function)
    else:
        call = drawn(peers.lightly_mask_and_gather) if name == "lightly" else ours
    visible = x[:, : peers.KEEP]
    run(benchmark, "mask and gather", name, call, lambda: fresh(visible).copy_(visible))


@pytest.mark.parametrize(
    "name",
    ["eager: published", "eager: gathered first", "eager: indexed"]
    + ["compiled: published", "compiled: indexed", "fastssl"],
)
def test_gather_patches(benchmark, name, images, plan):
    """Normalised visible patches from uint8; forward."""
    kept = plan.ids_keep.contiguous()
    fused, indexed = compiled(peers.levels_to_patches), compiled(peers.levels_to_patches_indexed)
    call = {
        "eager: published": lambda: [peers.levels_to_patches(images, kept)],
        "eager: gathered first": lambda: [peers.levels_to_patches_gathered_first(images, kept)],
        "eager: indexed": lambda: [peers.levels_to_patches_indexed(images, kept)],
        "compiled: published": lambda: [fused(images, kept)],
        "compiled: indexed": lambda: [indexed(images, kept)],
        "fastssl": lambda: [masking.gather_patches(images, plan, 16, peers.MEAN, peers.STD)],
    }[name]
    expected = [peers.levels_to_patches(images, kept)]
    some = images.view(-1)[: expected[0].numel()]

    def floor():
        return fresh(some, torch.float32).copy_(some)

    run(benchmark, "visible patches from uint8", name, call, floor, expected)


DECODER_INPUT = {
    "eager: published": peers.decoder_input,
    "eager: copied": peers.decoder_input_copied,
    "compiled: published": compiled(peers.decoder_input),
    "compiled: copied": compiled(peers.decoder_input_copied),
    "lightly": peers.lightly_decoder_input,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*DECODER_INPUT, "fastssl"])
def test_decoder_input(benchmark, name, dtype, plan):
    """Forward and backward, with fixed positions and a class token."""
    if dtype == torch.bfloat16 and not name.startswith(("eager", "fastssl")):
        pytest.skip("measured in float32")
    visible = torch.randn(BATCH, 1 + peers.KEEP, DECODER).to(dtype).requires_grad_()
    token = torch.randn(1, 1, DECODER).to(dtype).requires_grad_()
    pos = torch.randn(1, 1 + LENGTH, DECODER).to(dtype)
    upstream = torch.randn(BATCH, 1 + LENGTH, DECODER).to(dtype)
    ours = {"fastssl": lambda v, t, p, _: masking.restore_tokens(v, plan, t, p, prefix=1)}
    function = (DECODER_INPUT | ours)[name]

    def step(function=function):
        out = function(visible, token, pos, plan.ids_restore)
        return out.detach(), *torch.autograd.grad(out, (visible, token), upstream)

    def floor():
        return fresh(upstream).copy_(upstream), fresh(visible).copy_(visible.detach())

    expected = step(peers.decoder_input)
    case = "decoder input, forward and backward"
    run(benchmark, case, name, step, floor, expected, dtype, memory=True)


MASKS = {
    "block masks, 128 of 14 x 14": (
        lambda: peers.lightly_block_masks(128, 14),
        lambda: masking.block_masks(128, (14, 14), (0.1, 0.5), seed=0, probability=0.5, least=4),
    ),
    "block masks, 128 of 32 x 32": (
        lambda: peers.lightly_block_masks(128, 32),
        lambda: masking.block_masks(128, (32, 32), (0.1, 0.5), seed=0, probability=0.5, least=4),
    ),
    "I-JEPA masks, 128 of 16 x 16": (
        lambda: peers.lightly_multiblock_masks(128, 16)(),
        lambda: masking.multiblock_masks(128, (16, 16), seed=0),
    ),
}


@pytest.mark.parametrize("name", ["lightly", "fastssl"])
@pytest.mark.parametrize("case", MASKS)
def test_masks(benchmark, case, name):
    """Other distributions than ours in details, and the same work."""
    theirs, ours = MASKS[case]
    run(benchmark, case, name, ours if name == "fastssl" else theirs, None)


@pytest.mark.parametrize("name", ["Hugging Face", "fastssl"])
def test_mask_tokens(benchmark, name):
    ids = torch.randint(1000, 30000, (256, 512))
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, [0, -1]] = True
    if name == "fastssl":

        def call():
            return masking.mask_tokens(ids, special, 103, 30522, seed=0)
    else:
        try:
            call = peers.hugging_face_tokens(ids, special)
        except measure.Missing as error:
            pytest.skip(str(error))
    run(benchmark, "BERT tokens, 256 of 512", name, call, None)


def test_hamming_permutations(benchmark):
    call = lambda: masking.hamming_permutations(1000, 9)  # noqa: E731
    run(benchmark, "1,000 jigsaw permutations of 9", "fastssl", call, None)

"""Every operator as one table: what it is given and what it gives, on any device.

tests/cuda/test_any_op_cuda.py asks of all of them what holds on a card; tests/ops/test_any_op.py
asks on the CPU what can be asked there.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import fastssl
from fastssl import augment, masking

HALF = (torch.bfloat16, torch.float16)
FLOATING = (torch.float32, *HALF)


class Case(NamedTuple):
    """One operator, forward and backward where it has a gradient."""

    name: str
    #: (dtype, size, generator) to tensors by name; size multiplies what is a batch.
    make: Callable
    #: Tensors by name to a list of tensors.
    run: Callable
    dtypes: tuple = FLOATING
    #: Tensors whose memory format may be channels_last.
    images: tuple = ()

    def __str__(self):
        return self.name

    def inputs(self, device, dtype=None, size=1, seed=0) -> dict[str, Tensor]:
        """Its arguments: the same values on every device."""
        g = torch.Generator().manual_seed(seed)
        made = self.make(self.dtypes[0] if dtype is None else dtype, size, g)
        return {name: x.to(device) for name, x in made.items()}


def with_gradients(function, *names):
    """Results and the gradients of these inputs, for an upstream that is not 1."""

    def run(t):
        leaves = {name: t[name].detach().requires_grad_() for name in names}
        found = function({**t, **leaves})
        upstream = torch.full_like(found, 0.75)
        gradients = torch.autograd.grad(found, list(leaves.values()), upstream)
        return [found.detach(), *gradients]

    return run


def _views(depth):
    def make(dtype, size, g):
        x, noise = (torch.randn(150 * size, depth, generator=g) for _ in range(2))
        numbers = torch.tensor(0.2), torch.tensor(-5.0)
        labels = torch.arange(150 * size) % 30
        names = ("x", "y", "temperature", "bias", "labels")
        return dict(zip(names, (x.to(dtype), (x + noise).to(dtype), *numbers, labels), strict=True))

    return make


def _both(t):
    return torch.cat([t["x"], t["y"]]), t["labels"].repeat(2)


LOSSES = {
    "nt_xent": lambda t: fastssl.nt_xent(t["x"], t["y"], t["temperature"]),
    "info_nce": lambda t: fastssl.info_nce(t["x"], t["y"], temperature=t["temperature"]),
    "info_nce symmetric": lambda t: fastssl.info_nce(
        t["x"], t["y"], temperature=t["temperature"], symmetric=True
    ),
    "info_nce labels and margins": lambda t: fastssl.info_nce(
        t["x"], t["y"], temperature=t["temperature"], labels=t["labels"], symmetric=True,
        false_negative_margin=0.1,
    ),
    "queue": lambda t: fastssl.info_nce(
        t["x"], t["y"], t["y"].detach().flip(0).repeat(2, 1)[1:], temperature=t["temperature"]
    ),
    "clip": lambda t: fastssl.clip_loss(t["x"], t["y"], 1 / t["temperature"], normalize=True),
    "siglip": lambda t: fastssl.siglip_loss(
        t["x"], t["y"], 1 / t["temperature"], t["bias"], normalize=True
    ),
    "sup_con": lambda t: fastssl.sup_con(*_both(t), t["temperature"]),
    "sup_con in": lambda t: fastssl.sup_con(
        t["x"], t["labels"], t["temperature"], form="in", references=t["y"],
        reference_labels=t["labels"],
    ),
    "pair_nt_xent": lambda t: fastssl.pair_nt_xent(*_both(t), t["temperature"]),
    "dcl": lambda t: fastssl.dcl(t["x"], t["y"], t["temperature"]),
    "dclw": lambda t: fastssl.dclw(t["x"], t["y"], t["temperature"]),
}  # fmt: skip


def _losses():
    for name, loss in LOSSES.items():
        learned = ("bias",) if name == "siglip" else ()
        run = with_gradients(loss, "x", "y", "temperature", *learned)
        yield Case(name, _views(128), run)
    # Beyond a depth of 256 the gradient goes through memory.
    for name in ("nt_xent", "clip", "sup_con"):
        run = with_gradients(LOSSES[name], "x", "y")
        yield Case(f"{name}, deep", _views(400), run, (torch.bfloat16,))


def _images(channels=3, height=48, width=64):
    def make(dtype, size, g):
        x = torch.rand(6 * size, channels, height, width, generator=g)
        return {"images": (x * 255).byte() if dtype == torch.uint8 else x.to(dtype)}

    return make


def _augmented(semantics, side):
    def run(t):
        aug = augment.BYOL(side, semantics=semantics, dtype=torch.bfloat16)
        return aug(t["images"], step=3)

    return run


def _augments():
    dtypes = (torch.uint8, torch.float32)
    for semantics in ("tv-uint8", "tv-float", "pil"):
        run = _augmented(semantics, 33)
        yield Case(f"augment {semantics}", _images(), run, dtypes, images=("images",))
    # Too large for shared memory.
    run = _augmented("tv-float", 256)
    yield Case("augment, large", _images(3, 200, 300), run, dtypes, images=("images",))


def _plan(t, keep=0.75):
    return masking.random_masks(len(t["ids"]), (6, 8), keep, seed=1, sample_ids=t["ids"])


def _patches(dtype, size, g):
    made = _images()(dtype, size, g)
    n = 6 * size
    pred = torch.float32 if dtype == torch.uint8 else dtype
    return {
        **made, "ids": torch.randint(0, 2**62, (n,), generator=g),
        "pred": torch.randn(n, 48, 192, generator=g).to(pred),
    }  # fmt: skip


def _tokens(dtype, size, g):
    n = 6 * size
    return {
        "ids": torch.randint(0, 2**62, (n,), generator=g),
        "x": torch.randn(n, 49, 64, generator=g).to(dtype),
        "visible": torch.randn(n, 13, 64, generator=g).to(dtype),
        "token": torch.randn(64, generator=g), "pos": torch.randn(49, 64, generator=g),
    }  # fmt: skip


def _words(dtype, size, g):
    n = 6 * size
    ids = torch.randint(0, 1000, (n, 37), generator=g).to(dtype)
    return {"ids": torch.randint(0, 2**62, (n,), generator=g), "words": ids}


def _ids(dtype, size, g):
    return {"ids": torch.randint(0, 2**62, (9 * size,), generator=g)}


def _parts(plan):
    return [plan.ids_shuffle, plan.ids_restore, plan.mask]


FAMILIES = {
    "random": lambda **on: _parts(masking.random_masks(9, (14, 14), 0.75, **on)),
    "block": lambda **on: _parts(masking.block_masks(9, (14, 14), (0.1, 0.5), roll=True, **on)),
    "inverse block": lambda **on: _parts(masking.inverse_block_masks(9, (14, 11), **on)),
    "long": lambda **on: _parts(masking.random_masks(9, 20000, 0.75, **on)),
    "multiblock": lambda **on: (
        lambda m: [*_parts(m.context), m.targets]
    )(masking.multiblock_masks(9, (14, 14), **on)),
}  # fmt: skip


def _loss(**options):
    def loss(t):
        return masking.masked_patch_loss(t["images"], t["pred"], _plan(t), 8, **options)

    return with_gradients(loss, "pred")


def _jigsaw(t):
    permutations = torch.eye(9, dtype=torch.int64, device=t["images"].device).cumsum(1).cumsum(1)
    permutations = permutations.argsort(1)
    return masking.jigsaw(t["images"], permutations=permutations, tile=11, seed=2, step=1)


def _patch_ops():
    images = {"dtypes": (torch.uint8, torch.float32, *HALF), "images": ("images",)}
    yield Case(
        "gather_patches", _patches, lambda t: [masking.gather_patches(t["images"], _plan(t), 8)],
        **images,
    )  # fmt: skip
    for name, options in (("", {}), (" cosine", {"kind": "cosine"}), (" plain", {"kind": "l1"})):
        options = {**options, "norm_pix": "plain" not in name}
        yield Case(f"masked_patch_loss{name}", _patches, _loss(**options), **images)
    yield Case(
        "gather_tokens", _tokens,
        with_gradients(
            lambda t: masking.gather_tokens(t["x"], _plan(t), t["pos"], prefix=1), "x", "pos"
        ),
    )  # fmt: skip
    yield Case(
        "restore_tokens", _tokens,
        with_gradients(
            lambda t: masking.restore_tokens(
                t["visible"], _plan(t), t["token"], t["pos"], prefix=1
            ),
            "visible", "token",
        ),
    )  # fmt: skip
    words = (torch.int64, torch.int32)
    yield Case(
        "mask_tokens", _words,
        lambda t: list(
            masking.mask_tokens(t["words"], None, 7, 1000, 0.5, seed=3, sample_ids=t["ids"])
        ),
        words,
    )  # fmt: skip
    tiles = {"dtypes": (torch.uint8, torch.float32, *HALF), "images": ("images",)}
    yield Case("jigsaw", _images(), lambda t: list(_jigsaw(t)), **tiles)
    yield Case(
        "relative_patches", _images(),
        lambda t: list(masking.relative_patches(t["images"], 11, 3, 2, seed=4)), **tiles,
    )  # fmt: skip
    for name, family in FAMILIES.items():

        def run(t, family=family):
            batch, ids = len(t["ids"]) // 9, t["ids"]
            found = [family(seed=2**40 + 3, sample_ids=part) for part in ids.chunk(batch)]
            return [torch.cat(parts) for parts in zip(*found, strict=True)]

        yield Case(f"plan {name}", _ids, run, (torch.int64,))


CASES = [*_losses(), *_augments(), *_patch_ops()]
RUNS = [(case, dtype) for case in CASES for dtype in case.dtypes]


def run_id(value):
    """As a test's name has it."""
    return str(value).removeprefix("torch.")


def same(found, expected) -> bool:
    """To the bit, NaN included."""
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9))
        if a.is_floating_point()
        else torch.equal(a, b)
        for a, b in zip(found, expected, strict=True)
    )


def close(found, expected):
    """Where sums have another order: a few units in the last place of the largest value."""
    for a, b in zip(found, expected, strict=True):
        if not a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=0, atol=0)
            continue
        units = 2 if a.dtype in HALF else 64
        atol = units * torch.finfo(a.dtype).eps * max(b.abs().max().item(), 1e-30)
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def shifted(x: Tensor, by: int = 1) -> Tensor:
    """The same values and strides, `by` elements into a storage."""
    base = torch.empty(x.numel() + by, dtype=x.dtype, device=x.device)
    return base[by:].as_strided(x.shape, x.stride(), by).copy_(x)


def layouts(case: Case, tensors: dict) -> list[dict]:
    """The same inputs off the grid of 16 bytes, and images in channels_last, on and off it."""
    found = [{k: shifted(x) if x.dim() else x for k, x in tensors.items()}]
    if case.images:
        last = {
            k: x.contiguous(memory_format=torch.channels_last) if k in case.images else x
            for k, x in tensors.items()
        }
        found += [last, {k: shifted(x) if k in case.images else x for k, x in last.items()}]
    return found


def unchanged(tensors: dict, kept: dict) -> bool:
    """Whether inputs are what they were."""
    return all(same([tensors[k].cpu()], [kept[k]]) for k in tensors)

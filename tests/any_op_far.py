"""Operators on tensors of more than 2^31 elements: their last rows, and what these must be.

Each takes a device and how many samples (or columns); few serve a test on the CPU of the same
lines.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

import fastssl
from fastssl import augment, masking


class Far(NamedTuple):
    """`run(device, count)` gives (found, expected), tensors that are close."""

    name: str
    run: Callable
    count: int  # so that more than 2^31 elements come of it
    gigabytes: float  # of memory, about
    few: int = 3

    def __str__(self):
        return self.name


def _random(device, *shape, dtype=torch.bfloat16):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def _nt_xent(device, count):
    """Rows that repeat a short row: cosines are those of the short ones."""
    rows, depth = 512, 64
    short = [_random(device, rows, depth) for _ in range(2)]
    wide = [z.repeat(1, count).requires_grad_() for z in short]
    short = [z.requires_grad_() for z in short]
    found, expected = (fastssl.nt_xent(*z, 0.5) for z in (wide, short))
    gradients = [torch.autograd.grad(loss, z) for loss, z in ((found, wide), (expected, short))]
    last = [g[-9:, -depth:].float() * count for g in gradients[0]]
    return [found.detach(), *last], [expected.detach(), *(g[-9:].float() for g in gradients[1])]


def _queue(device, count):
    """A queue of which the last rows alone are near the queries."""
    depth = 1024
    query = _random(device, 64, depth).requires_grad_()
    queue = torch.zeros(count, depth, dtype=torch.bfloat16, device=device)
    queue[-100:] = _random(device, 100, depth) + query.detach()[:1]
    loss = fastssl.info_nce(query, query.detach(), queue, temperature=0.05, reduction="none")
    z, y = (torch.nn.functional.normalize(x.double()) for x in (query.detach(), queue[-100:]))
    logits = torch.cat([torch.full((64, 1), 20.0).to(z), 20 * z @ y.T], 1)
    # Rows of zeros have the cosine 0.
    others = torch.full((64, 1), torch.tensor(float(max(count - 100, 1))).log().item()).to(z)
    expected = torch.cat([logits, others], 1).logsumexp(1) - 20.0
    gradient = torch.autograd.grad(loss.float().sum(), query)[0]
    return [loss.detach().float(), gradient.isfinite().all()], [expected.float(), True]


def _many_keys(device, count):
    """Beyond a depth of 256 the backward pass has a grid of so many columns."""
    query = _random(device, 128, 320).requires_grad_()
    keys = _random(device, 1, 320).expand(count, -1)
    few, many = (
        torch.autograd.grad(fastssl.info_nce(query, query.detach(), k).float() * n, query)[0]
        for k, n in ((keys[:1], 0.0), (keys, 1.0))
    )
    return [many.isfinite().all(), few.any()], [True, False]


def _augmented(device, count):
    images = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8).to(device)
    images = images.repeat(count, 1, 1, 1)
    images[-1] = images[-1].flip(-1)
    ids = torch.arange(count, device=device)
    aug = augment.SimCLR(128, dtype=torch.uint8)
    found = aug(images, sample_ids=ids, step=0)
    expected = aug(images[-1:].clone(), sample_ids=ids[-1:], step=0)
    return [v[-1:] for v in found], expected


def _plan(device, count, length, keep=0.0):
    ids = torch.arange(count, device=device) + 2**40
    return [
        masking.random_masks(len(i), length, keep, seed=1, sample_ids=i) for i in (ids, ids[-1:])
    ]


def _gathered(device, count):
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8).to(device)
    plans, images = _plan(device, count, (14, 14)), (image.expand(count, -1, -1, -1), image)
    found, expected = (
        masking.gather_patches(x, p, 16, dtype=torch.bfloat16)
        for x, p in zip(images, plans, strict=True)
    )
    return [found[-1:]], [expected]


def _lost(device, count):
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8).to(device)
    one = _random(device, 1, 196, 768)
    gradients = []
    for n, plan in zip((count, 1), _plan(device, count, (14, 14), 0.75), strict=True):
        pred = one.expand(n, -1, -1).detach().requires_grad_()
        loss = masking.masked_patch_loss(image.expand(n, -1, -1, -1), pred, plan, 16)
        gradients += torch.autograd.grad(loss, pred, torch.full_like(loss, n))
    return [gradients[0][-1:]], [gradients[1]]


def _tokens(device, count):
    one, token = _random(device, 1, 256, 1024), _random(device, 1024, dtype=torch.float32)
    found = []
    for n, plan in zip((count, 1), _plan(device, count, 256), strict=True):
        x = one.expand(n, -1, -1)
        gathered = masking.gather_tokens(x, plan)
        found.append([gathered[-1:].clone(), masking.restore_tokens(gathered, plan, token)[-1:]])
    return found


def _summed(device, count):
    """The mask token's gradient: a sum over rows of 1."""
    plan, _ = _plan(device, count, 256, 0.5)
    token = torch.zeros(1024, device=device, requires_grad=True)
    visible = _random(device, 1, 128, 1024).expand(count, -1, -1)
    restored = masking.restore_tokens(visible, plan, token)
    one = torch.ones(1, 1, 1, dtype=restored.dtype, device=device).expand_as(restored)
    (gradient,) = torch.autograd.grad(restored, token, one)
    return [gradient], [torch.full_like(gradient, count * 128)]


def _jigsaw(device, count):
    image = torch.randint(0, 256, (1, 3, 228, 228), dtype=torch.uint8).to(device)
    permutations = torch.eye(9, dtype=torch.int64).cumsum(1).argsort(1).to(device)
    ids = torch.arange(count, device=device)
    found, expected = (
        masking.jigsaw(
            image.expand(len(i), -1, -1, -1), permutations=permutations, seed=1, sample_ids=i
        )[0][-1:]
        for i in (ids, ids[-1:])
    )
    return [found], [expected]


def _words(device, count):
    ids = torch.arange(count, device=device)
    words = torch.zeros(count, 2**15, dtype=torch.int32, device=device)
    words[-1] = torch.arange(2**15)
    found, expected = (
        masking.mask_tokens(w, None, 7, 1000, seed=1, sample_ids=i)
        for w, i in ((words, ids), (words[-1:], ids[-1:]))
    )
    return [x[-1:] for x in found], expected


def _plans(device, count):
    found, expected = _plan(device, count, (14, 14), 0.75)
    names = ("ids_shuffle", "ids_restore", "mask")
    return [getattr(found, n)[-1:] for n in names], [getattr(expected, n) for n in names]


FAR = [
    Far("nt_xent", _nt_xent, 2**31 // (1024 * 64) + 8, 30),
    Far("queue", _queue, 2**21 + 8, 12, few=300),
    Far("queue of many columns", _many_keys, 65536 * 128 + 8, 30),
    Far("augment", _augmented, 2**31 // (3 * 128**2) + 8, 8),
    Far("gather_patches", _gathered, 2**31 // (196 * 768) + 8, 6),
    Far("masked_patch_loss", _lost, 2**31 // (196 * 768) + 8, 12),
    Far("tokens", _tokens, 2**31 // (256 * 1024) + 8, 12),
    Far("sum of removed rows", _summed, 2**31 // (256 * 1024) + 8, 8),
    Far("jigsaw", _jigsaw, 2**31 // (9 * 3 * 76**2) + 8, 4),
    Far("mask_tokens", _words, 2**16 + 8, 28),
    Far("plans", _plans, 2**31 // 196 + 8, 40),
]

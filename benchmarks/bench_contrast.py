"""The contrastive family, forward and backward, on the CPU: fastssl against plain PyTorch.

The baselines are the best eager form of each loss (one matrix of logits, nothing compacted or
copied) and the same under torch.compile. Libraries people use are measured by compat_report.
"""

import functools

import pytest
import torch
import torch.nn.functional as F

import fastssl
from benchmarks import measure
from fastssl._library import _C

TAU, SCALE, BIAS, CLASSES = 0.1, 10.0, -10.0, 100


def itself(s):
    return s.masked_fill(torch.eye(len(s), dtype=torch.bool), -torch.inf)


def info_nce(x, y, _):
    s = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / TAU
    target = torch.arange(len(s))
    return (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2


def clip(x, y, _):
    s = SCALE * x @ y.T
    target = torch.arange(len(s))
    return (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2


def siglip(x, y, _):
    s = SCALE * x @ y.T + BIAS
    signs = 2 * torch.eye(len(s)) - 1
    return -F.logsigmoid(signs * s).sum() / len(s)


def queue(x, y, bank):
    x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    s = torch.cat([(x * y).sum(1, keepdim=True), x @ bank.T], 1) / TAU
    return F.cross_entropy(s, torch.zeros(len(s), dtype=torch.int64))


def sup_con(x, _, labels):
    z = F.normalize(x, dim=1)
    s = itself(z @ z.T / TAU)
    same = (labels[:, None] == labels).fill_diagonal_(False)
    log_p = s - s.logsumexp(1, keepdim=True)
    return -(log_p.masked_fill(~same, 0).sum(1) / same.sum(1)).mean()


def pairs(x, _, labels):
    z = F.normalize(x, dim=1)
    s = z @ z.T / TAU
    same = labels[:, None] == labels
    n = s.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    positive = same.clone().fill_diagonal_(False)
    return F.softplus(n - s).masked_fill(~positive, 0).sum() / positive.sum()


def dcl(x, y, _):
    z = F.normalize(torch.cat([x, y]), dim=1)
    n = len(x)
    s = itself(z @ z.T / TAU)
    positive = torch.cat([s.diagonal(n), s.diagonal(-n)])
    index = torch.arange(2 * n)
    s = s.index_put((index, index.roll(n)), s.new_tensor(-torch.inf))
    return (s.logsumexp(1) - positive).mean()


OURS = {
    "info_nce": lambda x, y, _: fastssl.info_nce(x, y, temperature=TAU, symmetric=True),
    "clip": lambda x, y, _: fastssl.clip_loss(x, y, SCALE),
    "siglip": lambda x, y, _: fastssl.siglip_loss(x, y, SCALE, BIAS),
    "queue": lambda x, y, bank: fastssl.info_nce(x, y, bank, temperature=TAU),
    "sup_con": lambda x, _, labels: fastssl.sup_con(x, labels, TAU),
    "pairs": lambda x, _, labels: fastssl.pair_nt_xent(x, labels, TAU),
    "dcl": lambda x, y, _: fastssl.dcl(x, y, TAU),
}
EAGER = {
    "info_nce": info_nce, "clip": clip, "siglip": siglip, "queue": queue, "sup_con": sup_con,
    "pairs": pairs, "dcl": dcl,
}  # fmt: skip
#: (loss, rows of x, D, rows of a queue)
CASES = [
    ("info_nce", 1024, 128, 0),
    ("clip", 1024, 512, 0),
    ("clip", 4096, 512, 0),
    ("siglip", 1024, 512, 0),
    ("siglip", 4096, 512, 0),
    ("queue", 256, 128, 65536),
    ("sup_con", 512, 128, 0),
    ("sup_con", 4096, 128, 0),
    ("pairs", 512, 128, 0),
    ("pairs", 2048, 128, 0),
    ("dcl", 1024, 128, 0),
]
#: Floating-point operations that a loss and its gradient need, in units of rows x columns x D:
#: all products, twice over; half of the first two where the matrix is symmetric; those with a queue
#: only for the queries.
WORK = {"info_nce": 8, "clip": 8, "siglip": 8, "queue": 4, "sup_con": 4, "pairs": 4, "dcl": 4}


def inputs(loss, rows, depth, bank):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(rows, depth, generator=g)
    y = x + torch.randn(rows, depth, generator=g)
    if loss in ("clip", "siglip"):
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    third = torch.randint(CLASSES, (rows,), generator=g)
    if bank:
        third = F.normalize(torch.randn(bank, depth, generator=g), dim=1)
    key_is_constant = loss == "queue"
    return x.requires_grad_(), y.requires_grad_(not key_is_constant), third


def step(function, x, y, third):
    x.grad = y.grad = None
    loss = function(x, y, third)
    loss.backward()
    return [loss.detach(), x.grad, *([] if y.grad is None else [y.grad])]


@functools.cache
def truth(case):
    x, y, third = inputs(*case)
    wide = [z.detach().double().requires_grad_(z.requires_grad) for z in (x, y)]
    third = third.double() if third.is_floating_point() else third
    return step(EAGER[case[0]], *wide, third)


@pytest.mark.parametrize("impl", ["eager", "compiled", "fastssl"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
def test_contrast(benchmark, case, impl):
    loss, rows, depth, bank = case
    torch._dynamo.reset()
    function = OURS[loss] if impl == "fastssl" else EAGER[loss]
    function = torch.compile(function) if impl == "compiled" else function
    tensors = inputs(*case)
    parity = measure.assert_parity(step(function, *tensors), truth(case), torch.float32)
    memory = measure.peak_memory(lambda: step(function, *tensors))
    columns = bank or (2 * rows if loss == "dcl" else rows)
    anchors = 2 * rows if loss == "dcl" else rows
    work = WORK[loss] * anchors * columns * depth
    measure.run(
        benchmark,
        lambda: step(function, *tensors),
        op="contrast",
        case=f"{loss}, {anchors:,} x {columns:,}, D = {depth}",
        size=CASES.index(case),
        impl=impl,
        dtype="float32",
        depth=depth,
        parity=parity,
        peak_mib=memory,
        floor_ms=work / _C.fma_rate(0.2) * 1e3 if _C else None,
    )

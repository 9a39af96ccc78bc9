"""The contrastive family on a GPU: losses beside PyTorch's ways to them.

A time is reported after parity in the same run: with float64 up to EXACT_ROWS rows; beyond, with
float64 at that many rows and with float32 in chunks at the size itself. The baselines are one
function of a chunk of rows: all rows at once ("eager", "compiled"), or some at a time, computed
again in the backward pass ("chunked", "chunked-compiled").
"""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastssl
from benchmarks.gpu_measure import OURS, Clock, Step, Target, assert_close, compiler

FAMILY = "contrast"
#: What a time depends on, ours and a peer's, beside what measures it.
SOURCES = ("fastssl/ops/contrast", "fastssl/ops/nt_xent")
PEER_SOURCES = ()
CASES = ("info_nce", "siglip", "clip", "sup_con", "queue")
PEERS = ("chunked-compiled", "compiled", "chunked", "eager")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
#: Most important first.
ORDER = [
    (case, rows, depth, "bfloat16")
    for rows, depth in (
        (32768, 512), (8192, 512), (65536, 128), (32768, 128), (8192, 128), (32768, 768),
        (8192, 768), (65536, 512), (65536, 768), (16384, 512), (16384, 128), (16384, 768),
    )
    for case in CASES
]  # fmt: skip
#: Where peers are measured, too.
MAIN = [*ORDER[:5], ("siglip", 65536, 768, "bfloat16")]
TARGETS = {("siglip", 65536, 768, "bfloat16"): Target(48.8)}
#: The largest difference forgiven, relative to the largest value: loss and gradients.
ALLOWED = {"bfloat16": 1e-2, "float32": 2e-5}
EXACT_ROWS = 8192
#: Logits of a chunk, and queries that a queue of `rows` is met by.
ENTRIES, QUERIES = 2**28, 4096
TEMPERATURE, SCALE, BIAS, CLASSES = 0.1, 10.0, -10.0, 1000
#: Products of all pairs that a loss and its gradients consist of; what is computed again does not
#: count.
PRODUCTS = {"info_nce": 3, "siglip": 3, "clip": 3, "sup_con": 3, "queue": 2}


def inputs(case: str, rows: int, depth: int, dtype: str, device) -> list[Tensor]:
    """What has a gradient: rows that resemble each other in pairs, then numbers."""
    g = torch.Generator(device).manual_seed(rows + depth)
    count = min(rows, QUERIES) if case == "queue" else rows
    z = torch.randn(count, depth, generator=g, device=device)
    noise = torch.randn(count, depth, generator=g, device=device)
    found = [x.to(DTYPES[dtype]) for x in (z, z + 0.5 * noise)]
    found = found[:1] if case == "sup_con" else found
    numbers = {"clip": [SCALE], "siglip": [SCALE, BIAS]}.get(case, [])
    found += [torch.tensor(x, device=device) for x in numbers]
    return [x.requires_grad_() for x in found]


def constants(case: str, rows: int, depth: int, dtype: str, device) -> Tensor | None:
    """What has none: labels or a queue."""
    if case == "sup_con":
        return torch.arange(rows, device=device) % CLASSES
    if case != "queue":
        return None
    g = torch.Generator(device).manual_seed(1)
    return torch.randn(rows, depth, generator=g, device=device).to(DTYPES[dtype])


def ours(case: str, leaves: list[Tensor], constant: Tensor | None, impl: str) -> Tensor:
    x, *rest = leaves
    if case == "info_nce":
        return fastssl.info_nce(x, *rest, temperature=TEMPERATURE, symmetric=True, impl=impl)
    if case == "clip":
        return fastssl.clip_loss(x, *rest, normalize=True, impl=impl)
    if case == "siglip":
        return fastssl.siglip_loss(x, *rest, normalize=True, impl=impl)
    if case == "sup_con":
        return fastssl.sup_con(x, constant, TEMPERATURE, impl=impl)
    return fastssl.info_nce(x, *rest, constant, temperature=TEMPERATURE, impl=impl)


def chunk(case: str, x: Tensor, y: Tensor, own: Tensor, scale, bias, labels) -> tuple[Tensor, ...]:
    """The sum of some rows' losses, and for losses of both sides the columns' log-sum-exps."""
    s = (x @ y.T).to(torch.promote_types(x.dtype, torch.float32)) * scale
    if case == "siglip":
        s = s + bias
        return F.softplus(s).sum() - s.gather(1, own[:, None]).sum(), s.sum() * 0
    if case == "sup_con":
        itself = own[:, None] == torch.arange(len(y), device=y.device)
        same = (labels[own][:, None] == labels) & ~itself
        mean = torch.where(same, s, 0).sum(1) / same.sum(1)
        return (s.masked_fill(itself, -torch.inf).logsumexp(1) - mean).sum(), s.sum() * 0
    positive = s.gather(1, own[:, None]).sum()
    return s.logsumexp(1).sum() - 2 * positive, s.logsumexp(0)


def queue(x: Tensor, y: Tensor, negatives: Tensor, scale) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    positive = (x.to(wide) * y.to(wide)).sum(1) * scale
    return F.softplus(((x @ negatives.T).to(wide) * scale).logsumexp(1) - positive).mean()


def plain(leaves: list[Tensor], constant: Tensor | None, case: str, rows: int, form) -> Tensor:
    """A loss by PyTorch, `rows` rows at a time; `form` has its two functions."""
    wide = torch.promote_types(leaves[0].dtype, torch.float32)
    unit = [F.normalize(z.to(wide)).to(z.dtype) for z in leaves if z.dim() == 2]
    numbers = [z for z in leaves if z.dim() == 0]
    x, y = unit[0], unit[-1]
    scale, bias = numbers[0] if numbers else 1 / TEMPERATURE, numbers[-1] if numbers else 0.0
    if case == "queue":
        negatives = F.normalize(constant.to(wide)).to(constant.dtype)
        return form[1](x, y, negatives, scale)
    own = torch.arange(len(x), device=x.device)
    total, columns = 0.0, []
    for first in range(0, len(x), rows):
        at = slice(first, first + rows)
        arguments = case, x[at], y, own[at], scale, bias, constant
        if rows < len(x):
            found = checkpoint(form[0], *arguments, use_reentrant=False)
        else:
            found = form[0](*arguments)
        total = total + found[0]
        columns.append(found[1])
    if case in ("info_nce", "clip"):
        # Every positive was taken off twice in the rows' sum.
        total = (total + torch.stack(columns).logsumexp(0).sum()) / 2
    return total / len(x)


@functools.cache
def compiled_form():
    return compiler()(chunk, dynamic=True), compiler()(queue, dynamic=True)


def call_of(name: str, case: str, leaves: list[Tensor], constant: Tensor | None) -> Callable:
    """Loss and gradients by one implementation."""
    columns = len(leaves[0]) if case != "queue" else len(constant)
    rows = len(leaves[0])
    if name.startswith("chunked"):
        rows = max(128, ENTRIES // columns)
    form = compiled_form() if name.endswith("compiled") else (chunk, queue)
    if name == OURS:
        # On a GPU nothing but the GPU's shall be measured.
        impl = "triton" if leaves[0].is_cuda else "auto"
        loss = functools.partial(ours, case, leaves, constant, impl)
    else:
        loss = functools.partial(plain, leaves, constant, case, rows, form)

    def run():
        value = loss()
        return value.detach(), *torch.autograd.grad(value, leaves)

    return run


def parity(case: str, leaves: list[Tensor], constant: Tensor | None, found, dtype: str) -> dict:
    """Compares with float64, or with float32 in chunks where that does not fit.

    Raises:
        AssertionError: the results differ by more than rounding explains.
    """
    count = len(leaves[0]) if constant is None else len(constant)
    wide = torch.float64 if count <= EXACT_ROWS else torch.float32
    leaves = [z.detach().to(wide).requires_grad_() for z in leaves]
    if constant is not None and constant.is_floating_point():
        constant = constant.to(wide)
    truth = call_of("chunked", case, leaves, constant)()
    worst = assert_close(found, truth, ALLOWED[dtype])
    return {"difference": worst, "against": str(wide).removeprefix("torch."), "rows": count}


def flop(case: str, rows: int, depth: int) -> int:
    return PRODUCTS[case] * 2 * rows * (min(rows, QUERIES) if case == "queue" else rows) * depth


def prepared(name: str, case: str, rows: int, depth: int, dtype: str, device):
    """(leaves, constant, call) of a size."""
    leaves = inputs(case, rows, depth, dtype, device)
    constant = constants(case, rows, depth, dtype, device)
    return leaves, constant, call_of(name, case, leaves, constant)


def measure(
    name: str, case: str, rows: int, depth: int, dtype: str, clock: Clock, result: dict
) -> None:
    """One implementation at one size: parity of ours, then time and peak memory."""
    if name == OURS and rows > EXACT_ROWS:
        leaves, constant, call = prepared(name, case, EXACT_ROWS, depth, dtype, clock.device)
        result["exact_parity"] = parity(case, leaves, constant, call(), dtype)
    leaves, constant, call = prepared(name, case, rows, depth, dtype, clock.device)
    outcome = call()
    if name == OURS:
        result["parity"] = parity(case, leaves, constant, outcome, dtype)
    del outcome
    result["peak_mib"] = clock.peak_mib(call)
    median, count = clock.milliseconds(call)
    result["ms"], result["calls"] = round(median, 4), count
    result["tflops"] = round(flop(case, rows, depth) / median / 1e9, 1)
    if name == OURS:
        with torch.no_grad():
            forward = functools.partial(
                ours, case, leaves, constant, "triton" if clock.gpu else "auto"
            )
            result["forward_ms"] = round(clock.milliseconds(forward, budget=0.3)[0], 4)
        result["graph_ms"] = round(clock.replayed(call), 4)


def steps(order=ORDER, main=MAIN) -> Iterator[Step]:
    """All that there is to measure, most important first."""
    for case, rows, depth, dtype in order:
        for name in (OURS, *PEERS) if (case, rows, depth, dtype) in main else (OURS,):
            yield Step(
                FAMILY,
                case,
                {"rows": rows, "depth": depth, "dtype": dtype},
                name,
                functools.partial(measure, name, case, rows, depth, dtype),
                # At 20 TFLOP/s, beside a compilation.
                15 * flop(case, rows, depth) / 2e13 + (20 if "compiled" in name else 5),
                TARGETS.get((case, rows, depth, dtype)) if name == OURS else None,
            )

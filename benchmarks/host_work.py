"""What a call costs the host of a GPU: launches, operators and waits, counted without one.

    python -m benchmarks.host_work [--json benchmarks/results/host_work.json]

Small batches (2N = 512 to 8,192) are bounded by launches, not by what kernels do. Calls run on
tensors without memory (torch's device "meta") that are taken for CUDA tensors: each ATen operator
that the host dispatches is seen, the launchers of the Triton kernels run with launches that are
counted and do nothing, and what reads a tensor's values fails. For operators in CUDA C++ a table
says how often they launch; tests/test_host_work.py compares it, and the other counts, with what a
profiler sees on a card.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastssl
from fastssl import _dispatch, augment, masking
from fastssl.ops.patch import reference_pretext

#: Rows of both views, 2N.
SIZES = (512, 2048, 8192)

#: Multiprocessors of an H100, among which Triton's launchers split columns.
PROCESSORS = 132


class Native(NamedTuple):
    """What an operator in CUDA C++ does: csrc/augment/augment_cuda.cpp, csrc/patch/patch_cuda.cpp.

    Without what only unusual arguments need: more than 16 views, more than 4 channels, views or
    plans too large for shared memory.
    """

    launches: int
    allocations: int


NATIVE = {
    "augment_draw": Native(1, 4),
    "augment_apply": Native(1, 0),
    "patch_random": Native(1, 3),
    "patch_blocks": Native(1, 4),
    "patch_inverse_block": Native(1, 3),
    "patch_multiblock": Native(1, 5),
    "patch_mask_tokens": Native(1, 2),
    "patch_tiles": Native(1, 1),
    "patch_gather": Native(1, 1),
    "patch_gather_tokens": Native(1, 1),
    "patch_restore_tokens": Native(1, 1),
    "patch_sum_removed": Native(2, 2),
    "patch_loss": Native(2, 3),
    "patch_scale_": Native(1, 0),
}

#: Operators whose launcher is Python: their Triton kernels.
LAUNCHED = ("nt_xent", "contrast")
#: Operators without a kernel for GPUs: their definitions, in PyTorch, run there.
DEFINED = {"patch_words": reference_pretext.words}

#: ATen operators of more than one launch.
LAUNCHES = {"select_backward": 2}

#: Operators whose result, or its size, the host has to wait for.
WAITING = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "item", "masked_select",
    "nonzero", "repeat_interleave", "unique_consecutive", "unique_dim",
}  # fmt: skip


@dataclass
class Work:
    """What the host did.

    Attributes:
        kernels: launches of fastssl's own kernels, by name.
        small: launches of ATen's operators, at least, by name.
        allocations: of memory on the device, but for results of ATen's operators.
        views: ATen operators that only make a tensor.
        waits: reads of values, and copies between host and device.
    """

    kernels: Counter = field(default_factory=Counter)
    small: Counter = field(default_factory=Counter)
    allocations: int = 0
    views: int = 0
    waits: Counter = field(default_factory=Counter)

    @property
    def launches(self) -> int:
        """Of own kernels and, at least, of ATen's."""
        return self.kernels.total() + self.small.total()

    def as_json(self) -> dict:
        """Totals, and the names behind them."""
        return {
            "launches": self.launches,
            "own": self.kernels.total(),
            "aten": self.small.total(),
            "allocations": self.allocations,
            "views": self.views,
            "waits": self.waits.total(),
            "kernels": dict(sorted(self.kernels.items())),
            "small": dict(sorted(self.small.items())),
        }


class Trace(TorchDispatchMode):
    """Counts into `work`; inside it Triton's launches do nothing."""

    def __init__(self, work: Work):
        super().__init__()
        self.work = work

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        space, name = function._schema.name.split("::")
        if space == "fastssl":
            return self._own(function, name, args, kwargs)
        # Writes to its arguments, and is not there for "meta".
        result = None if name == "_fused_adamw_" else function(*args, **kwargs)
        if space == "aten":
            self._count(function, name, (args, kwargs), result)
        return result

    def _own(self, function, name, args, kwargs):
        if python := DEFINED.get(name) or launcher(name):
            with self:
                return python(*args, **kwargs)
        native = NATIVE[name]
        self.work.kernels[name] += native.launches
        self.work.allocations += native.allocations
        return function(*args, **kwargs)

    def _count(self, function, name, given, result) -> None:
        work = self.work
        tensors = [x for x in tree_leaves((given, result)) if isinstance(x, Tensor)]
        where = {x.device.type for x in tensors}
        if "meta" not in where:
            return  # an optimizer counts its steps on the host
        # A 0-d tensor of the host is passed by value, unless it is copied.
        copied = name in ("_to_copy", "copy_")
        crossing = any(x.device.type == "cpu" and (copied or x.dim()) for x in tensors)
        if name in WAITING or crossing:
            work.waits[name] += 1
        elif name.startswith(("empty", "new_empty")) or not any(x.numel() for x in tensors):
            work.allocations += 1
        elif name == "_unsafe_view" or _is_view(function):
            work.views += 1
        else:
            work.small[name] += LAUNCHES.get(name, 1)


def launcher(name: str) -> Callable | None:
    """What launches an operator's Triton kernels, where it has some."""
    family = next((family for family in LAUNCHED if name.startswith(f"{family}_")), None)
    module = family and import_module(f"fastssl.ops.{family}.triton")
    return getattr(module, name.removeprefix(f"{family}_"), None)


def _is_view(function) -> bool:
    infos = [value.alias_info for value in function._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


@contextmanager
def pretended_gpu() -> Iterator[Trace]:
    """Takes tensors of the device "meta" for those of an H100; its launches are counted."""
    from triton.runtime.jit import JITFunction

    from fastssl.ops.contrast import triton as contrast
    from fastssl.ops.nt_xent import triton as nt_xent

    trace = Trace(Work())

    def run(self, *args, **kwargs):
        trace.work.kernels[self.fn.__name__] += 1

    families = list(_dispatch._operators.values())
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(nt_xent, "processors_of", lambda z: PROCESSORS),
        mock.patch.object(contrast, "processors_of", lambda z: PROCESSORS),
    ):
        for family in families:
            family["meta"] = family["cuda"]
        try:
            yield trace
        finally:
            for family in families:
                del family["meta"]


@dataclass(frozen=True)
class Call:
    """A public function and its arguments; `leaves` get gradients, if there are any."""

    function: Callable[[], Tensor]
    leaves: tuple[Tensor, ...] = ()


def calls(rows: int, device: str = "meta") -> dict[str, Call]:
    """Calls at 2N = rows, D = 128 in bfloat16; images of 224, patches of 16, as MAE has them."""
    n = rows // 2
    new = partial(torch.empty, device=device)

    def embeddings(*shape: int) -> Tensor:
        made = new(*shape, 128, dtype=torch.bfloat16)
        return (made if device == "meta" else made.normal_()).requires_grad_()

    def number(value: float) -> Tensor:
        return torch.full((), value, device=device).requires_grad_()

    images = new(n, 3, 224, 224, dtype=torch.uint8)
    ids, step = torch.arange(n, device=device), torch.zeros((), dtype=torch.int64, device=device)
    views = augment.SimCLR(224, seed=1).to(device)
    drawn = {"seed": 1, "step": step, "sample_ids": ids}
    plan = masking.random_masks(n, (14, 14), 0.75, **drawn)
    visible, token, pos = new(n, 49, 512), new(512), new(196, 512)
    pred = new(n, 196, 768).requires_grad_()
    for tensor in (visible, token, pos):
        tensor.requires_grad_()
    z0, z1, z, labels = embeddings(n), embeddings(n), embeddings(rows), ids.repeat(2)
    scale, bias = number(10.0), number(-10.0)
    return {
        "nt_xent": Call(partial(fastssl.nt_xent, z0, z1, 0.1), (z0, z1)),
        "info_nce": Call(partial(fastssl.info_nce, z0, z1), (z0, z1)),
        "clip_loss": Call(partial(fastssl.clip_loss, z0, z1, scale), (z0, z1, scale)),
        "siglip_loss": Call(
            partial(fastssl.siglip_loss, z0, z1, scale, bias), (z0, z1, scale, bias)
        ),
        "sup_con": Call(partial(fastssl.sup_con, z, labels), (z,)),
        "SimCLR views": Call(partial(views, images, sample_ids=ids, step=step)),
        "random_masks": Call(partial(masking.random_masks, n, (14, 14), 0.75, **drawn)),
        "gather_patches": Call(partial(masking.gather_patches, images, plan, 16)),
        "restore_tokens": Call(
            partial(masking.restore_tokens, visible, plan, token, pos), (visible, token, pos)
        ),
        "masked_patch_loss": Call(
            partial(masking.masked_patch_loss, images, pred, plan, 16), (pred,)
        ),
    }


def traced(rows: int) -> dict[str, dict[str, Work]]:
    """What "forward" and, where there is one, "backward" of each call cost the host."""
    found = {}
    with pretended_gpu() as trace:
        for name, call in calls(rows).items():
            found[name] = {"forward": Work()}
            trace.work = found[name]["forward"]
            with trace:
                result = call.function()
            if call.leaves:
                found[name]["backward"] = trace.work = Work()
                upstream = torch.empty_like(result)
                with trace:
                    torch.autograd.grad(result, call.leaves, upstream)
    return found


class Recorded:
    """Stands for CUDA graphs: what is recorded is not done again, replaying is one launch."""

    def __init__(self, trace: Trace):
        self.trace = trace

    def warm_up(self, function):
        """Runs a function."""
        return function()

    def capture(self, function):
        """Runs it once, unseen."""
        seen, self.trace.work = self.trace.work, Work()
        result = function()
        self.trace.work = seen

        def replay():
            self.trace.work.kernels["graph"] += 1
            return result

        return replay


def step(encoder: str, rows: int = SIZES[0]) -> dict[str, Work]:
    """What a whole step of SimCLR costs the host, "eager" and "replayed".

    With batches in memory, as the trainer's loop takes it: images of 32, AdamW, two scalars that
    are kept.
    """
    from fastssl.train import networks, replay

    n = rows // 2
    found = {"eager": Work(), "replayed": Work()}
    with pretended_gpu() as trace:
        network = networks.Small(3, 64)
        if encoder == "resnet18":
            network = networks.ResNet(networks.BasicBlock, (2, 2, 2, 2), 3, 64, "cifar")
        model = torch.nn.Sequential(network, networks.mlp(network.features, 256, 128)).to("meta")
        kinds = [[p for p in model.parameters() if (p.ndim < 2) == narrow] for narrow in (0, 1)]

        def adamw(**options):
            groups = [{"params": kinds[0]}, {"params": kinds[1], "weight_decay": 0.0}]
            return torch.optim.AdamW(groups, 1e-3, **options)

        images = torch.empty(50_000, 3, 32, 32, dtype=torch.uint8, device="meta")
        ids = torch.empty(n, dtype=torch.int64, device="meta")
        views = augment.SimCLR(32, seed=1).to("meta")

        def whole(inputs, sample_ids, number):
            both = views(inputs, sample_ids=sample_ids, step=number)
            optimizer.zero_grad()
            z0, z1 = map(model, both)
            agreement = F.cosine_similarity(z0.detach(), z1.detach()).mean()
            loss = fastssl.nt_xent(z0, z1, 0.5)
            loss.backward()
            optimizer.step()
            return {"loss": loss, "agreement": agreement}

        def steps(take, work):
            for number in range(replay.WARM_UP + 2):
                trace.work = Work()
                with trace:
                    logs = take(images[ids], ids, number)
                    torch.stack([value.detach().float() for value in logs.values()])
            work.__dict__.update(trace.work.__dict__)

        optimizer = adamw(foreach=True)
        steps(whole, found["eager"])
        optimizer = adamw(fused=True)
        with mock.patch("torch.optim.adam._device_dtype_check_for_fused", lambda parameter: None):
            steps(replay.Replayed(whole, optimizer, Recorded(trace)), found["replayed"])
    return found


def report() -> dict:
    """All counts, as values for JSON: of calls by size, and of whole steps."""
    return {
        "torch": torch.__version__.partition("+")[0],
        "calls": {str(rows): as_json(traced(rows)) for rows in SIZES},
        "steps": as_json({encoder: step(encoder) for encoder in ("small", "resnet18")}),
    }


def as_json(found: dict[str, dict[str, Work]]) -> dict:
    """The same as values for JSON."""
    return {name: {key: work.as_json() for key, work in of.items()} for name, of in found.items()}


def table(counts: dict) -> list[str]:
    """A line of Markdown for each call, sizes that agree together, and for each step."""
    lines = [
        "| call | 2N | pass | launches | of these own | ATen | allocations | views | waits |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    columns = ("launches", "own", "aten", "allocations", "views", "waits")
    steps, counts = counts["steps"], counts["calls"]
    for name in next(iter(counts.values())):
        for direction in next(iter(counts.values()))[name]:
            rows: dict[tuple, list[str]] = {}
            for size, of in counts.items():
                cells = tuple(of[name][direction][column] for column in columns)
                rows.setdefault(cells, []).append(f"{int(size):,}")
            for cells, same in rows.items():
                named = "all" if len(same) == len(counts) else ", ".join(same)
                lines.append(f"| {name} | {named} | {direction} | {' | '.join(map(str, cells))} |")
    for name, of in steps.items():
        for how, work in of.items():
            cells = " | ".join(str(work[column]) for column in columns)
            lines.append(f"| SimCLR step, {name} | {SIZES[0]} | {how} | {cells} |")
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="where to write all counts, by operator")
    arguments = parser.parse_args()
    counts = report()
    print("\n".join(table(counts)))
    if arguments.json:
        arguments.json.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()

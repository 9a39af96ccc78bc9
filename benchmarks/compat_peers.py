"""What drop-ins are compared with: losses of other libraries, and definitions; same inputs."""

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastssl
from benchmarks.measure import Missing


class Pair(NamedTuple):
    """A loss of a library, ours, and what both are called with."""

    theirs: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    leaves: list[Tensor]


class Case(NamedTuple):
    """A line of the table."""

    library: str  # a distribution's name, or whose definition
    loss: str
    size: str
    rows: int
    make: Callable[[], Pair]

    @property
    def name(self) -> str:
        """What `--only` looks at, and rows of results are found by."""
        return f"{self.library} {self.loss}, {self.size}"

    @property
    def peer(self) -> str:
        """The library with its version."""
        try:
            return f"{self.library} {importlib.metadata.version(self.library)}"
        except importlib.metadata.PackageNotFoundError:
            return self.library


def module(name: str):
    """A module of a library; `Missing` where it does not import."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # an installation may also be broken
        raise Missing(f"{name} does not import: {str(error).splitlines()[0]}") from error


@functools.cache
def open_clip():
    """open_clip's file of losses, without the rest of it, which needs torchvision."""
    found = importlib.util.find_spec("open_clip")
    if found is None:
        raise Missing("open_clip is not installed")
    path = Path(found.origin).with_name("loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_losses", path)
    loss = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loss)
    return loss


def leaves(*shapes: tuple[int, ...], unit: bool = False, near: float = 0.0) -> list[Tensor]:
    """Random matrices; each like the first one where `near` is above 0."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=generator) for shape in shapes]
    found = [found[0], *(z + near * found[0] for z in found[1:])]
    return [(F.normalize(z, dim=1) if unit else z).requires_grad_() for z in found]


def lightly_loss(name: str, rows: int, width: int = 128, **options) -> Pair:
    theirs, ours = (module(m) for m in ("lightly.loss", "fastssl.compat.lightly"))
    pair = [getattr(owner, name)(**options) for owner in (theirs, ours)]
    if "memory_bank_size" in options:
        pair[1].memory_bank.bank = pair[0].memory_bank.bank.clone()
    return Pair(*pair, leaves((rows, width), (rows, width), near=0.3))


def metric_learning_loss(name: str, rows: int, classes: int) -> Pair:
    module("pytorch_metric_learning")
    theirs = module("pytorch_metric_learning.losses")
    ours = module("fastssl.compat.pytorch_metric_learning")
    labels = torch.arange(rows) % classes
    pair = [getattr(owner, name)() for owner in (theirs, ours)]
    calls = [functools.partial(_labelled, loss, labels) for loss in pair]
    return Pair(*calls, leaves((rows, 128)))


def _labelled(loss, labels, z):
    return loss(z, labels)


def open_clip_loss(name: str, rows: int, width: int = 512) -> Pair:
    ours = module("fastssl.compat.open_clip")
    pair = [getattr(owner, name)() for owner in (open_clip(), ours)]
    features = leaves((rows, width), (rows, width), unit=True, near=0.3)
    numbers = [torch.tensor(x, requires_grad=True) for x in (10.0, -10.0)]
    return Pair(*pair, features + numbers[: 1 if name == "ClipLoss" else 2])


def ranking_loss(rows: int, columns: int) -> Pair:
    module("sentence_transformers")
    ours = module("fastssl.compat.sentence_transformers")
    name = "MultipleNegativesRankingLoss"
    pair = [getattr(owner, name)(nn.Identity()) for owner in (ours.theirs, ours)]
    calls = [functools.partial(_embedded, loss) for loss in pair]
    return Pair(*calls, leaves(*[(rows, 768)] * columns, near=0.3))


def _embedded(loss, *embeddings):
    return loss.compute_loss_from_embeddings(list(embeddings), None)


def supervised(rows: int, classes: int = 10, temperature: float = 0.1) -> Pair:
    """Khosla et al. 2020, equation 2, as eager PyTorch does it best: filled in place."""
    labels = torch.arange(rows) % classes

    def eager(z):
        z = F.normalize(z, dim=1)
        s = z @ z.T / temperature
        positive = labels[:, None] == labels
        positive.fill_diagonal_(False)
        own = s.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp(min=1)
        return (s.fill_diagonal_(float("-inf")).logsumexp(1) - own).mean()

    def ours(z):
        return fastssl.sup_con(z, labels, temperature)

    return Pair(eager, ours, leaves((rows, 128)))


def supervised_as_published(rows: int, classes: int = 10, temperature: float = 0.1) -> Pair:
    """The same as SupContrast has it: logits less their maximum, exponentials, masks of numbers."""
    labels = torch.arange(rows) % classes

    def published(z):
        z = F.normalize(z, dim=1)
        s = z @ z.T / temperature
        s = s - s.max(1, keepdim=True).values.detach()
        others = 1 - torch.eye(rows)
        positive = (labels[:, None] == labels).float() * others
        log_p = s - (s.exp() * others).sum(1, keepdim=True).log()
        return -((positive * log_p).sum(1) / positive.sum(1)).mean()

    return Pair(published, supervised(rows, classes, temperature).ours, leaves((rows, 128)))


def simclr(rows: int, temperature: float = 0.1) -> Pair:
    """solo-learn's SimCLR: exponentials as they are, sums of positives and negatives by masks."""
    indexes = torch.arange(rows // 2).repeat(2)

    def definition(z):
        z = F.normalize(z, dim=-1)
        e = torch.exp(torch.einsum("if,jf->ij", z, z) / temperature)
        positive = indexes[:, None] == indexes
        negative = ~positive
        positive = positive.fill_diagonal_(False)
        own, other = (e * positive).sum(1), (e * negative).sum(1)
        return -torch.log(own / (own + other)).mean()

    ours = module("fastssl.compat.solo_learn").simclr_loss_func
    return Pair(definition, lambda z: ours(z, indexes, temperature), leaves((rows, 128)))


def moco_v2(rows: int, size: int, temperature: float = 0.1) -> Pair:
    """solo-learn's MoCo v2+: the key's logit beside those of the queue [D, K]."""
    queue = F.normalize(torch.randn(128, size, generator=torch.Generator().manual_seed(1)), dim=0)

    def definition(query, key):
        own = (query * key).sum(1, keepdim=True)
        logits = torch.cat([own, query @ queue], 1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))

    ours = module("fastssl.compat.solo_learn").mocov2plus_loss_func
    pair = leaves((rows, 128), (rows, 128), unit=True, near=0.3)
    return Pair(definition, lambda q, k: ours(q, k, queue, temperature), pair)


def moco_v3(rows: int, temperature: float = 0.2) -> Pair:
    """solo-learn's MoCo v3: queries among all keys, times two temperatures."""

    def definition(query, key):
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
        logits = query @ key.T / temperature
        return F.cross_entropy(logits, torch.arange(len(query))) * (2 * temperature)

    ours = module("fastssl.compat.solo_learn").mocov3_loss_func
    pair = leaves((rows, 256), (rows, 256), near=0.3)
    return Pair(definition, lambda q, k: ours(q, k, temperature), pair)


def cases() -> list[Case]:
    """All lines, in the table's order; of one library and loss, the smallest first."""
    part, bank = functools.partial, (65536, 128)
    found = [
        Case("lightly", "NTXentLoss", f"M = {m}", m, part(lightly_loss, "NTXentLoss", m // 2))
        for m in (64, 512, 2048, 4096, 8192)
    ]
    found += [
        Case("lightly", "NTXentLoss, bank of 65,536", f"batch {n}", n,
             part(lightly_loss, "NTXentLoss", n, memory_bank_size=bank))
        for n in (64, 256)
    ]  # fmt: skip
    found += [
        Case("lightly", name, f"M = {m}", m, part(lightly_loss, name, m // 2))
        for name in ("DCLLoss", "DCLWLoss")
        for m in (64, 2048)
    ]
    library, loss = "pytorch-metric-learning", metric_learning_loss
    found += [
        Case(library, "NTXentLoss", f"M = {m}", m, part(loss, "NTXentLoss", m, m // 2))
        for m in (64, 128, 256, 512)
    ]
    found += [
        Case(library, "SupConLoss", f"M = {m}", m, part(loss, "SupConLoss", m, 10))
        for m in (64, 512)
    ]
    found += [
        Case("open_clip_torch", name, f"B = {n}", n, part(open_clip_loss, name, n))
        for name in ("ClipLoss", "SigLipLoss")
        for n in (64, 1024, 4096)
    ]
    found += [
        Case("sentence-transformers", f"MultipleNegativesRankingLoss{more}", f"B = {n}", n,
             part(ranking_loss, n, columns))
        for columns, more in ((2, ""), (3, ", a hard negative"))
        for n in (64, 1024)
    ]  # fmt: skip
    found += [
        Case("equation 2, eager", "sup_con", f"M = {m}", m, part(supervised, m))
        for m in (64, 512, 4096)
    ]
    found += [
        Case(
            "SupContrast's formulation", "sup_con", f"M = {m}", m, part(supervised_as_published, m)
        )
        for m in (64, 4096)
    ]
    found += [
        Case("solo-learn's definition", "simclr_loss_func", f"M = {m}", m, part(simclr, m))
        for m in (64, 512, 4096)
    ]
    found += [
        Case("solo-learn's definition", "mocov2plus_loss_func, queue of 65,536", f"batch {n}", n,
             part(moco_v2, n, 65536))
        for n in (256,)
    ]  # fmt: skip
    found += [
        Case("solo-learn's definition", "mocov3_loss_func", f"B = {n}", n, part(moco_v3, n))
        for n in (64, 256, 1024)
    ]
    return found

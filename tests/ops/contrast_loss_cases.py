"""Cases of the contrastive family's losses, and the measure of exactness."""

import functools
from typing import NamedTuple

import contrast_loss_definitions as definitions
import torch

import fastssl


class Case(NamedTuple):
    """A loss with one set of its options."""

    name: str
    negatives: str = ""  # "shared", a "queue" that needs no gradient, "own"
    labels: int = 0  # classes
    references: bool = False
    weights: bool = False
    options: tuple = ()

    def __str__(self):
        on = [f"{f}={v}" if v not in (True, 0) else f for f, v in self.options]
        more = [self.negatives, self.labels and f"labels{self.labels}"]
        more += [self.references and "references", self.weights and "weights"]
        return "-".join([self.name, *filter(None, more), *on])

    @property
    def plain(self):
        return getattr(fastssl, self.name)

    @property
    def measures(self):
        return self.name not in ("siglip_loss", "pair_nt_xent")


MARGINS = (("false_negative_margin", 0.05), ("hard_negative_margin", 0.4))
CASES = [
    Case("nt_xent"),
    Case("nt_xent", labels=4),
    Case("nt_xent", options=MARGINS[:1]),
    Case("nt_xent", labels=4, options=MARGINS),
    Case("info_nce"),
    Case("info_nce", labels=4, options=(("symmetric", True),)),
    Case("info_nce", options=(("symmetric", True), *MARGINS)),
    Case("info_nce", "queue"),
    Case("info_nce", "shared"),
    Case("info_nce", "queue", options=MARGINS),
    Case("info_nce", "own"),
    Case("info_nce", "own", options=MARGINS),
    Case("clip_loss", options=(("normalize", True),)),
    Case("siglip_loss", options=(("normalize", True),)),
    Case("sup_con", labels=4),
    Case("sup_con", labels=4, options=(("form", "in"),)),
    Case("sup_con", labels=4, references=True),
    Case("sup_con", labels=4, references=True, options=(("form", "in"),)),
    Case("pair_nt_xent", labels=4),
    Case("pair_nt_xent", labels=4, references=True),
    Case("dcl"),
    Case("dcl", weights=True),
    Case("dclw", options=(("sigma", 0.3),)),
]
MEASURED = [case for case in CASES if case.measures]
#: One of each function.
LOSSES = [next(c for c in CASES if c.name == name) for name in dict.fromkeys(c.name for c in CASES)]


def inputs_of(case, n, d, dtype=torch.float32, seed=0, spread=1.0):
    """Tensors by name, and the rest of the keywords but for numbers."""
    g = torch.Generator().manual_seed(seed)

    def rows(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    x, options = rows(n, d), dict(case.options)
    y = x + spread * rows(n, d)
    if case.name in ("sup_con", "pair_nt_xent"):
        tensors = {"features": x}
        options["labels"] = torch.randint(case.labels, (n,), generator=g)
        if case.references:
            tensors["references"] = rows(n + 3, d)
            options["reference_labels"] = torch.randint(case.labels, (n + 3,), generator=g)
    else:
        names = {"info_nce": ("query", "key"), "clip_loss": ("image_features", "text_features")}
        names["siglip_loss"] = names["clip_loss"]
        tensors = dict(zip(names.get(case.name, ("z0", "z1")), (x, y), strict=True))
        if case.labels:
            options["labels"] = torch.randint(case.labels, (n,), generator=g)
        if case.weights:
            options["weights"] = 2 * torch.rand(2 * n, generator=g)
        if case.negatives:
            shape = (n, 7, d) if case.negatives == "own" else (2 * n + 1, d)
            tensors["negatives"] = rows(*shape)
    return {name: z.to(dtype) for name, z in tensors.items()}, options


def numbers_of(case, temperature):
    """The numbers that may be learned, as float64 tensors."""
    if case.name in ("clip_loss", "siglip_loss"):
        found = {"logit_scale": 1 / temperature, "logit_bias": -0.7}
    else:
        found = {"temperature": temperature}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def leaves_of(case, tensors, numbers):
    every = {name: z.detach().clone().requires_grad_() for name, z in (tensors | numbers).items()}
    if case.negatives == "queue":
        every["negatives"].requires_grad_(False)
    return every


def upstream_of(loss):
    """Multiples of 1/8, exact in every dtype; the same for the same shape."""
    if loss.dim() == 0:
        return torch.ones_like(loss)
    g = torch.Generator().manual_seed(loss.numel())
    return (torch.randint(-16, 17, loss.shape, generator=g).double() / 8).to(loss.dtype)


def results(function, case, tensors, numbers, options):
    """Loss and gradients by name, and the metrics."""
    leaves = leaves_of(case, tensors, numbers)
    loss = function(**leaves, **options)
    loss, metrics = loss if isinstance(loss, tuple) else (loss, {})
    loss = loss.to(next(iter(tensors.values())).dtype)
    wanted = {name: z for name, z in leaves.items() if z.requires_grad}
    grads = torch.autograd.grad(loss, list(wanted.values()), upstream_of(loss), allow_unused=True)
    found = {
        name: torch.zeros_like(z) if g is None else g
        for (name, z), g in zip(wanted.items(), grads, strict=True)
    }
    return {"loss": loss.detach(), **found}, metrics


def expected_of(case, tensors, numbers, options):
    """The truth, and what plain PyTorch in the compute type makes of it."""
    naive = getattr(definitions, case.name)
    exact = {name: z.double() for name, z in tensors.items()}
    return (
        results(naive, case, exact, numbers, options),
        results(naive, case, tensors, numbers, options),
    )


@functools.cache
def prepared(case, n, d, dtype, temperature, spread, extra):
    tensors, options = inputs_of(case, n, d, dtype, spread=spread)
    options |= dict(extra)
    numbers = numbers_of(case, temperature)
    return tensors, numbers, options, expected_of(case, tensors, numbers, options)


def assert_exact(case, impl, n, d, dtype=torch.float32, temperature=0.2, spread=1.0, **extra):
    extra = tuple(sorted(extra.items()))
    compare(case, impl, *prepared(case, n, d, dtype, temperature, spread, extra))


def compare(case, impl, tensors, numbers, options, expected, alike=False):
    """|ours - truth| <= 2 |eager - truth| + floor, for the loss, every gradient and every metric.

    The floor: a few units in the last place of the largest value, or of the terms of a gradient
    that cancel; for exponentials, what one such unit in a similarity makes of them. Rows that are
    `alike` are rounded alike, and errors of their sums grow with their number, not its root.
    """
    (truth, measures), (eager, eager_measures) = expected
    ours, our_measures = results(case.plain, case, tensors, numbers, {**options, "impl": impl})
    first = next(iter(tensors.values()))
    normalize = options.get("normalize", case.name not in ("clip_loss", "siglip_loss"))
    norms = torch.cat([z.double().norm(dim=-1).flatten() for z in tensors.values()])
    similarity = 1.0 if normalize else norms.square().max().item()
    sharp = abs(numbers.get("logit_scale", 1 / numbers.get("temperature", 1.0)).item())
    reduction = options.get("reduction", "mean")
    weight = 1 / len(first) if reduction == "mean" else 2 if reduction == "none" else 1
    count = len(first) ** (1 if alike else 0.5)
    least = dict.fromkeys(
        tensors, weight * sharp / norms.min().item() if normalize else weight * sharp
    )
    least |= {
        "loss": 1.0,
        "temperature": weight * count * similarity * sharp**2,
        "logit_scale": weight * count * similarity,
        "logit_bias": weight * count,
    }
    compute = torch.finfo(torch.promote_types(first.dtype, torch.float32)).eps
    floor = compute * (2 + similarity * sharp)
    output = torch.finfo(first.dtype).eps
    for name, true in truth.items():
        assert ours[name].dtype == (first.dtype if name not in numbers else torch.float64), name
        assert ours[name].shape == true.shape, name
        relative = floor if name in numbers else max(floor, output)
        close(name, ours[name], true, eager[name], floor * least[name], relative)
    assert set(our_measures) == set(measures)
    size = 1 + similarity
    for name, value in measures.items():
        assert our_measures[name].dtype == torch.float32 and our_measures[name].dim() == 0
        least = 4 * 2**-23 * size * (1 + (sharp if name == "entropy" else 0))
        close(name, our_measures[name], torch.tensor(value).double(),
              torch.tensor(eager_measures[name]), least, 2**-22)  # fmt: skip


def close(name, ours, true, eager, least, relative):
    ours, true, eager = ours.double(), true.double(), eager.double()
    odd = ~true.isfinite()
    assert torch.equal(ours[odd].nan_to_num(12345.0), true[odd].nan_to_num(12345.0)), name
    ours, true, eager = ours[~odd], true[~odd], eager[~odd]
    if not len(true):
        return
    allowed = 2 * (eager - true).abs().max().item()
    allowed += max(least, relative * true.abs().max().item())
    error = (ours - true).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"

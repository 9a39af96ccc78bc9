"""The contrastive family's losses as papers write them, row by row, and the measure of exactness.

Each function has the signature of fastssl's, and no other code in common with it.
"""

import functools
import math
from typing import NamedTuple

import torch

import fastssl


class Row(NamedTuple):
    """One row among its candidates."""

    cosine: torch.Tensor
    s: torch.Tensor
    positive: list
    negative: list


def wide(*tensors):
    return [z if z.dtype == torch.float64 else z.float() for z in tensors]


def unit(z, normalize):
    return z / z.norm(dim=-1, keepdim=True).clamp(min=1e-12) if normalize else z


def row(x, candidates, scale, positive, negative, fewest=None, hardest=None, bias=None):
    """Negatives beyond the margins about the positive are left out."""
    cosine = candidates @ x
    if fewest is not None or hardest is not None:
        values, own = cosine.tolist(), cosine[positive[0]].item()
        edges = [own + fewest if fewest is not None else math.inf]
        edges.append(own - hardest if hardest is not None else -math.inf)
        assert all(abs(values[j] - e) > 1e-5 for j in negative for e in edges), "at the edge"
        negative = [j for j in negative if edges[1] <= values[j] <= edges[0]]
    s = cosine * scale.to(cosine.dtype)
    return Row(cosine, s if bias is None else s + bias.to(s.dtype), positive, negative)


def lse(s, index):
    return s[index].logsumexp(0) if index else s.new_tensor(-math.inf)


def soft(x):
    """log(1 + exp(x))."""
    return torch.logaddexp(x, torch.zeros_like(x))


def reduce(losses, reduction, count=None):
    if reduction == "none":
        return losses
    return losses.sum() / (1 if reduction == "sum" else len(losses) if count is None else count)


def measured(rows):
    """The metrics, pair by pair."""
    total = {"top1": [], "top5": [], "positive": [], "negative": [], "close": [], "entropy": []}
    for cosine, s, positive, negative in rows:
        if positive:
            above = sum(v > s[positive].max() for v in s[negative])
            total["top1"].append(float(above < 1))
            total["top5"].append(float(above < 5))
        total["positive"] += cosine[positive].tolist()
        total["negative"] += cosine[negative].tolist()
        total["close"] += (-2 * (2 - 2 * cosine[negative])).exp().tolist()
        share = s[positive + negative].softmax(0)
        total["entropy"].append(torch.special.entr(share).sum().item())
    mean = {name: sum(v) / len(v) if v else math.nan for name, v in total.items()}
    return {
        "top1": mean["top1"],
        "top5": mean["top5"],
        "positive_similarity": mean["positive"],
        "negative_similarity": mean["negative"],
        "alignment": 2 - 2 * mean["positive"],
        "uniformity": math.log(mean["close"]) if total["close"] else math.nan,
        "entropy": mean["entropy"],
    }


def view_rows(z0, z1, scale, normalize, labels=None, fewest=None, hardest=None):
    z = torch.cat([unit(x, normalize) for x in wide(z0, z1)])
    n, rows = len(z0), []
    labels = list(range(n)) * 2 if labels is None else labels.tolist() * 2
    for i in range(2 * n):
        p = (i + n) % (2 * n)
        negative = [j for j in range(2 * n) if j not in (i, p) and labels[j] != labels[i]]
        rows.append(row(z[i], z, scale, [p], negative, fewest, hardest))
    return rows


def cross_rows(x, y, scale, labels=None, fewest=None, hardest=None, bias=None):
    labels = list(range(len(x))) if labels is None else labels.tolist()
    rows = []
    for i in range(len(x)):
        negative = [j for j in range(len(y)) if labels[j] != labels[i]]
        rows.append(row(x[i], y, scale, [i], negative, fewest, hardest, bias))
    return rows


def cross_entropy(rows):
    return torch.stack([lse(r.s, r.positive + r.negative) - r.s[r.positive[0]] for r in rows])


def finished(loss, rows, return_metrics):
    return (loss, measured(rows)) if return_metrics else loss


def nt_xent(
    z0, z1, temperature, *, normalize=True, labels=None, false_negative_margin=None,
    hard_negative_margin=None, reduction="mean", return_metrics=False,
):  # fmt: skip
    margins = false_negative_margin, hard_negative_margin
    rows = view_rows(z0, z1, 1 / temperature, normalize, labels, *margins)
    return finished(reduce(cross_entropy(rows), reduction), rows, return_metrics)


def dcl(
    z0, z1, temperature, *, weights=None, normalize=True, reduction="mean", return_metrics=False
):
    rows = view_rows(z0, z1, 1 / temperature, normalize)
    weights = [1.0] * len(rows) if weights is None else weights.tolist()
    losses = [lse(r.s, r.negative) - w * r.s[r.positive[0]] for r, w in zip(rows, weights)]  # noqa: B905
    return finished(reduce(torch.stack(losses), reduction), rows, return_metrics)


def dclw(z0, z1, temperature, sigma=0.5, *, normalize=True, **options):
    x, y = (unit(z.detach(), normalize) for z in wide(z0, z1))
    odds = torch.stack([(a @ b / sigma) for a, b in zip(x, y, strict=True)])
    weights = 2 - len(x) * odds.softmax(0)
    options |= {"weights": weights.repeat(2), "normalize": normalize}
    return dcl(z0, z1, temperature, **options)


def info_nce(
    query, key, negatives=None, *, temperature, symmetric=False, normalize=True, labels=None,
    false_negative_margin=None, hard_negative_margin=None, reduction="mean", return_metrics=False,
):  # fmt: skip
    scale, margins = 1 / temperature, (false_negative_margin, hard_negative_margin)
    x, y = (unit(z, normalize) for z in wide(query, key))
    if negatives is None:
        sides = [cross_rows(x, y, scale, labels, *margins)]
        if symmetric:
            sides.append(cross_rows(y, x, scale, labels, *margins))
    else:
        (others,) = wide(negatives)
        others = unit(others, normalize)
        sides = [[]]
        for i in range(len(x)):
            mine = others[i] if others.dim() == 3 else others
            index = list(range(1, len(mine) + 1))
            candidates = torch.cat([y[i : i + 1], mine])
            sides[0].append(row(x[i], candidates, scale, [0], index, *margins))
    losses = sum(cross_entropy(side) for side in sides) / len(sides)
    return finished(reduce(losses, reduction), sum(sides, []), return_metrics)


def clip_loss(
    image_features, text_features, logit_scale, logit_bias=None, *, normalize=False,
    reduction="mean", return_metrics=False,
):  # fmt: skip
    x, y = (unit(z, normalize) for z in wide(image_features, text_features))
    sides = [cross_rows(a, b, logit_scale, bias=logit_bias) for a, b in ((x, y), (y, x))]
    losses = sum(cross_entropy(side) for side in sides) / 2
    return finished(reduce(losses, reduction), sum(sides, []), return_metrics)


def siglip_loss(
    image_features, text_features, logit_scale, logit_bias, *, normalize=False, reduction="mean"
):
    x, y = (unit(z, normalize) for z in wide(image_features, text_features))
    rows = cross_rows(x, y, logit_scale, bias=logit_bias)
    losses = [soft(-r.s[r.positive[0]]) + soft(r.s[r.negative]).sum() for r in rows]
    return reduce(torch.stack(losses), reduction)


def label_rows(features, labels, scale, normalize, references, reference_labels):
    (x,) = wide(features)
    x = unit(x, normalize)
    y, theirs = x, labels.tolist()
    if references is not None:
        (y,) = wide(references)
        y, theirs = unit(y, normalize), reference_labels.tolist()
    rows = []
    for i, mine in enumerate(labels.tolist()):
        others = [j for j in range(len(y)) if references is not None or j != i]
        same = [j for j in others if theirs[j] == mine]
        rows.append(row(x[i], y, scale, same, [j for j in others if theirs[j] != mine]))
    return rows


def sup_con(
    features, labels, temperature, *, form="out", references=None, reference_labels=None,
    normalize=True, reduction="mean", return_metrics=False,
):  # fmt: skip
    rows = label_rows(features, labels, 1 / temperature, normalize, references, reference_labels)
    losses = []
    for _, s, positive, negative in rows:
        if not positive:
            losses.append(s.sum() * 0)
            continue
        own = s[positive].mean()
        if form == "in":
            own = lse(s, positive) - math.log(len(positive))
        losses.append(lse(s, positive + negative) - own)
    return finished(reduce(torch.stack(losses), reduction), rows, return_metrics)


def pair_nt_xent(
    features, labels, temperature, *, references=None, reference_labels=None, normalize=True,
    reduction="mean",
):  # fmt: skip
    rows = label_rows(features, labels, 1 / temperature, normalize, references, reference_labels)
    losses, count = [], max(1, sum(len(r.positive) for r in rows))
    for _, s, positive, negative in rows:
        pairs = [lse(s, [p, *negative]) - s[p] for p in positive]
        losses.append(sum(pairs, s.sum() * 0))
    return reduce(torch.stack(losses), reduction, count)


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
    naive = globals()[case.name]
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


def compare(case, impl, tensors, numbers, options, expected):
    """|ours - truth| <= 2 |eager - truth| + floor, for the loss, every gradient and every metric.

    The floor: a few units in the last place of the largest value, or of the terms of a gradient
    that cancel; for exponentials, what one such unit in a similarity makes of them.
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
    count = len(first) ** 0.5
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
    floor = 4 * torch.finfo(first.dtype).eps + 2 * compute * similarity * sharp
    for name, true in truth.items():
        assert ours[name].dtype == (first.dtype if name not in numbers else torch.float64), name
        assert ours[name].shape == true.shape, name
        close(name, ours[name], true, eager[name], floor * least[name], floor)
    assert set(our_measures) == set(measures)
    size = 1 + similarity
    for name, value in measures.items():
        assert our_measures[name].dtype == torch.float32 and our_measures[name].dim() == 0
        least = 8 * 2**-23 * size * (1 + (sharp if name == "entropy" else 0))
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

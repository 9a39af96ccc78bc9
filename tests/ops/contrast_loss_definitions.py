"""The contrastive family's losses as papers write them, row by row.

Each function has the signature of fastssl's, and no other code in common with it.
"""

import math
from typing import NamedTuple

import torch


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
            above = (s[negative] > s[positive].max()).sum().item()
            total["top1"].append(float(above < 1))
            total["top5"].append(float(above < 5))
        total["positive"] += cosine[positive].tolist()
        total["negative"] += cosine[negative].tolist()
        total["close"] += (-2 * (2 - 2 * cosine[negative])).exp().tolist()
        share = s[positive + negative].softmax(0)
        total["entropy"].append(torch.special.entr(share).sum().item())
    mean = {name: sum(v) / len(v) if v else math.nan for name, v in total.items()}
    return {
        "top1": mean["top1"] if total["top1"] else 0.0,
        "top5": mean["top5"] if total["top5"] else 0.0,
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

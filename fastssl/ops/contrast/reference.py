"""The statistics of a matrix of logits in plain PyTorch: the truth of the tests."""

import torch
from torch import Tensor

from fastssl._autograd import without_autocast
from fastssl.ops.contrast.pairs import LABELLED, PAIRED, SIGMOID, Pairs, masks, softplus
from fastssl.ops.nt_xent.reference import compute_dtype, normalize_rows


def lse(s: Tensor, mask: Tensor) -> Tensor:
    """Log-sum-exp over each row's masked entries; -inf, with gradient zero, if there are none."""
    some = mask.any(1)
    kept = s.masked_fill(~mask, -torch.inf).masked_fill(~some[:, None], 0)
    return torch.where(some, kept.logsumexp(1), -torch.inf)


def side(kind, s: Tensor, negative: Tensor, positive: Tensor, scale=None, threshold=None) -> Tensor:
    """[4, R], or [10, R] where `scale` asks for metrics: statistics of the rows of logits `s`."""
    n = softplus(s).masked_fill(~negative, 0).sum(1) if kind == SIGMOID else lse(s, negative)
    if kind == PAIRED:
        x = (n[:, None] - s).masked_fill(~positive, -torch.inf)  # log-odds of anything else
        found = [n, softplus(x).sum(1), x.detach().sigmoid().sum(1)]
    else:
        p = lse(s, positive) if kind == LABELLED else torch.zeros_like(n)
        found = [n, s.masked_fill(~positive, 0).sum(1), p]
    found.append(positive.sum(1))
    if scale is not None:
        with torch.no_grad():
            best = s.masked_fill(~positive, -torch.inf).amax(1)
            above = s > (best if threshold is None else threshold.to(s.dtype))[:, None]
            share = s.masked_fill(~(negative | positive), -1e30).softmax(1) * (negative | positive)
            close = (4 * (s / scale - 1)).exp().masked_fill(~negative, 0)
            found += [(above & negative).sum(1), (share * s).sum(1)]
            found += [s.masked_fill(~negative, 0).sum(1), negative.sum(1), close.sum(1), best]
    return torch.stack([x.double() for x in found])


@without_autocast
def statistics(p: Pairs) -> tuple[Tensor, Tensor]:
    """The statistics of rows, and of columns where they are asked for ([4, 0] where not)."""
    rows = [(p.x, p.normalize_x), (p.y, p.normalize_y)][: 1 if p.y is None else 2]
    x, *y = (normalize_rows(z) if n else z.to(compute_dtype(z.dtype)) for z, n in rows)
    scale = p.factor if p.scale is None else p.scale.to(x.dtype)
    s = x @ [x, *y][-1].T * scale + (0 if p.bias is None else p.bias.to(x.dtype))
    of_rows, of_columns = masks(p, s.detach())
    asked = scale if p.metrics else None
    columns = side(p.kind, s.T, *of_columns, asked) if p.columns else s.new_zeros(4, 0).double()
    return side(p.kind, s, *of_rows, asked, p.threshold), columns

"""Statistics of rows against some columns and against others, merged into those against both."""

import torch
from torch import Tensor

from fastssl._checks import compute_dtype
from fastssl.ops.contrast.pairs import (
    BEST,
    COUNT,
    LABELLED,
    MEAN,
    NEGATIVES,
    POSITIVE,
    POSITIVES,
    ROWS,
    SIGMOID,
    Pairs,
)
from fastssl.ops.nt_xent.reference import normalize_rows

#: A logit that much below a log-sum-exp adds nothing to it, in float64 either.
_NOTHING = 60.0


def merged(kind: int, a: Tensor | None, b: Tensor) -> Tensor:
    """The statistics of both; for PAIRED, POSITIVE and POSITIVES must know all negatives already.

    RANK is a sum of counts above one threshold, which the caller must have given.
    """
    if a is None:
        return b
    both = a + b
    if kind != SIGMOID:
        both[NEGATIVES] = torch.logaddexp(a[NEGATIVES], b[NEGATIVES])
    if kind == LABELLED:
        both[POSITIVES] = torch.logaddexp(a[POSITIVES], b[POSITIVES])
    if len(a) > ROWS:
        weights = torch.stack([_everything(kind, a), _everything(kind, b)]).softmax(0)
        both[MEAN] = torch.where(weights > 0, weights * torch.stack([a[MEAN], b[MEAN]]), 0).sum(0)
        both[BEST] = torch.maximum(a[BEST], b[BEST])
    return both


def _everything(kind: int, found: Tensor) -> Tensor:
    """Log-sum-exp over negatives and positives, finite."""
    positive = found[POSITIVES] if kind == LABELLED else found[POSITIVE]
    positive = positive.masked_fill(found[COUNT] == 0, -torch.inf)
    return torch.logaddexp(found[NEGATIVES], positive).clamp(min=torch.finfo(found.dtype).min / 4)


def with_the_rest(p: Pairs, everywhere: Tensor, here: Tensor) -> Pairs:
    """`p` (PAIRED) and one more column, a negative that stands for those which are elsewhere.

    Row i's log-sum-exp over its negatives is `here` among these columns and `everywhere` over all:
    the column's logit is log(exp(everywhere) - exp(here)). It takes one more dimension, in which
    rows of x have that logit and the new column has 1.
    """
    dtype = compute_dtype(p.x.dtype)
    y = p.x if p.y is None else p.y
    normalize = p.normalize_x, p.normalize_x if p.y is None else p.normalize_y
    x, y = (
        normalize_rows(z) if flag else z.to(dtype)
        for z, flag in zip((p.x, y), normalize, strict=True)
    )
    scale = torch.full((), p.factor, dtype=dtype, device=x.device) if p.scale is None else p.scale
    reach = scale.abs() * x.square().sum(1).amax().sqrt() * y.square().sum(1).amax().sqrt()
    share = (here - everywhere).clamp(max=0).exp()
    rest = everywhere + torch.log1p(-share).clamp(min=-_NOTHING)
    rest = torch.where(everywhere.isneginf(), -reach.double() - 2 * _NOTHING, rest)
    column = y.new_zeros(1, y.shape[1] + 1)
    column[0, -1] = 1
    labels = p.row_labels if p.y is None else p.column_labels
    index = torch.arange(len(x), device=x.device)
    return p._replace(
        x=torch.cat([x, (rest / scale)[:, None].to(dtype)], 1),
        y=torch.cat([torch.nn.functional.pad(y, (0, 1)), column]),
        normalize_x=False,
        normalize_y=False,
        excluded=index if p.y is None else p.excluded,
        column_labels=torch.cat([labels, p.row_labels.amax()[None] + 1]),
    )

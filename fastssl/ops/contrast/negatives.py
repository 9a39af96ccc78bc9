"""InfoNCE with negatives that are given: shared by all queries, or each query's own."""

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._autograd import without_autocast
from fastssl._checks import checked_floating
from fastssl.ops.contrast.checks import (
    checked_margin,
    checked_pair,
    checked_reduction,
    checked_rows,
    inverse_temperature,
    out_dtype,
    promoted,
    reduced,
)
from fastssl.ops.contrast.core import statistics
from fastssl.ops.contrast.metrics import metrics
from fastssl.ops.contrast.pairs import (
    BEST,
    COUNT,
    MEAN,
    NEGATIVES,
    POSITIVE,
    ROWS,
    SOFTMAX,
    inside,
    softplus,
)
from fastssl.ops.contrast.queue import queue_lse
from fastssl.ops.contrast.reference import side
from fastssl.ops.contrast.views import margins_window
from fastssl.ops.nt_xent.reference import EPSILON, normalize_rows


def against_rows(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    temperature: float | Tensor,
    *,
    normalize: bool = True,
    false_negative_margin: float | None = None,
    hard_negative_margin: float | None = None,
    reduction: str = "mean",
    return_metrics: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """`fastssl.info_nce` with negatives [K, D], where `normalize` does not touch the negatives."""
    query, key = promoted(query, key)
    checked_pair("query", query, "key", key)
    checked_reduction(reduction)
    scale = inverse_temperature(temperature)
    fewest = checked_margin("false_negative_margin", false_negative_margin)
    hardest = checked_margin("hard_negative_margin", hard_negative_margin)
    window = margins_window(query, key, scale, normalize, fewest, hardest)
    loss, found = against(
        query, key, rows, scale, window, normalize, False, reduction, return_metrics, None, impl
    )
    return (loss, found) if return_metrics else loss


def against(
    query, key, negatives, scale, window, normalize, normalize_negatives, reduction,
    return_metrics, group, impl,
) -> tuple[Tensor, dict[str, Tensor] | None]:  # fmt: skip
    """The loss, and metrics where they are asked for; arguments but for `negatives` are checked."""
    if not isinstance(negatives, Tensor):
        raise TypeError(f"negatives: got {type(negatives).__name__}, must be a tensor")
    query, key, negatives = promoted(query, key, negatives)
    if normalize and query.dtype == torch.float16 and query.requires_grad:
        query = _bounded(query)  # used twice: the sum of what normalize_rows bounds
    share = len(query)
    if group is not None:
        from fastssl.ops.contrast import distributed

        share = distributed.mean_rows(len(query), query.device, group)
    x, y = (normalize_rows(z) if normalize else z for z in (query, key))
    positive = (x.double() * y.double()).sum(1) * scale
    dtype = out_dtype(query)
    chosen = _dispatch.choose("contrast", impl, query.device)
    threshold = None
    if return_metrics:  # a negative that ties with the positive is not above it, however rounded
        with torch.no_grad():
            sizes = x.double().norm(dim=1) * y.double().norm(dim=1)
            threshold = positive + 8 * torch.finfo(x.dtype).eps * sizes * abs(scale)
    if negatives.dim() == 3:
        asked = scale if return_metrics else None
        rows = _own(x, negatives, scale, threshold, normalize_negatives, window, asked)
    else:
        checked_rows("negatives", negatives, query, "query")
        plain = window is None and not return_metrics and not negatives.requires_grad
        if chosen == "cpu" and plain:
            lse = queue_lse(x, negatives, scale, normalize_negatives)
            return reduced(softplus(lse - positive), reduction, share, dtype), None
        rows = statistics(
            query, negatives, scale=scale, normalize=(normalize, normalize_negatives),
            metrics=return_metrics, row_window=window, threshold=threshold, impl=impl,
        ).rows  # fmt: skip
    rows = _with_positive(rows, positive)
    loss = reduced(softplus(rows[NEGATIVES] - positive), reduction, share, dtype)
    return loss, metrics([rows], scale, SOFTMAX) if return_metrics else None


@without_autocast
def _own(x, negatives, scale, threshold, normalize, window, asked) -> Tensor:
    """Statistics of queries against negatives of their own, [N, K, D]: read once."""
    checked_floating("negatives", negatives, 3, "[K, D] or [N, K, D]")
    n, _, d = negatives.shape
    if n != len(x) or d != x.shape[1]:
        raise ValueError(
            f"negatives: got shape {tuple(negatives.shape)}, must be [K, {x.shape[1]}] or "
            f"[{len(x)}, K, {x.shape[1]}]"
        )
    if negatives.numel() == 0:
        raise ValueError(f"negatives: got shape {tuple(negatives.shape)}, K must be at least 1")
    if negatives.device != x.device:
        raise ValueError(
            f"negatives: got device {negatives.device}, must be that of query, {x.device}"
        )
    x, own = x.to(torch.promote_types(x.dtype, torch.float32)), negatives
    own = own.to(x.dtype)
    if normalize and negatives.dtype == torch.float16 and own.requires_grad:
        own = _bounded(own)
    s = torch.einsum("nd,nkd->nk", x, own)
    if normalize:
        s = s / torch.linalg.vector_norm(own, dim=2).clamp(min=1e-12)
    s = s * scale
    negative = inside(s.detach(), window)
    return side(SOFTMAX, s, negative, torch.zeros_like(negative), asked, threshold)


def _bounded(z: Tensor) -> Tensor:
    """Rows whose gradient float16 can hold where they are zero: 1 / EPSILON it cannot."""
    dead = z.detach().float().square().sum(-1, keepdim=True) < EPSILON**2
    z = z.view_as(z)
    z.register_hook(lambda g: torch.where(dead, g.clamp(-65504, 65504), g))
    return z


def _with_positive(rows: Tensor, positive: Tensor) -> Tensor:
    """The statistics of rows that have one positive more."""
    rows = list(rows)
    rows[POSITIVE], rows[COUNT] = positive, torch.ones_like(positive)
    if len(rows) > ROWS:
        miss = torch.sigmoid(rows[NEGATIVES] - positive)
        rows[MEAN] = torch.where(miss > 0, miss * rows[MEAN], 0) + (1 - miss) * positive
        rows[BEST] = positive
    return torch.stack(rows)

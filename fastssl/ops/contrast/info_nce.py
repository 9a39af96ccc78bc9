"""InfoNCE: queries against their keys and the keys of others, of a queue, or of their own."""

import torch
from torch import Tensor

from fastssl._checks import checked_bool, checked_floating
from fastssl.ops.contrast.checks import (
    checked_labels,
    checked_margin,
    checked_pair,
    checked_reduction,
    checked_rows,
    checked_strategy,
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
from fastssl.ops.contrast.reference import side
from fastssl.ops.contrast.views import margins_window
from fastssl.ops.nt_xent.reference import normalize_rows


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    symmetric: bool = False,
    normalize: bool = True,
    labels: Tensor | None = None,
    false_negative_margin: float | None = None,
    hard_negative_margin: float | None = None,
    reduction: str = "mean",
    return_metrics: bool = False,
    process_group=None,
    strategy: str = "gather",
    impl: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of each query's key among the key and negatives.

    van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018; with a
    queue, He et al., "Momentum Contrast", 2020. No matrix of logits is stored, whatever the queue.

    Args:
        query: [N, D]; float16, bfloat16, float32 or float64; any strides.
        key: each query's positive, [N, D].
        negatives: None, where the other keys of the batch are the negatives; [K, D], shared by all
            queries, such as a queue (`fastssl.MemoryBank`); or [N, K, D], each query's own.
        temperature: what cosines are divided by: a number with |temperature| >= 1e-8, or a 0-d tensor,
            learnable if it requires a gradient.
        symmetric: the mean of queries against keys and keys against queries; in-batch
            negatives only.
        normalize: divide rows by max(|row|, 1e-12) first; those of `negatives` too.
        labels: int [N], in-batch negatives only: a query's negatives are keys with other labels.
        false_negative_margin: leave out negatives whose similarity exceeds the positive's by more.
        hard_negative_margin: keep only negatives whose similarity is below the positive's by at most this.
        reduction: "mean" over the queries, "sum", or "none": [N], for `symmetric` the mean
            of both directions' losses.
        return_metrics: return (loss, metrics), where metrics has 0-d tensors named top1, top5,
            positive_similarity, negative_similarity, alignment, uniformity, entropy.
        process_group: a torch.distributed group: keys of all its ranks are candidates. With "sum" a rank
            returns the sum over its own rows, and the gradients of its inputs are those of the sum over
            all ranks. With "mean" it returns its rows' sum / (all ranks' rows / number of ranks), so that
            the average over ranks, which DistributedDataParallel takes of gradients, is the global mean
            and its gradient, whatever the shards' sizes. With shared negatives nothing is exchanged but
            sizes.
        strategy: how rows travel in a process group: "gather" (all at once), "ring" (block by block,
            in memory for two ranks' rows).
        impl: "auto", or one of "reference", "cpu", "triton" by name.

    Returns:
        The loss in the inputs' dtype (at least float32 under autocast); half precision is computed in
        float32.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices, temperature, `reduction` or `impl` are not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    query, key = promoted(query, key)
    checked_pair("query", query, "key", key, process_group)
    checked_reduction(reduction)
    checked_strategy(strategy)
    checked_bool("symmetric", symmetric)
    checked_bool("normalize", normalize)
    scale = inverse_temperature(temperature)
    fewest = checked_margin("false_negative_margin", false_negative_margin)
    hardest = checked_margin("hard_negative_margin", hard_negative_margin)
    if labels is not None:
        labels = checked_labels("labels", labels, len(query), query.device)
    window = margins_window(query, key, scale, normalize, fewest, hardest)
    common = {"scale": scale, "metrics": return_metrics, "impl": impl, "row_window": window}
    if negatives is not None:
        if symmetric or labels is not None:
            name = "symmetric" if symmetric else "labels"
            raise ValueError(f"{name}: is for in-batch negatives, and negatives are given")
        rows, share = _given(query, key, negatives, common, normalize, process_group)
        sides = [rows]
    else:
        found = statistics(
            query, key, normalize=normalize, columns=symmetric, row_labels=labels,
            column_labels=labels, column_window=window if symmetric else None,
            partner=torch.arange(len(query), device=query.device), process_group=process_group,
            strategy=strategy, names=("query", "key"), **common,
        )  # fmt: skip
        sides = [found.rows, found.columns] if symmetric else [found.rows]
        share = found.row_share
    losses = sum(softplus(side[NEGATIVES] - side[POSITIVE]) for side in sides) / len(sides)
    loss = reduced(losses, reduction, share, out_dtype(query))
    return (loss, metrics(sides, scale, SOFTMAX)) if return_metrics else loss


def _given(query, key, negatives, common, normalize, group):
    """Statistics of queries whose positive and negatives come separately, and the share of a mean."""
    if not isinstance(negatives, Tensor):
        raise TypeError(f"negatives: got {type(negatives).__name__}, must be a tensor")
    share = len(query)
    if group is not None:
        from fastssl.ops.contrast import distributed

        share = distributed.mean_rows(len(query), query.device, group)
    scale, x, y = common["scale"], *(normalize_rows(z) if normalize else z for z in (query, key))
    positive = (x.double() * y.double()).sum(1) * scale
    if negatives.dim() == 3:
        rows = _own(x, negatives, positive.detach(), normalize, common)
    else:
        checked_rows("negatives", negatives, query, "query")
        found = statistics(
            query, negatives, normalize=normalize, threshold=positive.detach(), **common
        )
        rows = found.rows
    return _with_positive(rows, positive), share


def _own(x, negatives, threshold, normalize, common) -> Tensor:
    """Statistics of queries against negatives of their own, [N, K, D]: read once, nothing to fuse."""
    checked_floating("negatives", negatives, 3, "[K, D] or [N, K, D]")
    n, _, d = negatives.shape
    if n != len(x) or d != x.shape[1]:
        raise ValueError(
            f"negatives: got shape {tuple(negatives.shape)}, must be [K, {x.shape[1]}] or "
            f"[{len(x)}, K, {x.shape[1]}]"
        )
    own = negatives.to(x.dtype)
    s = torch.einsum("nd,nkd->nk", x, own)
    if normalize:
        s = s / torch.linalg.vector_norm(own, dim=2).clamp(min=1e-12)
    s = s * common["scale"]
    negative = inside(s.detach(), common["row_window"])
    asked = common["scale"] if common["metrics"] else None
    return side(SOFTMAX, s, negative, torch.zeros_like(negative), asked, threshold)


def _with_positive(rows: Tensor, positive: Tensor) -> Tensor:
    """The statistics of rows that have one positive more."""
    rows = list(rows)
    rows[POSITIVE], rows[COUNT] = positive, torch.ones_like(positive)
    if len(rows) > ROWS:
        miss = torch.sigmoid(rows[NEGATIVES] - positive)
        rows[MEAN] = torch.where(miss > 0, miss * rows[MEAN], 0) + (1 - miss) * positive
        rows[BEST] = positive
    return torch.stack(rows)

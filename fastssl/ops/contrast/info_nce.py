"""InfoNCE: queries against their keys and the keys of others, of a queue, or of their own."""

import torch
from torch import Tensor

from fastssl._checks import checked_bool
from fastssl.ops.contrast.checks import (
    checked_labels,
    checked_margin,
    checked_pair,
    checked_reduction,
    checked_strategy,
    inverse_temperature,
    out_dtype,
    promoted,
    reduced,
)
from fastssl.ops.contrast.core import statistics
from fastssl.ops.contrast.metrics import metrics
from fastssl.ops.contrast.negatives import against
from fastssl.ops.contrast.pairs import NEGATIVES, POSITIVE, SOFTMAX, softplus
from fastssl.ops.contrast.views import margins_window


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
        temperature: what cosines are divided by: a number with |temperature| >= 1e-8, or a 0-d
            tensor, learnable if it requires a gradient.
        symmetric: the mean of queries against keys and keys against queries; in-batch
            negatives only.
        normalize: divide rows by max(|row|, 1e-12) first; those of `negatives` too.
        labels: int [N], in-batch negatives only: a query's negatives are keys with other labels.
        false_negative_margin: leave out negatives whose similarity exceeds the positive's by more.
        hard_negative_margin: keep only negatives whose similarity is below the positive's by at
            most this.
        reduction: "mean" over the queries, "sum", or "none": [N], for `symmetric` the mean
            of both directions' losses.
        return_metrics: return (loss, metrics), where metrics has 0-d tensors named top1, top5,
            positive_similarity, negative_similarity, alignment, uniformity, entropy.
        process_group: a torch.distributed group: keys of all its ranks are candidates. With "sum" a
            rank returns the sum over its own rows, and the gradients of its inputs are those of the
            sum over all ranks. With "mean" it returns its rows' sum / (all ranks' rows / number of
            ranks), so that the average over ranks, which DistributedDataParallel takes of
            gradients, is the global mean and its gradient, whatever the shards' sizes. With shared
            negatives nothing is exchanged but sizes.
        strategy: how rows travel in a process group: "gather" (all at once), "ring" (block by
            block, in memory for two ranks' rows).
        impl: "auto", or one of "reference", "cpu", "triton" by name.

    Returns:
        The loss in the inputs' dtype (at least float32 under autocast); half precision is computed
        in float32.

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
    if negatives is not None:
        if symmetric or labels is not None:
            name = "symmetric" if symmetric else "labels"
            raise ValueError(f"{name}: is for in-batch negatives, and negatives are given")
        loss, found = against(
            query, key, negatives, scale, window, normalize, normalize, reduction, return_metrics,
            process_group, impl,
        )  # fmt: skip
        return (loss, found) if return_metrics else loss
    # torch.compile takes no tensor twice, but views of it.
    theirs = None if labels is None else labels.view_as(labels)
    others = window.view_as(window) if symmetric and window is not None else None
    found = statistics(
        query, key, scale=scale, normalize=normalize, columns=symmetric, metrics=return_metrics,
        row_labels=labels, column_labels=theirs, row_window=window, column_window=others,
        partner=torch.arange(len(query), device=query.device), process_group=process_group,
        strategy=strategy, impl=impl, names=("query", "key"),
    )  # fmt: skip
    sides = [found.rows, found.columns] if symmetric else [found.rows]
    losses = sum(softplus(side[NEGATIVES] - side[POSITIVE]) for side in sides) / len(sides)
    loss = reduced(losses, reduction, found.row_share, out_dtype(query))
    return (loss, metrics(sides, scale, SOFTMAX)) if return_metrics else loss

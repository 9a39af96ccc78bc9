"""What `return_metrics=True` returns, from the statistics that the loss is made of."""

import torch
from torch import Tensor

from fastssl.ops.contrast.pairs import (
    CLOSE,
    COUNT,
    LABELLED,
    MEAN,
    NEGATIVES,
    NUMBER,
    POSITIVE,
    POSITIVES,
    RANK,
    TOTAL,
)


@torch.no_grad()
def metrics(sides: list[Tensor], scale: Tensor | float, kind: int) -> dict[str, Tensor]:
    """Means over the rows of all `sides` (statistics [10, .]), 0-d float32 tensors.

    - top1, top5: rows with no, with fewer than five negatives above their best positive.
    - positive_similarity, negative_similarity: mean cosines.
    - alignment: mean squared distance of positives (Wang and Isola 2020), for unit rows.
    - uniformity: log of the mean over negatives of exp(-2 squared distance) (the same).
    - entropy: of the softmax over a row's candidates, in nats.

    A row without positives counts in none but negative_similarity, uniformity and entropy.
    """
    f = torch.cat([side.detach() for side in sides], 1)
    some = f[COUNT] > 0
    rows = some.sum().clamp(min=1)
    positive = f[POSITIVE].sum() / f[COUNT].sum() / scale
    everything = torch.logaddexp(f[NEGATIVES], f[POSITIVES if kind == LABELLED else POSITIVE])
    entropy = torch.where(everything.isneginf(), 0, everything - f[MEAN])  # no candidates: none
    found = {
        "top1": ((f[RANK] < 1) & some).sum() / rows,
        "top5": ((f[RANK] < 5) & some).sum() / rows,
        "positive_similarity": positive,
        "negative_similarity": f[TOTAL].sum() / f[NUMBER].sum() / scale,
        "alignment": 2 - 2 * positive,
        "uniformity": (f[CLOSE].sum() / f[NUMBER].sum()).log(),
        "entropy": entropy.mean(),
    }
    return {name: value.float() for name, value in found.items()}

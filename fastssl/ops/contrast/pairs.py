"""Which pairs of rows are compared, and what is asked of their logits.

s_ij = scale <x_i, y_j> + bias are the logits. A pair is left out, positive, or negative:
`excluded[i]` is the column that row i is not compared with, `partner[i]` its positive; -1 stands
for none. With labels, a pair of equal labels is positive where `kind` is LABELLED or PAIRED, left
out otherwise.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Row i's positive is `partner[i]`; its negatives enter by log-sum-exp.
SOFTMAX = 0
#: The same with sums of softplus over the negatives: SigLIP.
SIGMOID = 1
#: Equal labels are positives.
LABELLED = 2
#: Equal labels are positives, each of which meets the negatives alone.
PAIRED = 3

#: Rows of the statistics. All but COUNT and, for PAIRED, POSITIVES have a gradient.
#: log-sum-exp over negatives (-inf for none); for SIGMOID the sum of softplus(s).
NEGATIVES = 0
#: The positive's logit, or the sum over positives; for PAIRED of softplus(NEGATIVES - s).
POSITIVE = 1
#: log-sum-exp over positives (LABELLED); the sum of sigmoid(NEGATIVES - s) over them (PAIRED).
POSITIVES = 2
#: How many positives there are.
COUNT = 3
#: With metrics, none with a gradient: how many negatives are above `threshold` (above the partner
#: where it is None); the mean logit under the softmax over negatives and positives; the sum of
#: negatives' logits; how many negatives there are; the sum over negatives of exp(4 (s / scale -
#: 1)), which for unit rows is exp(-2 |x - y|^2); the best positive's logit (-inf for none).
RANK, MEAN, TOTAL, NUMBER, CLOSE, BEST = 4, 5, 6, 7, 8, 9
#: How many rows the statistics have, without and with metrics.
ROWS, ROWS_WITH_METRICS = 4, 10


class Pairs(NamedTuple):
    """The arguments of the raw operators, in their order."""

    x: Tensor  # [R, D]
    y: Tensor | None  # [C, D]; None: x with itself, the diagonal left out
    scale: Tensor | None  # 0-d; None: `factor`
    factor: float
    bias: Tensor | None  # 0-d, SIGMOID only
    kind: int
    normalize_x: bool
    normalize_y: bool
    columns: bool  # statistics of columns too; of no use where y is None
    metrics: bool
    excluded: Tensor | None  # int64 [R], no column twice
    partner: Tensor | None  # int64 [R], no column twice
    row_labels: Tensor | None  # int64 [R]
    column_labels: Tensor | None  # int64 [C]; None where y is None
    row_window: Tensor | None  # SOFTMAX only, float64 [2, R]: a negative's least and greatest logit
    column_window: Tensor | None  # float64 [2, C]; None where y is None: that of rows
    threshold: Tensor | None  # float64 [R]


def masks(p: Pairs, s: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(negative, positive) of the logits [R, C], for rows; and for columns, transposed.

    Windows are compared with the logits themselves, which a kernel rounds its own way: a pair at
    the very edge of one may fall on either side.
    """
    negative = torch.ones_like(s, dtype=torch.bool)
    positive = torch.zeros_like(negative)
    column = torch.arange(s.shape[1], device=s.device)
    if p.row_labels is not None:
        others = p.row_labels if p.column_labels is None else p.column_labels
        same = p.row_labels[:, None] == others
        negative = negative & ~same
        if p.kind in (LABELLED, PAIRED):
            positive = same
    excluded = column if p.y is None else p.excluded
    if excluded is not None:
        itself = excluded[:, None] == column
        negative, positive = negative & ~itself, positive & ~itself
    if p.partner is not None:
        partner = p.partner[:, None] == column
        negative, positive = negative & ~partner, positive | partner
    columns_window = p.row_window if p.y is None else p.column_window
    return (
        (negative & inside(s, p.row_window), positive),
        (negative.T & inside(s.T, columns_window), positive.T),
    )


def inside(s: Tensor, window: Tensor | None) -> Tensor:
    """Which logits lie within their row's window."""
    if window is None:
        return torch.ones_like(s, dtype=torch.bool)
    low, high = window.to(s.dtype)[:, :, None]
    return ~((s < low) | (s > high))  # what is not a number stays, and shows


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact for large x too, where torch's threshold of 20 drops the exponential.

    Twice differentiable at -inf, too, as logaddexp is not: its second derivative is NaN there.
    """
    return F.softplus(x, threshold=40)

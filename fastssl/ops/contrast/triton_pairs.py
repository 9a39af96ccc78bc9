"""What a pair of rows is, inside the family's Triton kernels: logits, masks, softplus.

One family of kernels serves every loss. What differs is decided when they are compiled:

- KIND: what is summed. SOFTMAX, SIGMOID, LABELLED and PAIRED are those of pairs.py, METRICS what
  `metrics` asks for beside.
- LABELS: NONE; DROPPED, where pairs of equal labels do not count; POSITIVE, where they are
  positives.
- DIAGONAL, EXCLUDED, PARTNER, WINDOW: which arguments of pairs.py there are.

Logits are kept as t = log2(e) s. An index is a row's only column of its kind, -1 for none.
"""

import triton
import triton.language as tl

from fastssl.ops.contrast import pairs
from fastssl.ops.nt_xent.triton_rows import LN_2, LOG2_E, temperature_of

SOFTMAX = tl.constexpr(pairs.SOFTMAX)
SIGMOID = tl.constexpr(pairs.SIGMOID)
LABELLED = tl.constexpr(pairs.LABELLED)
PAIRED = tl.constexpr(pairs.PAIRED)
METRICS = tl.constexpr(4)  # kinds are compared with < and >, too
NONE = tl.constexpr(0)
DROPPED = tl.constexpr(1)
POSITIVE = tl.constexpr(2)
#: Below every logit, above NEVER.
HARDLY = tl.constexpr(-1e38)


@triton.jit
def log_scale_of(scale, factor, LEARNED: tl.constexpr):
    """What similarities are multiplied by, for t; from device memory where it is a tensor."""
    return temperature_of(scale, factor, LEARNED) * LOG2_E


@triton.jit
def shift_of(bias, BIASED: tl.constexpr):
    """What is added to every t."""
    shift = 0.0
    if BIASED:
        shift = tl.load(bias) * LOG2_E
    return shift


@triton.jit
def index_of(pointer, i, live, DIAGONAL: tl.constexpr, PRESENT: tl.constexpr):
    """A column for each row, as int32."""
    index = tl.where(live, i, -1)
    if not DIAGONAL:
        index = index * 0 - 1
        if PRESENT:
            index = tl.load(pointer + i, mask=live, other=-1).to(tl.int32)
    return index


@triton.jit
def ends_of(index, PRESENT: tl.constexpr):
    """The first and last column that a block's indices name; an empty range for none."""
    first = 1 << 30
    last = -1
    if PRESENT:
        first = tl.min(tl.where(index < 0, 1 << 30, index), 0)
        last = tl.max(index, 0)
    return first, last


@triton.jit
def window_of(window, i, live, rows, WINDOW: tl.constexpr):
    """Least and greatest t of a row's negatives."""
    low = i * 0.0
    high = low
    if WINDOW:
        low = (tl.load(window + i, mask=live, other=0.0) * LOG2_E).to(tl.float32)
        high = (tl.load(window + rows + i, mask=live, other=0.0) * LOG2_E).to(tl.float32)
    return low, high


@triton.jit
def same_labels(row_labels, column_labels, i, j, rows, columns, LABELS: tl.constexpr):
    """Which pairs of a tile have equal labels, [M, N]; where there are no labels, no pair."""
    if LABELS == NONE:
        same = (i[:, None] < -1) & (j[None, :] < -1)
    else:
        of_rows = tl.load(row_labels + i, mask=i < rows, other=0)
        of_columns = tl.load(column_labels + j, mask=j < columns, other=0)
        same = of_rows[:, None] == of_columns[None, :]
    return same


@triton.jit
def split_pairs(
    t, j, excluded, partner, same, low, high, columns,
    LABELS: tl.constexpr, PARTNER: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """(negative, positive) of a tile of t; excluded and partner are [M, 1], j is [1, N]."""
    kept = (j < columns) & (j != excluded)
    negative = kept
    if LABELS != NONE:
        negative = negative & ~same
    if WINDOW:
        negative = negative & (t >= low) & (t <= high)
    positive = same & kept
    if LABELS != POSITIVE:
        positive = j < -1
    if PARTNER:
        negative = negative & (j != partner)
        positive = positive | (j == partner)
    return negative, positive


@triton.jit
def log1p(e):
    """log(1 + e) for e in [0, 1], to 1.2e-7 of itself: a polynomial, as sums need its digits."""
    p = -0.00317605705 * e + 0.0195425274
    p = p * e - 0.0563736132
    p = p * e + 0.105436238
    p = p * e - 0.152696671
    p = p * e + 0.196632743
    p = p * e - 0.249516163
    p = p * e + 0.333297105
    p = p * e - 0.499998926
    p = p * e + 0.999999995
    return p * e


@triton.jit
def softplus(t):
    """log(1 + e^s), in natural units."""
    return tl.maximum(t, 0.0) * LN_2 + log1p(tl.exp2(-tl.abs(t)))


@triton.jit
def sigmoid(t):
    """1 / (1 + e^-s)."""
    return 1.0 / (1.0 + tl.exp2(-t))

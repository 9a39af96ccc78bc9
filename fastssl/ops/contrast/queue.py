"""InfoNCE against the rows of a memory bank, which are taken as they are."""

from torch import Tensor

from fastssl.ops.contrast.checks import (
    checked_margin,
    checked_pair,
    checked_reduction,
    inverse_temperature,
    out_dtype,
    promoted,
    reduced,
)
from fastssl.ops.contrast.info_nce import _given
from fastssl.ops.contrast.metrics import metrics
from fastssl.ops.contrast.pairs import NEGATIVES, POSITIVE, SOFTMAX, softplus
from fastssl.ops.contrast.views import margins_window


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
    common = {"scale": scale, "metrics": return_metrics, "impl": impl, "row_window": window}
    # A pair of flags: that of the queries and keys, and that of the negatives.
    found, share = _given(query, key, rows, common, (True, False) if normalize else False, None)
    loss = reduced(softplus(found[NEGATIVES] - found[POSITIVE]), reduction, share, out_dtype(query))
    return (loss, metrics([found], scale, SOFTMAX)) if return_metrics else loss

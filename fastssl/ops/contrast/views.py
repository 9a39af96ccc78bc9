"""Losses between two views, all rows being candidates: NT-Xent in general, DCL, DCLW."""

import torch
from torch import Tensor

from fastssl._checks import checked_bool, checked_floating
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
from fastssl.ops.contrast.core import Statistics, statistics
from fastssl.ops.contrast.metrics import metrics
from fastssl.ops.contrast.pairs import NEGATIVES, POSITIVE, SOFTMAX, softplus
from fastssl.ops.nt_xent.reference import normalize_rows


def margins_window(x, y, scale, normalize, false_negative, hard_negative) -> Tensor | None:
    """[2, N]: what logits negatives of row i may have, from its similarity with positive y_i."""
    if false_negative is None and hard_negative is None:
        return None
    with torch.no_grad():
        x, y = (normalize_rows(z) if normalize else z for z in (x, y))
        positive = (x.double() * y.double()).sum(1)
        low = positive - (torch.inf if hard_negative is None else hard_negative)
        high = positive + (torch.inf if false_negative is None else false_negative)
        edges = torch.stack([low, high]) * scale
        # Turned round by a negative scale. A window that was empty stays so.
        if isinstance(scale, Tensor):
            return torch.where((scale < 0).to(edges.device), edges.flip(0), edges)
        return edges.flip(0) if scale < 0 else edges


def view_statistics(
    z0, z1, scale, *, normalize=True, labels=None, window=None, metrics=False, process_group=None,
    strategy="gather", impl="auto",
) -> Statistics:  # fmt: skip
    """The statistics of the rows of [z0; z1] against each other, the partner being the positive."""
    n = len(z0)
    index = torch.arange(n, device=z0.device)
    return statistics(
        torch.cat([z0, z1]),
        scale=scale,
        normalize=normalize,
        metrics=metrics,
        partner=torch.cat([index + n, index]),
        row_labels=None if labels is None else labels.repeat(2),
        row_window=None if window is None else window.repeat(1, 2),
        process_group=process_group,
        strategy=strategy,
        impl=impl,
        names=("z0", "z1"),
    )


def nt_xent(
    z0, z1, temperature, normalize, reduction, impl, labels, false_negative_margin,
    hard_negative_margin, return_metrics, process_group, strategy,
):  # fmt: skip
    """`fastssl.nt_xent` beyond its plain form, after its checks."""
    scale = inverse_temperature(temperature)
    checked_strategy(strategy)
    fewest = checked_margin("false_negative_margin", false_negative_margin)
    hardest = checked_margin("hard_negative_margin", hard_negative_margin)
    if labels is not None:
        labels = checked_labels("labels", labels, len(z0), z0.device)
    found = view_statistics(
        z0, z1, scale, normalize=normalize, labels=labels,
        window=margins_window(z0, z1, scale, normalize, fewest, hardest), metrics=return_metrics,
        process_group=process_group, strategy=strategy, impl=impl,
    )  # fmt: skip
    losses = softplus(found.rows[NEGATIVES] - found.rows[POSITIVE])
    loss = reduced(losses, reduction, found.row_share, out_dtype(z0))
    return (loss, metrics([found.rows], scale, SOFTMAX)) if return_metrics else loss


def dcl(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    weights: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    return_metrics: bool = False,
    process_group=None,
    strategy: str = "gather",
    impl: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Decoupled contrastive loss: NT-Xent without the positive in the denominator.

    Yeh et al., "Decoupled Contrastive Learning", 2021, equation 5. Row i of [z0; z1] loses
    logsumexp over its negatives - weights_i S_ip, with S and p(i) as in `fastssl.nt_xent`. One pair
    alone has no negatives, and the loss -inf.

    Args:
        z0: projections of the first view, [N, D].
        z1: projections of the second view, same shape, dtype and device.
        temperature: a number, or a 0-d tensor that may require a gradient.
        weights: of the positives, [2N] (rows of z0, then of z1); 1 by default. No gradient.
        normalize: divide rows by their Euclidean norm first.
        reduction: "mean" over the 2N rows, "sum", or "none".
        return_metrics: return (loss, metrics); see `fastssl.info_nce`.
        process_group: compare with all its ranks' rows; see `fastssl.info_nce`.
        strategy: how rows travel in a process group, "gather" or "ring".
        impl: "auto", or one of "reference", "cpu", "triton" by name.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices, temperature, `reduction` or `impl` are not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    z0, z1 = promoted(z0, z1)
    checked_pair("z0", z0, "z1", z1, process_group)
    checked_bool("normalize", normalize)
    checked_reduction(reduction)
    checked_strategy(strategy)
    scale = inverse_temperature(temperature)
    if weights is not None:
        checked_floating("weights", weights, 1, "[2N]")
        if len(weights) != 2 * len(z0):
            raise ValueError(f"weights: got shape {tuple(weights.shape)}, must be ({2 * len(z0)},)")
        if weights.device != z0.device:
            raise ValueError(
                f"weights: got device {weights.device}, must be that of z0, {z0.device}"
            )
    found = view_statistics(
        z0, z1, scale, normalize=normalize, metrics=return_metrics, process_group=process_group,
        strategy=strategy, impl=impl,
    )  # fmt: skip
    weights = 1 if weights is None else weights.detach().double()
    losses = found.rows[NEGATIVES] - weights * found.rows[POSITIVE]
    loss = reduced(losses, reduction, found.row_share, out_dtype(z0))
    return (loss, metrics([found.rows], scale, SOFTMAX)) if return_metrics else loss


def dclw(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.1,
    sigma: float = 0.5,
    *,
    normalize: bool = True,
    **options,
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """`dcl` with von Mises-Fisher weights, 2 - N softmax(<z0_n, z1_n> / sigma) over the batch.

    Yeh et al. 2021, section 3.3. With a process group the softmax is over this rank's rows.

    Args:
        z0: projections of the first view, [N, D].
        z1: projections of the second view, same shape, dtype and device.
        temperature: a number, or a 0-d tensor that may require a gradient.
        sigma: temperature of the weights, not 0.
        normalize: divide rows by their Euclidean norm first.
        **options: as in `dcl`.
    """
    z0, z1 = promoted(z0, z1)
    checked_pair("z0", z0, "z1", z1, options.get("process_group"))
    checked_bool("normalize", normalize)
    if not isinstance(sigma, (int, float)) or isinstance(sigma, bool) or not abs(sigma) > 0:
        raise ValueError(f"sigma: got {sigma!r}, must be a number other than 0")
    with torch.no_grad():
        x, y = (normalize_rows(z) if normalize else z for z in (z0, z1))
        similarity = (x.double() * y.double()).sum(1)
        weights = 2 - len(z0) * torch.softmax(similarity / sigma, 0)
    return dcl(z0, z1, temperature, weights=weights.repeat(2), normalize=normalize, **options)

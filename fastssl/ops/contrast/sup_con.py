"""Losses whose positives are told by labels: supervised contrastive, and NT-Xent pair by pair."""

import torch
from torch import Tensor

from fastssl._checks import checked_bool
from fastssl.ops.contrast.checks import (
    checked_labels,
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
    LABELLED,
    NEGATIVES,
    PAIRED,
    POSITIVE,
    POSITIVES,
    RANK,
    softplus,
)

FORMS = ("out", "in")


def label_statistics(
    features, labels, references, reference_labels, scale, kind, normalize, **options
):
    """Statistics of features against each other, or against references with labels of their own."""
    return statistics(
        features,
        references,
        scale=scale,
        kind=kind,
        normalize=normalize,
        row_labels=labels,
        column_labels=reference_labels,
        names=("features", "features" if references is None else "references"),
        **options,
    )


def sup_con(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    form: str = "out",
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    return_metrics: bool = False,
    process_group=None,
    strategy: str = "gather",
    impl: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Supervised contrastive loss: rows with the same label are positives.

    Khosla et al., "Supervised Contrastive Learning", 2020. With A(i) all other rows and P(i) those
    of i's label, row i loses

        form="out":  logsumexp over A(i) of S_ia - mean over P(i) of S_ip       (equation 2)
        form="in":   logsumexp over A(i) of S_ia - log mean over P(i) of exp(S_ip)   (equation 3)

    and 0 where P(i) is empty. Labels are compared inside the kernel: there is no mask of pairs.

    Args:
        features: [M, D]; float16, bfloat16, float32 or float64; any strides. Views of one sample
            are rows of one label: for features [N, V, D], `features.flatten(0, 1)` and
            `labels.repeat_interleave(V)`.
        labels: integers [M].
        temperature: a number with |temperature| >= 1e-8, or a 0-d tensor that may require a
            gradient.
        form: "out" or "in".
        references: compare with these rows, [C, D], instead of with each other; no row is left out.
        reference_labels: integers [C].
        normalize: divide rows by their Euclidean norm first.
        reduction: "mean" over all M rows, "sum", or "none".
        return_metrics: return (loss, metrics); see `fastssl.info_nce`. A row's rank is that of its
            best positive, which takes a second pass.
        process_group: compare with all its ranks' rows; see `fastssl.info_nce`.
        strategy: how rows travel in a process group, "gather" or "ring".
        impl: "auto", or one of "reference", "cpu", "triton" by name.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices, temperature, `form`, `reduction` or `impl` are not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    if form not in FORMS:
        raise ValueError(f"form: got {form!r}, must be one of {FORMS}")
    features, labels, references, reference_labels, scale = _checked(
        features, labels, references, reference_labels, temperature, normalize, reduction,
        strategy, process_group,
    )  # fmt: skip
    arguments = features, labels, references, reference_labels, scale, LABELLED, normalize
    options = {"process_group": process_group, "strategy": strategy, "impl": impl}
    found = label_statistics(*arguments, metrics=return_metrics, **options)
    rows = found.rows
    some = rows[COUNT] > 0
    count = rows[COUNT].clamp(min=1)
    # A row without positives: -inf and its gradients stay out.
    positives = torch.where(some, rows[POSITIVES], rows[POSITIVE])
    everything = positives + softplus(rows[NEGATIVES] - positives)
    own = rows[POSITIVE] / count if form == "out" else positives - count.log()
    losses = torch.where(some, everything - own, 0)
    loss = reduced(losses, reduction, found.row_share, out_dtype(features))
    if not return_metrics:
        return loss
    with torch.no_grad():
        again = label_statistics(*arguments, metrics=True, threshold=rows[BEST].detach(), **options)
        rows = rows.detach().clone()
        rows[RANK] = again.rows[RANK]
    return loss, metrics([rows], scale, LABELLED)


def pair_nt_xent(
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    process_group=None,
    strategy: str = "gather",
    impl: str = "auto",
) -> Tensor:
    """NT-Xent of every positive pair: other positives are not in the denominator.

    The loss that pytorch-metric-learning calls NTXentLoss. Each pair (i, p) of one label loses
    -log(exp(S_ip) / (exp(S_ip) + sum over n of other labels of exp(S_in))). With one positive for
    each row it is `fastssl.nt_xent`.

    Args:
        features: [M, D]; float16, bfloat16, float32 or float64; any strides.
        labels: integers [M].
        temperature: a number with |temperature| >= 1e-8, or a 0-d tensor that may require a
            gradient.
        references: compare with these rows, [C, D], instead of with each other; no row is left out.
        reference_labels: integers [C].
        normalize: divide rows by their Euclidean norm first.
        reduction: "mean" over all positive pairs (0 where there are none), "sum", or "none": [M],
            each row's sum over its pairs. With a process group the mean is this rank's sum over
            (all ranks' pairs / number of ranks).
        process_group: compare with all its ranks' rows; see `fastssl.info_nce`.
        strategy: how rows travel in a process group, "gather" or "ring".
        impl: "auto", or one of "reference", "cpu", "triton" by name.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices, temperature, `reduction` or `impl` are not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    features, labels, references, reference_labels, scale = _checked(
        features, labels, references, reference_labels, temperature, normalize, reduction,
        strategy, process_group,
    )  # fmt: skip
    rows = label_statistics(
        features, labels, references, reference_labels, scale, PAIRED, normalize,
        process_group=process_group, strategy=strategy, impl=impl,
    ).rows  # fmt: skip
    pairs = rows[COUNT].sum()
    if process_group is not None and reduction == "mean":
        from fastssl.ops.contrast import distributed

        pairs = distributed.mean_count(pairs, process_group)
    else:
        pairs = pairs.clamp(min=1)
    return reduced(rows[POSITIVE], reduction, pairs, out_dtype(features))


def _checked(
    features, labels, references, reference_labels, temperature, normalize, reduction, strategy,
    group,
):  # fmt: skip
    if references is not None:
        features, references = promoted(features, references)
    checked_rows("features", features, group=group)
    labels = checked_labels("labels", labels, len(features), features.device)
    if (references is None) != (reference_labels is None):
        missing = "references" if references is None else "reference_labels"
        raise ValueError(f"{missing}: references and reference_labels are given together")
    if references is not None:
        checked_rows("references", references, features, "features", group)
        reference_labels = checked_labels(
            "reference_labels", reference_labels, len(references), features.device
        )
    checked_bool("normalize", normalize)
    checked_reduction(reduction)
    checked_strategy(strategy)
    return features, labels, references, reference_labels, inverse_temperature(temperature)

"""The losses of CLIP and SigLIP: images against texts."""

import torch
from torch import Tensor

from fastssl._checks import checked_bool
from fastssl.ops.contrast.checks import (
    checked_pair,
    checked_reduction,
    checked_scalar,
    checked_strategy,
    out_dtype,
    promoted,
    reduced,
)
from fastssl.ops.contrast.core import statistics
from fastssl.ops.contrast.metrics import metrics
from fastssl.ops.contrast.pairs import NEGATIVES, POSITIVE, SIGMOID, SOFTMAX, softplus


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor | None = None,
    *,
    normalize: bool = False,
    reduction: str = "mean",
    return_metrics: bool = False,
    process_group=None,
    strategy: str = "gather",
    impl: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of images among texts and of texts among images, averaged.

    Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    figure 3. No matrix of logits is stored.

    Args:
        image_features: [N, D]; float16, bfloat16, float32 or float64; any strides. Usually of unit
            length.
        text_features: same shape, dtype and device; row n belongs to image n.
        logit_scale: what similarities are multiplied by (the exponential, where a model keeps the
            logarithm): a number, or a tensor of one element, learnable if it requires a gradient.
        logit_bias: added to all logits; a softmax does not see it, and its gradient is zero.
        normalize: divide rows by their Euclidean norm first.
        reduction: "mean" over the pairs, "sum", or "none": [N], the mean of both directions.
        return_metrics: return (loss, metrics); see `fastssl.info_nce`.
        process_group: compare with all its ranks' rows; see `fastssl.info_nce`.
        strategy: how rows travel in a process group, "gather" or "ring".
        impl: "auto", or one of "reference", "cpu", "triton" by name.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices, `reduction` or `impl` are not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    image_features, text_features = promoted(image_features, text_features)
    checked_pair("image_features", image_features, "text_features", text_features, process_group)
    checked_reduction(reduction)
    checked_strategy(strategy)
    checked_bool("normalize", normalize)
    device = image_features.device
    scale = checked_scalar("logit_scale", logit_scale, device)
    found = statistics(
        image_features,
        text_features,
        scale=scale,
        normalize=normalize,
        columns=True,
        metrics=return_metrics,
        partner=torch.arange(len(image_features), device=device),
        process_group=process_group,
        strategy=strategy,
        impl=impl,
        names=("image_features", "text_features"),
    )
    sides = [found.rows, found.columns]
    losses = sum(softplus(side[NEGATIVES] - side[POSITIVE]) for side in sides) / 2
    if logit_bias is not None:
        # So that a bias that is learned has a gradient, and what is not a number shows.
        losses = losses + 0 * checked_scalar("logit_bias", logit_bias, device)
    loss = reduced(losses, reduction, found.row_share, out_dtype(image_features))
    return (loss, metrics(sides, scale, SOFTMAX)) if return_metrics else loss


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    *,
    normalize: bool = False,
    reduction: str = "mean",
    process_group=None,
    strategy: str = "gather",
    impl: str = "auto",
) -> Tensor:
    """Each image with each text as a binary decision: do they belong together?

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, equation 1: image n loses
    softplus(-s_nn) + sum over m != n of softplus(s_nm), with s = logit_scale <image, text> +
    logit_bias.

    Args:
        image_features: [N, D]; float16, bfloat16, float32 or float64; any strides. Usually of unit
            length.
        text_features: same shape, dtype and device; row n belongs to image n.
        logit_scale: what similarities are multiplied by (the exponential of what models keep): a
            number, or a tensor of one element, learnable if it requires a gradient.
        logit_bias: added to all logits, likewise.
        normalize: divide rows by their Euclidean norm first.
        reduction: "mean" over the images, "sum", or "none": [N].
        process_group: compare with all its ranks' texts; see `fastssl.info_nce`.
        strategy: how rows travel in a process group, "gather" or "ring".
        impl: "auto", or one of "reference", "cpu", "triton" by name.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices, `reduction` or `impl` are not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    image_features, text_features = promoted(image_features, text_features)
    checked_pair("image_features", image_features, "text_features", text_features, process_group)
    checked_reduction(reduction)
    checked_strategy(strategy)
    checked_bool("normalize", normalize)
    device = image_features.device
    bias = checked_scalar("logit_bias", logit_bias, device)
    found = statistics(
        image_features,
        text_features,
        scale=checked_scalar("logit_scale", logit_scale, device),
        bias=bias if isinstance(bias, Tensor) else image_features.new_full((), bias),
        kind=SIGMOID,
        normalize=normalize,
        partner=torch.arange(len(image_features), device=device),
        process_group=process_group,
        strategy=strategy,
        impl=impl,
        names=("image_features", "text_features"),
        alike=reduction != "none",
    )
    losses = found.rows[NEGATIVES] + softplus(-found.rows[POSITIVE])
    return reduced(losses, reduction, found.row_share, out_dtype(image_features))

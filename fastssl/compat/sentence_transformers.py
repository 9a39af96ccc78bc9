"""sentence-transformers' ranking losses with in-batch negatives, without matrices of similarities.

Subclasses of the classes of the same names, which embed the texts and keep gradients in a cache as
theirs do; this module needs the library, version 5.3 or later. Fused for `util.cos_sim` and
`util.dot_score`; what is not is left to the library, with a warning.
"""

from collections.abc import Callable

import torch
from sentence_transformers import util
from torch import Tensor, distributed

from fastssl.compat._fallback import say_once
from fastssl.compat._gather import gathered
from fastssl.ops.contrast.checks import checked_rows, out_dtype, promoted
from fastssl.ops.contrast.core import statistics
from fastssl.ops.contrast.pairs import NEGATIVES, POSITIVE

try:
    from sentence_transformers.sentence_transformer import losses as theirs
except ImportError:  # before version 6
    from sentence_transformers import losses as theirs

__all__ = [
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
]

#: Directions and softmax of the symmetric losses.
SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}


class MultipleNegativesRankingLoss(theirs.MultipleNegativesRankingLoss):
    """`sentence_transformers.losses.MultipleNegativesRankingLoss`; see `fastssl.info_nce`.

    Columns are (anchor, positive, negative_1, ..., negative_n); all positives and all negatives of
    the batch are candidates. Every one of `directions`, both of `partition_mode`, hard negatives
    and `gather_across_devices` run fused; `hardness_mode` does not. Arguments, values and gradients
    are the library's.
    """

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor) -> Tensor:
        """The loss of one embedding [B, D] for each column."""
        reason = unfused(self)
        if reason is None:
            return ranking_loss(self, embeddings)
        say_once(name(self), reason, "sentence-transformers")
        return super().compute_loss_from_embeddings(embeddings, labels)


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """`sentence_transformers.losses.MultipleNegativesSymmetricRankingLoss`.

    `MultipleNegativesRankingLoss` of anchors among candidates and of positives among anchors,
    averaged.
    """

    def __init__(
        self,
        model,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = util.cos_sim,
        gather_across_devices: bool = False,
    ):
        super().__init__(model, scale, similarity_fct, gather_across_devices, **SYMMETRIC)


class CachedMultipleNegativesRankingLoss(theirs.CachedMultipleNegativesRankingLoss):
    """`sentence_transformers.losses.CachedMultipleNegativesRankingLoss`; see `fastssl.cached_step`.

    Texts are embedded in mini-batches, twice, by the library; the loss in between is that of
    `MultipleNegativesRankingLoss` over the whole batch at once: there is no matrix to cut up.
    """

    def calculate_loss(
        self, reps: list[list[Tensor]], *arguments, with_backward: bool = False, **keywords
    ) -> Tensor:
        """The loss of the columns' mini-batches, detached where it goes backward itself."""
        reason = unfused(self)
        if reason is not None:
            say_once(name(self), reason, "sentence-transformers")
            return super().calculate_loss(reps, *arguments, with_backward=with_backward, **keywords)
        loss = ranking_loss(self, [torch.cat(column) for column in reps])
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss


class CachedMultipleNegativesSymmetricRankingLoss(CachedMultipleNegativesRankingLoss):
    """`sentence_transformers.losses.CachedMultipleNegativesSymmetricRankingLoss`.

    `CachedMultipleNegativesRankingLoss` of anchors among candidates and of positives among anchors,
    averaged.
    """

    def __init__(
        self,
        model,
        scale: float = 20.0,
        similarity_fct: Callable[[Tensor, Tensor], Tensor] = util.cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        show_progress_bar: bool = False,
    ):
        newer = {}
        if mini_batch_num_tokens is not None:
            newer["mini_batch_num_tokens"] = mini_batch_num_tokens
        super().__init__(
            model,
            scale=scale,
            similarity_fct=similarity_fct,
            mini_batch_size=mini_batch_size,
            gather_across_devices=gather_across_devices,
            show_progress_bar=show_progress_bar,
            **SYMMETRIC,
            **newer,
        )


def name(loss) -> str:
    """What warnings call it."""
    return f"fastssl.compat.sentence_transformers.{type(loss).__name__}"


def unfused(loss) -> str | None:
    """Why the library has to compute this loss, or None."""
    similarity = loss.similarity_fct
    if similarity not in (util.cos_sim, util.dot_score):
        called = getattr(similarity, "__name__", type(similarity).__name__)
        return f"similarity_fct {called} is neither cos_sim nor dot_score"
    mode = getattr(loss, "hardness_mode", None)
    if mode is not None and loss.hardness_strength > 0:
        return f"hardness_mode {mode!r} weights negatives"
    return None


def ranking_loss(loss, embeddings: list[Tensor]) -> Tensor:
    """The loss with the settings of one of the modules above.

    Args:
        loss: the module: scale, similarity, directions, partition mode, whether to gather.
        embeddings: of anchors, positives and any number of negatives, each [B, D].

    Raises:
        ValueError: fewer than two columns, or their shapes do not fit.
    """
    if len(embeddings) < 2:
        raise ValueError(f"embeddings: got {len(embeddings)} column(s), must be at least 2")
    queries, *docs = promoted(*(at_least_float32(x) for x in embeddings))
    checked_rows("embeddings[0]", queries)
    for k, x in enumerate(docs, 1):
        checked_rows(f"embeddings[{k}]", x, queries, "embeddings[0]")
        if x.shape != queries.shape:
            raise ValueError(
                f"embeddings[{k}]: got shape {tuple(x.shape)}, must be that of embeddings[0], "
                f"{tuple(queries.shape)}"
            )
    batch, offset, mine = len(queries), 0, (queries, docs[0])
    across = loss.gather_across_devices and distributed.is_initialized()
    if across:
        queries, *docs = (torch.cat(gathered(x)) for x in (queries, *docs))
        offset = distributed.get_rank() * batch
        mine = (x[offset : offset + batch] for x in (queries, docs[0]))
    my_queries, my_docs = mine
    everything = docs[0] if len(docs) == 1 else torch.cat(docs)
    own = torch.arange(offset, offset + batch, device=queries.device)
    both = set(loss.directions) >= {"query_to_doc", "doc_to_query"}
    # Columns of one matrix, where no other rank and no negatives make it two.
    together = both and len(docs) == 1 and not across
    options = {"scale": loss.scale, "normalize": loss.similarity_fct is util.cos_sim}
    found = statistics(my_queries, everything, partner=own, columns=together, **options)
    positive = found.rows[POSITIVE]
    sums = [log_sum(found.rows)]
    if together:
        sums.append(log_sum(found.columns))
    elif both:
        sums.append(log_sum(statistics(my_docs, queries, partner=own, **options).rows))
    if "query_to_query" in loss.directions:
        others = statistics(my_queries, queries, excluded=own, **options)
        sums.append(others.rows[NEGATIVES])
    if "doc_to_doc" in loss.directions:
        # Documents of one query are left out, as pairs of one label are.
        whose = torch.arange(len(queries), device=queries.device).repeat(len(docs))
        others = statistics(my_docs, everything, row_labels=own, column_labels=whose, **options)
        sums.append(others.rows[NEGATIVES])
    sums = torch.stack(sums)
    total = sums.logsumexp(0) if loss.partition_mode == "joint" else sums.mean(0)
    return (total - positive).mean().to(out_dtype(my_queries))


def log_sum(side: Tensor) -> Tensor:
    """Log-sum-exp over negatives and the positive."""
    return torch.logaddexp(side[NEGATIVES], side[POSITIVE])


def at_least_float32(x: Tensor) -> Tensor:
    """The library compares half precision in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x

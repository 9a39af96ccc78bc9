"""pytorch-metric-learning's `NTXentLoss`, `SupConLoss`, `CrossBatchMemory`, without lists of pairs.

Theirs hold every positive pair against every negative one, O(M^3) numbers for M embeddings; here
memory grows with M * D. These are subclasses of the classes of the same names, so that wrappers,
trainers and testers take them for those, and this module needs the library. What cannot run fused
is left to it, with a warning.
"""

from typing import NamedTuple

import torch
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity
from pytorch_metric_learning.reducers import (
    MeanReducer,
    MultipleReducers,
    PerAnchorReducer,
    SumReducer,
    ThresholdReducer,
)
from pytorch_metric_learning.reducers.per_anchor_reducer import aggregation_func
from pytorch_metric_learning.utils import loss_and_miner_utils as pairs
from torch import Tensor

from fastssl._checks import FLOATING, compute_dtype
from fastssl.compat._fallback import say_once
from fastssl.ops.contrast.checks import inverse_temperature, out_dtype, promoted
from fastssl.ops.contrast.core import statistics
from fastssl.ops.contrast.pairs import COUNT, LABELLED, NEGATIVES, PAIRED, POSITIVE, POSITIVES

__all__ = ["CrossBatchMemory", "NTXentLoss", "SupConLoss"]


class _AllPairs(NamedTuple):
    """Instead of a tuple of indices: all pairs, but row i with column own[i] of the references."""

    own: Tensor  # int64 [M]
    memory_size: int

    def indices(self, labels: Tensor, ref_labels: Tensor):
        """The tuple of indices itself, as the library makes it."""
        found = pairs.get_all_pairs_indices(labels, ref_labels)
        return pairs.remove_self_comparisons(found, self.own, self.memory_size)


class _SeveralPositives(Exception):
    """Some anchor has more than one positive."""


class _Fused:
    """`compute_loss` from statistics of rows; what it returns is reduced by the library."""

    _kind: int

    def compute_loss(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
        """The library's dictionary of losses; see `forward` there."""
        own = indices_tuple.own if isinstance(indices_tuple, _AllPairs) else None
        reason = self._unfused(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        if reason is None:
            try:
                return self._fused(embeddings, labels, ref_emb, ref_labels, own)
            except _SeveralPositives:
                kind = type(self._loss_reducer()).__name__
                reason = f"{kind} wants each of an anchor's several positive pairs"
        name = f"fastssl.compat.pytorch_metric_learning.{type(self).__name__}"
        say_once(name, reason, "pytorch-metric-learning")
        if own is not None:
            indices_tuple = indices_tuple.indices(labels, ref_labels)
        return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def forward(self, *args, **kwargs):
        """The loss; arguments as in the library."""
        self._size = None
        loss = super().forward(*args, **kwargs)
        reducer = self._loss_reducer()
        if self._size is not None and getattr(reducer, "collect_stats", False):
            reducer.losses_size = self._size
        return loss

    def _fused(self, x, labels, ref_emb, ref_labels, own):
        itself = own is None and ref_labels is labels and ref_emb is x
        if own is None and ref_labels is labels:
            # Rows and references with the very same labels are the same samples to the library.
            own = torch.arange(len(labels), device=labels.device)
        labels, ref_labels = integers(labels, ref_labels)
        partners = self._partners(self._loss_reducer(), labels, ref_labels, own)
        y = None
        if not itself:
            x, y = promoted(x, ref_emb)
        rows = self._statistics(x, y, labels, ref_labels, own)
        positive = int(rows[COUNT].sum())
        left_out = 0 if own is None else len(x)
        negative = len(x) * len(ref_labels) - left_out - positive
        if positive == 0 or negative == 0 or (positive == 1 and negative == 1):
            return self.zero_losses()
        return {"loss": self._loss(rows, positive, partners, out_dtype(x))}

    def _statistics(self, x, y, labels, ref_labels, own) -> Tensor:
        distance, temperature = self.distance, self.temperature
        temperature = temperature.reshape(()) if isinstance(temperature, Tensor) else temperature
        scale = inverse_temperature(temperature)
        distance.reset_stats()
        distance.check_shapes(x, y)
        other = x if y is None else y
        if distance.collect_stats:
            unit = (distance.maybe_normalize(z) for z in (x, other))
            distance.set_default_stats(x, other, *unit)
        normalize = distance.normalize_embeddings
        if normalize and distance.p != 2:
            x, y = (None if z is None else distance.normalize(z) for z in (x, y))
            normalize = False
        found = statistics(
            x,
            y,
            scale=scale if distance.is_inverted else -scale,
            kind=self._kind,
            normalize=normalize,
            excluded=None if y is None else own,
            row_labels=labels,
            column_labels=None if y is None else ref_labels,
        )
        return found.rows

    def _unfused(self, embeddings, labels, indices_tuple, ref_emb, ref_labels) -> str | None:
        """Why the library has to compute this, or None."""
        distance = self.distance
        if type(self)._compute_loss is not _LIBRARYS[self._kind]._compute_loss:
            return "a subclass computes the loss of its own"
        if type(distance) not in (CosineSimilarity, DotProductSimilarity):
            return f"distance {type(distance).__name__} is neither a cosine nor a dot product"
        if distance.power != 1:
            return f"distance has power {distance.power}"
        if indices_tuple is not None and not isinstance(indices_tuple, _AllPairs):
            return "indices_tuple names the pairs (a miner's, or a wrapper's)"
        if labels is None or ref_labels is None:
            return "there are no labels"
        if isinstance(self.temperature, Tensor) and self.temperature.numel() != 1:
            return f"temperature has shape {tuple(self.temperature.shape)}"
        if not all(
            z.dim() == 2 and z.numel() and z.dtype in FLOATING for z in (embeddings, ref_emb)
        ):
            return "embeddings are no matrices of floating-point numbers with at least one row"
        if embeddings.shape[1] != ref_emb.shape[1] or embeddings.device != ref_emb.device:
            return "embeddings and ref_emb do not fit each other"
        if promoted(embeddings, ref_emb)[0].dtype != promoted(ref_emb, embeddings)[0].dtype:
            return "embeddings and ref_emb have different dtypes"
        return None

    def _loss_reducer(self):
        """The reducer of the loss itself, where there is another for the regularizer."""
        reducer = self.reducer
        if isinstance(reducer, MultipleReducers):
            known = "loss" in reducer.reducers
            return reducer.reducers["loss"] if known else reducer.default_reducer
        return reducer

    def _partners(self, reducer, labels, ref_labels, own) -> Tensor | None:
        """Each row's only positive, where the reducer needs to know it."""
        return None


class NTXentLoss(_Fused, theirs.NTXentLoss):
    """`pytorch_metric_learning.losses.NTXentLoss`; see `fastssl.pair_nt_xent`.

    Fused for `CosineSimilarity` and `DotProductSimilarity` (power 1), without `indices_tuple`, with
    `MeanReducer`, `SumReducer` or `PerAnchorReducer`, and with any reducer where no anchor has
    more than one positive, as in `SelfSupervisedLoss`. A pair's loss is not cut off at -log(tiny),
    87 in float32.

    Args:
        temperature: what similarities are divided by: a number or a tensor of one element, not 0.
        **kwargs: `distance`, `reducer`, `embedding_regularizer`, ... of the library.
    """

    _kind = PAIRED

    def _partners(self, reducer, labels, ref_labels, own):
        if type(reducer) in (MeanReducer, SumReducer):
            return None
        if type(reducer) is PerAnchorReducer and reducer.aggregation_func is aggregation_func:
            return None
        return single_positives(labels, ref_labels, own)

    def _loss(self, rows, positive, partners, dtype):
        reducer = self._loss_reducer()
        losses, count = rows[POSITIVE], rows[COUNT]
        if partners is not None:
            anchors = count.nonzero().squeeze(1)
            losses = settled(losses[anchors], reducer, dtype)
            return entry(losses.to(dtype), (anchors, partners[anchors]), "pos_pair")
        self._size = positive
        if type(reducer) is PerAnchorReducer:
            losses = (losses / count.clamp(min=1)).to(dtype)
            return entry(losses, torch.arange(len(losses), device=losses.device), "element")
        total = losses.sum()
        if type(reducer) is MeanReducer:
            total = total / positive
        return entry(total.to(dtype), None, "already_reduced")


class SupConLoss(_Fused, theirs.SupConLoss):
    """`pytorch_metric_learning.losses.SupConLoss`; see `fastssl.sup_con`.

    Fused for `CosineSimilarity` and `DotProductSimilarity` (power 1), without `indices_tuple`, with
    any reducer. With the library's default, `AvgNonZeroReducer`, the mean is over anchors with a
    loss above 0.

    Args:
        temperature: what similarities are divided by: a number or a tensor of one element, not 0.
        **kwargs: `distance`, `reducer`, `embedding_regularizer`, ... of the library.
    """

    _kind = LABELLED

    def _loss(self, rows, positive, partners, dtype):
        some = rows[COUNT] > 0
        # A row without positives: -inf and its gradients stay out.
        positives = torch.where(some, rows[POSITIVES], rows[POSITIVE])
        everything = torch.logaddexp(rows[NEGATIVES], positives)
        losses = torch.where(some, everything - rows[POSITIVE] / rows[COUNT].clamp(min=1), 0)
        losses = settled(losses, self._loss_reducer(), dtype).to(dtype)
        return entry(losses, torch.arange(len(losses), device=losses.device), "element")


_LIBRARYS = {PAIRED: theirs.NTXentLoss, LABELLED: theirs.SupConLoss}


class CrossBatchMemory(theirs.CrossBatchMemory):
    """`pytorch_metric_learning.losses.CrossBatchMemory`, without lists of pairs for a fused loss.

    The library's own wrapper takes the losses of this module too, but names all pairs to them, and
    they then leave the work to the library. Arguments, buffers and results are the library's.
    """

    def create_indices_tuple(
        self, embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons
    ):
        """The pairs, or only which column of the memory is a row's own where they need no list."""
        plain = self.miner is None and input_indices_tuple is None
        if plain and isinstance(self.loss, _Fused):
            if do_remove_self_comparisons:
                return _AllPairs(self.curr_batch_idx, self.memory_size)
            return None
        return super().create_indices_tuple(
            embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons
        )


def integers(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels as int64, equal where they were equal."""
    if labels is not ref_labels and (plain(labels) != plain(ref_labels)):
        labels, ref_labels = labels.double(), ref_labels.double()
    if plain(labels):
        return labels.long(), ref_labels.long()
    codes = torch.cat([labels, ref_labels]).unique(return_inverse=True)[1]
    return codes[: len(labels)], codes[len(labels) :]


def plain(labels: Tensor) -> bool:
    """Whether labels are integers."""
    return not labels.dtype.is_floating_point and not labels.dtype.is_complex


def single_positives(labels: Tensor, ref_labels: Tensor, own: Tensor | None) -> Tensor:
    """Int64 [M]: the column of each row's only positive; any column where it has none."""
    in_order, order = ref_labels.sort(stable=True)
    first = torch.searchsorted(in_order, labels)
    count = torch.searchsorted(in_order, labels, right=True) - first
    if int(count.max()) > (1 if own is None else 2):
        raise _SeveralPositives
    columns = order[first.clamp(max=len(order) - 1)]
    if own is None:
        return columns
    second = order[(first + 1).clamp(max=len(order) - 1)]
    return torch.where(columns == own, second, columns)


def settled(losses: Tensor, reducer, dtype: torch.dtype) -> Tensor:
    """For reducers that count losses above a threshold: 0 what the library's rounding makes 0."""
    if not isinstance(reducer, ThresholdReducer):
        return losses
    return losses.masked_fill(losses <= torch.finfo(compute_dtype(dtype)).eps / 2, 0)


def entry(losses: Tensor, indices, kind: str) -> dict:
    """What the library's reducers take."""
    return {"losses": losses, "indices": indices, "reduction_type": kind}

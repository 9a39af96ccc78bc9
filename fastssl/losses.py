"""Losses as modules. They hold arguments; the functions in fastssl.ops do the work."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastssl.memory_bank import MemoryBank, group_of, parsed_size
from fastssl.ops.contrast import (
    clip_loss,
    dcl,
    dclw,
    info_nce,
    pair_nt_xent,
    siglip_loss,
    sup_con,
)
from fastssl.ops.contrast.checks import (
    checked_pair,
    checked_reduction,
    checked_strategy,
    promoted,
)
from fastssl.ops.contrast.negatives import against_rows
from fastssl.ops.nt_xent import checked_temperature, nt_xent
from fastssl.ops.nt_xent.reference import normalize_rows


class _Loss(nn.Module):
    """A loss whose constructor takes what its function has defaults for, and `forward` does not.

    Each argument is an attribute. A 0-d parameter may be an argument, to be learned, or a tensor,
    which becomes a buffer; the values of tensors are checked at each call.
    """

    function: Callable
    _options: inspect.Signature

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "function" in cls.__dict__:
            given = inspect.signature(cls.forward).parameters
            options = [
                p.replace(kind=p.POSITIONAL_OR_KEYWORD) if p.name == "temperature" else p
                for p in _parameters(cls.function)
                if p.name not in given and p.default is not p.empty
            ]
            cls.__signature__ = cls._options = inspect.Signature(options)
        if "__init__" in cls.__dict__:
            named = list(inspect.signature(cls.__init__).parameters.values())[1:]
            if named and named[-1].kind is inspect.Parameter.VAR_KEYWORD:
                names = {p.name for p in named}
                options = [p for p in cls._options.parameters.values() if p.name not in names]
                named[-1:] = [p.replace(kind=p.KEYWORD_ONLY) for p in options]
            cls.__signature__ = inspect.Signature(named)

    def __init__(self, *arguments, **keywords):
        super().__init__()
        try:
            bound = self._options.bind(*arguments, **keywords)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        self._hold(bound.arguments)

    def _hold(self, arguments: dict) -> None:
        if not isinstance(arguments.get("temperature", 1.0), Tensor):
            checked_temperature(arguments.get("temperature", 1.0))
        checked_reduction(arguments["reduction"])
        checked_strategy(arguments["strategy"])
        for name, value in arguments.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def _call(self, *tensors, **more):
        arguments = {name: getattr(self, name) for name in self._options.parameters}
        return type(self).function(*tensors, **{**arguments, **more})

    def extra_repr(self) -> str:
        """The arguments that are not defaults, as `repr` shows them, and the temperature."""
        shown = []
        for p in inspect.signature(type(self)).parameters.values():
            value = getattr(self, p.name, p.default)
            if isinstance(value, Tensor):
                shown.append(f"{p.name}={value.detach()}")
            elif p.name == "temperature" or value != p.default:
                shown.append(f"{p.name}={value!r}")
        return ", ".join(shown)

    def __repr__(self):
        return f"{type(self).__name__}({self.extra_repr()})"


def _parameters(function) -> list[inspect.Parameter]:
    """Those of a function; **options are the keyword arguments of `dcl` but for the weights."""
    named = list(inspect.signature(function).parameters.values())
    if named[-1].kind is inspect.Parameter.VAR_KEYWORD:
        names = {"weights", *(p.name for p in named)}
        named[-1:] = [p for p in _parameters(dcl) if p.name not in names]
    return named


class NTXentLoss(_Loss):
    """NT-Xent between two views of a batch, SimCLR's loss; see `fastssl.nt_xent`.

    With a memory bank it is MoCo's: InfoNCE of `out0` against its row of `out1` and the bank's
    rows, not the other way round, without `labels`, and with margins, `reduction` and metrics as in
    `fastssl.info_nce`. Then `out1` is enqueued, normalised, if `out0` requires a gradient.

    Args:
        temperature: a number with |temperature| >= 1e-8, a 0-d parameter to be learned, or a 0-d
            tensor, which becomes a buffer. The value of a tensor is checked at each call.
        memory_bank_size: 0, or (number of rows, dim) of a memory bank. A number alone leaves the
            dimension to the first batch, and warns.
        gather_distributed: compare with the rows of all ranks of torch.distributed's default group;
            with a memory bank, enqueue those of all ranks.
        normalize: as the arguments that follow, see `fastssl.nt_xent`.
        false_negative_margin: leave out negatives that are more similar than the positive by more.
        hard_negative_margin: keep only negatives less similar than the positive by at most this.
        reduction: "mean", "sum" or "none".
        return_metrics: return (loss, metrics).
        process_group: what to use instead of the default group.
        strategy: how rows travel in a process group, "gather" or "ring".
        impl: "auto", or one of "reference", "cpu", "triton" by name.

    Raises:
        TypeError: the temperature is neither a number nor a tensor.
        ValueError: the temperature is too small, a size negative, or torch.distributed is not
            available where `gather_distributed` asks for it.
    """

    function = staticmethod(nt_xent)
    eps = 1e-8  # the least |temperature|

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
        **options,
    ):
        super().__init__(temperature, **options)
        self.memory_bank_size = memory_bank_size
        self.gather_distributed = gather_distributed
        self.memory_bank = self._bank(memory_bank_size)
        self.cross_entropy = nn.CrossEntropyLoss(reduction=self.reduction)
        if gather_distributed and not torch.distributed.is_available():
            raise ValueError(
                "gather_distributed: got True, must be False: torch.distributed is not available"
            )

    def _bank(self, memory_bank_size) -> MemoryBank | None:
        size, dim = parsed_size(memory_bank_size)
        if size == 0:
            return None
        options = {"process_group": self.process_group, "persistent": False, "normalize": False}
        return MemoryBank(size, dim, gather_distributed=self.gather_distributed, **options)

    def forward(self, out0: Tensor, out1: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of the projections of both views, each [N, D], with `labels` [N] or without."""
        if self.memory_bank is not None and len(self.memory_bank) > 0:
            return self._with_bank(out0, out1, labels)
        group = self.process_group
        group = group_of(None, self.gather_distributed) if group is None else group
        return self._call(out0, out1, labels=labels, process_group=group)

    def _with_bank(self, query: Tensor, key: Tensor, labels: Tensor | None):
        if labels is not None:
            raise ValueError("labels: are for in-batch negatives, and there is a memory bank")
        query, key = promoted(query, key)
        checked_pair("out0", query, "out1", key)
        rows = self.memory_bank.rows_for(key)
        loss = against_rows(
            query, key, rows, self.temperature,
            normalize=self.normalize, false_negative_margin=self.false_negative_margin,
            hard_negative_margin=self.hard_negative_margin, reduction=self.reduction,
            return_metrics=self.return_metrics, impl=self.impl,
        )  # fmt: skip
        if query.requires_grad and torch.is_grad_enabled():
            with torch.no_grad():
                key = normalize_rows(key).to(key.dtype) if self.normalize else key
            self.memory_bank.enqueue(key)
        return loss


class InfoNCELoss(_Loss):
    """InfoNCE of queries and keys; see `fastssl.info_nce`.

    Args:
        temperature: a number, a 0-d parameter, or a 0-d tensor, which becomes a buffer.
        symmetric: as all that follow, keyword arguments of `fastssl.info_nce`: normalize,
            false_negative_margin, hard_negative_margin, reduction, return_metrics, process_group,
            strategy, impl.
    """

    function = staticmethod(info_nce)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of `query` and `key`, [N, D], and `negatives`, [K, D] or [N, K, D]."""
        return self._call(query, key, negatives, labels=labels)


class CLIPLoss(_Loss):
    """CLIP's loss of images and texts; see `fastssl.clip_loss`.

    Args:
        normalize: as all that follow, keyword arguments of `fastssl.clip_loss`: reduction,
            return_metrics, process_group, strategy, impl.
    """

    function = staticmethod(clip_loss)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor:
        """The loss of the features, [N, D], whose products are multiplied by `logit_scale`."""
        return self._call(image_features, text_features, logit_scale, logit_bias)


class SigLIPLoss(_Loss):
    """SigLIP's loss of images and texts; see `fastssl.siglip_loss`.

    Args:
        normalize: as all that follow, keyword arguments of `fastssl.siglip_loss`: reduction,
            process_group, strategy, impl.
    """

    function = staticmethod(siglip_loss)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor,
    ) -> Tensor:
        """The loss of the features, [N, D], with logits `logit_scale` * product + `logit_bias`."""
        return self._call(image_features, text_features, logit_scale, logit_bias)


class SupConLoss(_Loss):
    """The supervised contrastive loss; see `fastssl.sup_con`.

    Args:
        temperature: a number, a 0-d parameter, or a 0-d tensor, which becomes a buffer.
        form: as all that follow, keyword arguments of `fastssl.sup_con`: normalize, reduction,
            return_metrics, process_group, strategy, impl.
    """

    function = staticmethod(sup_con)

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of `features`, [M, D], with integer `labels`, [M]."""
        more = {"references": references, "reference_labels": reference_labels}
        return self._call(features, labels, **more)


class PairNTXentLoss(_Loss):
    """NT-Xent of every pair of one label; see `fastssl.pair_nt_xent`.

    Args:
        temperature: a number, a 0-d parameter, or a 0-d tensor, which becomes a buffer.
        normalize: as all that follow, keyword arguments of `fastssl.pair_nt_xent`: reduction,
            process_group, strategy, impl.
    """

    function = staticmethod(pair_nt_xent)

    def forward(
        self,
        features: Tensor,
        labels: Tensor,
        references: Tensor | None = None,
        reference_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of `features`, [M, D], with integer `labels`, [M]."""
        more = {"references": references, "reference_labels": reference_labels}
        return self._call(features, labels, **more)


class DCLLoss(_Loss):
    """The decoupled contrastive loss of two views; see `fastssl.dcl`.

    Args:
        temperature: a number, a 0-d parameter, or a 0-d tensor, which becomes a buffer.
        normalize: as all that follow, keyword arguments of `fastssl.dcl`: reduction,
            return_metrics, process_group, strategy, impl.
    """

    function = staticmethod(dcl)

    def forward(self, z0: Tensor, z1: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of both views' projections, [N, D], with `weights` [2N] of the positives."""
        return self._call(z0, z1, weights=weights)


class DCLWLoss(_Loss):
    """`DCLLoss` with von Mises-Fisher weights; see `fastssl.dclw`.

    Args:
        temperature: a number, a 0-d parameter, or a 0-d tensor, which becomes a buffer.
        sigma: temperature of the weights.
        normalize: as all that follow, keyword arguments of `fastssl.dcl`: reduction,
            return_metrics, process_group, strategy, impl.
    """

    function = staticmethod(dclw)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss of both views' projections, each [N, D]."""
        return self._call(z0, z1)

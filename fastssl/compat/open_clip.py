"""open_clip's `ClipLoss` and `SigLipLoss`, without the matrix of logits.

The library is not needed. Features arrive normalised and `logit_scale` exponentiated, as
open_clip's models return them; all three and `logit_bias` may require gradients.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from fastssl.compat._gather import gathered
from fastssl.ops.contrast.checks import checked_pair, checked_scalar, out_dtype, promoted, reduced
from fastssl.ops.contrast.clip import clip_loss, siglip_loss
from fastssl.ops.contrast.core import statistics
from fastssl.ops.contrast.pairs import NEGATIVES, POSITIVE, SIGMOID

__all__ = ["ClipLoss", "SigLipLoss"]


class ClipLoss(nn.Module):
    """`open_clip.loss.ClipLoss`; see `fastssl.clip_loss`.

    With several ranks, value and gradients on each are open_clip's for the same flags:

    - `gather_with_grad`: gradients of the sum over ranks, which the mean that
      DistributedDataParallel takes makes exact.
    - neither flag: gradients of the features are smaller by the factor `world_size`.
    - `local_loss` alone: features of other ranks, and a rank's own as candidates, are constants.
    - `local_loss` decides whether a rank's value is that of its own rows or the mean over ranks.
      With both flags the gradient of `logit_scale` is open_clip's in the mean over ranks only.

    Args:
        local_loss: the loss of this rank's rows, rather than of all.
        gather_with_grad: gradients flow to the ranks that features came from.
        cache_labels: accepted; there are no labels but in `get_ground_truth`, which obeys it.
        rank: of this process, in the default process group.
        world_size: the number of processes; 1 looks at no process group.
        use_horovod: False, where older versions of open_clip have it.

    Raises:
        ValueError: `use_horovod`, or `rank` and `world_size` are not those of the process group.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ):
        super().__init__()
        if use_horovod:
            raise ValueError(
                "use_horovod: got True, must be False: ranks talk by torch.distributed"
            )
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.use_horovod = use_horovod
        self.prev_num_logits = 0
        self.labels = {}

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """The column of each row's positive, int64 [num_logits]; for subclasses."""
        if self.prev_num_logits == num_logits and device in self.labels:
            return self.labels[device]
        labels = torch.arange(num_logits, device=device)
        if self.world_size > 1 and self.local_loss:
            labels = labels + num_logits * self.rank
        if self.cache_labels:
            self.labels[device] = labels
            self.prev_num_logits = num_logits
        return labels

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of images among texts and of texts among images; for subclasses."""
        images, texts = image_features, text_features
        if self.world_size > 1:
            images, texts = (self._gathered(x) for x in (images, texts))
        if self.world_size > 1 and self.local_loss:
            of_images = logit_scale * image_features @ texts.T
            of_texts = logit_scale * text_features @ images.T
        else:
            of_images = logit_scale * images @ texts.T
            of_texts = of_images.T
        if logit_bias is not None:
            of_images, of_texts = of_images + logit_bias, of_texts + logit_bias
        return of_images, of_texts

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss, or {"contrastive_loss": the loss}.

        Args:
            image_features: [B, D], floating-point.
            text_features: [B, D]; row n belongs to image n.
            logit_scale: what similarities are multiplied by; a number or a tensor of one element.
            logit_bias: added to logits, likewise, or None.
            output_dict: return a dictionary.
        """
        arguments = image_features, text_features, logit_scale, logit_bias
        own = (type(self).get_logits, type(self).get_ground_truth)
        if own != (ClipLoss.get_logits, ClipLoss.get_ground_truth):
            logits = self.get_logits(*arguments)
            labels = self.get_ground_truth(image_features.device, len(logits[0]))
            loss = sum(F.cross_entropy(x, labels) for x in logits) / 2
        elif self.world_size == 1:
            loss = clip_loss(*arguments)
        else:
            loss = self._distributed(*arguments)
        return {"contrastive_loss": loss} if output_dict else loss

    def _distributed(self, images, texts, scale, bias) -> Tensor:
        group = default_group(self.rank, self.world_size)
        if self.local_loss and not self.gather_with_grad:
            return self._constant_candidates(images, texts, scale, bias)
        if not self.gather_with_grad:
            images, texts = (_Scaled.apply(x, 1 / self.world_size) for x in (images, texts))
        if not self.local_loss:
            scale, bias = (_averaged(x, group) for x in (scale, bias))
        loss = clip_loss(images, texts, scale, bias, process_group=group)
        if self.local_loss:
            return loss
        mean = loss.detach().clone()
        distributed.all_reduce(mean, group=group)
        return loss + (mean / self.world_size - loss.detach())

    def _constant_candidates(self, images, texts, scale, bias) -> Tensor:
        images, texts = promoted(images, texts)
        checked_pair("image_features", images, "text_features", texts)
        scale = checked_scalar("logit_scale", scale, images.device)
        partner = torch.arange(len(images), device=images.device) + self.rank * len(images)
        losses = 0
        for x, y in ((images, texts), (texts, images)):
            rows = statistics(
                x, self._gathered(y), scale=scale, normalize=False, partner=partner
            ).rows
            losses = losses + F.softplus(rows[NEGATIVES] - rows[POSITIVE]) / 2
        if bias is not None:
            losses = losses + 0 * checked_scalar("logit_bias", bias, images.device)
        return reduced(losses, "mean", len(images), out_dtype(images))

    def _gathered(self, x: Tensor) -> Tensor:
        """The rows of all ranks, [world_size * B, D], with the gradients that the flags say."""
        if self.gather_with_grad:
            return torch.cat(gathered(x))
        rows = [torch.empty_like(x) for _ in range(self.world_size)]
        distributed.all_gather(rows, x.detach().contiguous())
        if not self.local_loss:
            rows[self.rank] = x
        return torch.cat(rows)


class SigLipLoss(nn.Module):
    """`open_clip.loss.SigLipLoss`; see `fastssl.siglip_loss`: summed over pairs, divided by B.

    With several ranks, images meet the texts of all, and gradients flow to the ranks that texts
    came from, as with each of open_clip's ways to exchange them. Gradients of `logit_scale` and
    `logit_bias` are open_clip's in the mean over ranks.

    Args:
        cache_labels: accepted; there are no labels to cache.
        rank: of this process, in the default process group.
        world_size: the number of processes; 1 looks at no process group.
        dist_impl: "bidir" (the default), "shift": texts travel block by block; "reduce", "gather":
            all at once. The result is the same.
        chunk_size: accepted; no matrix of logits is stored that could be cut into chunks.

    Raises:
        ValueError: `dist_impl` does not exist, or `rank` and `world_size` are not those of the
            process group.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int = 0,
    ):
        super().__init__()
        allowed = ("bidir", "shift", "reduce", "gather")
        if dist_impl and dist_impl not in allowed:
            raise ValueError(f"dist_impl: got {dist_impl!r}, must be None or one of {allowed}")
        self.cache_labels = cache_labels
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl or "bidir"
        self.chunk_size = chunk_size
        self.prev_num_logits = 0
        self.labels = {}

    def get_ground_truth(
        self,
        device: torch.device,
        dtype: torch.dtype,
        num_logits: int,
        negative_only: bool = False,
    ) -> Tensor:
        """1 where image and text belong together, -1 elsewhere, [num_logits, num_logits]."""
        labels = torch.full((num_logits, num_logits), -1.0, device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1)

    def get_logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
    ) -> Tensor:
        """The logits of images and texts; for subclasses."""
        logits = logit_scale * image_features @ text_features.T
        return logits if logit_bias is None else logits + logit_bias

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss, or {"contrastive_loss": the loss}.

        Args:
            image_features: [B, D], floating-point.
            text_features: [B, D]; row n belongs to image n.
            logit_scale: what similarities are multiplied by; a number or a tensor of one element.
            logit_bias: added to logits, likewise; None counts as 0.
            output_dict: return a dictionary.
        """
        arguments = image_features, text_features, logit_scale, logit_bias
        if self.world_size == 1:
            loss = self._loss(*arguments)
        elif self._overridden():
            texts = gathered(text_features)
            loss = sum(
                self._loss(image_features, y, logit_scale, logit_bias, negative_only=k != self.rank)
                for k, y in enumerate(texts)
            )
        else:
            group = default_group(self.rank, self.world_size)
            ring = self.dist_impl in ("bidir", "shift")
            bias = 0.0 if logit_bias is None else logit_bias
            loss = siglip_loss(
                image_features, text_features, logit_scale, bias, process_group=group,
                strategy="ring" if ring else "gather",
            )  # fmt: skip
        return {"contrastive_loss": loss} if output_dict else loss

    def _overridden(self) -> bool:
        ours = SigLipLoss._loss, SigLipLoss.get_logits, SigLipLoss.get_ground_truth
        return ours != (type(self)._loss, type(self).get_logits, type(self).get_ground_truth)

    def _loss(
        self, image_features, text_features, logit_scale, logit_bias=None, negative_only=False
    ):
        """The loss of one block of texts; with `negative_only` none belongs to an image."""
        if type(self).get_logits is not SigLipLoss.get_logits or (
            type(self).get_ground_truth is not SigLipLoss.get_ground_truth
        ):
            logits = self.get_logits(image_features, text_features, logit_scale, logit_bias)
            labels = self.get_ground_truth(
                logits.device, logits.dtype, len(image_features), negative_only=negative_only
            )
            return -F.logsigmoid(labels * logits).sum() / len(image_features)
        bias = 0.0 if logit_bias is None else logit_bias
        if not negative_only:
            return siglip_loss(image_features, text_features, logit_scale, bias)
        images, texts = promoted(image_features, text_features)
        checked_pair("image_features", images, "text_features", texts)
        scale, bias = (
            checked_scalar(name, value, images.device)
            for name, value in (("logit_scale", logit_scale), ("logit_bias", bias))
        )
        rows = statistics(
            images, texts, scale=scale, kind=SIGMOID, normalize=False,
            bias=bias if isinstance(bias, Tensor) else images.new_full((), bias),
        ).rows  # fmt: skip
        return reduced(rows[NEGATIVES], "mean", len(images), out_dtype(images))


def default_group(rank: int, world_size: int):
    """The default process group, which must have this rank and size."""
    found = distributed.get_rank(), distributed.get_world_size()
    if found != (rank, world_size):
        raise ValueError(
            f"rank, world_size: got {rank}, {world_size}, must be those of the process group, "
            f"{found[0]}, {found[1]}"
        )
    return distributed.group.WORLD


class _Scaled(torch.autograd.Function):
    """The same, with a gradient times a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class _Averaged(torch.autograd.Function):
    """The same, with the mean of the ranks' gradients."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        distributed.all_reduce(grad, group=ctx.group)
        return grad / distributed.get_world_size(ctx.group), None


def _averaged(value, group):
    learned = isinstance(value, Tensor) and value.requires_grad
    return _Averaged.apply(value, group) if learned else value

"""timm's `PatchDropout`: Liu et al., "PatchDropout: Economizing Vision Transformers", 2022."""

from torch import Tensor, nn

from fastssl import masking
from fastssl.compat._draw import keyed


class PatchDropout(nn.Module):
    """Keeps max(1, int(L * (1 - prob))) random tokens of each sample while training.

    torch.manual_seed governs the draws, on every device.

    Args:
        prob: the part to drop, in [0, 1).
        num_prefix_tokens: class and register tokens in front, which stay.
        ordered: keep the tokens in raster order instead of a random one.
        return_indices: return which were kept too; a keyword of older versions of timm.

    Raises:
        ValueError: `prob` is out of range.
    """

    def __init__(
        self,
        prob: float = 0.5,
        num_prefix_tokens: int = 1,
        ordered: bool = False,
        return_indices: bool = False,
    ):
        super().__init__()
        if not 0 <= prob < 1:
            raise ValueError(f"prob: got {prob}, must be in [0, 1)")
        self.prob = prob
        self.num_prefix_tokens = num_prefix_tokens
        self.ordered = ordered
        self.return_indices = return_indices

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """The kept tokens.

        Args:
            x: [B, prefix + L, D], floating-point.

        Returns:
            [B, prefix + K, D], differentiable, or `x` itself in evaluation and for prob 0. With
            `return_indices` also int64 [B, K], counted without the prefix, or None.
        """
        kept, indices = self._drop(x)
        return (kept, indices) if self.return_indices else kept

    def _drop(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.training or self.prob == 0:
            return x, None
        batch, length = x.shape[0], x.shape[1] - self.num_prefix_tokens
        plan = masking.random_masks(
            batch,
            length,
            self.prob,
            rounding="timm",
            ordered=self.ordered,
            **keyed(batch, x.device),
        )
        return masking.gather_tokens(x, plan, prefix=self.num_prefix_tokens), plan.ids_keep

    def extra_repr(self) -> str:
        """For `print`."""
        return f"prob={self.prob}, num_prefix_tokens={self.num_prefix_tokens}"


class PatchDropoutWithIndices(PatchDropout):
    """`PatchDropout` that always returns (tokens, indices), indices None where all are kept."""

    def __init__(self, prob: float = 0.5, num_prefix_tokens: int = 1, ordered: bool = False):
        super().__init__(prob, num_prefix_tokens, ordered, return_indices=True)

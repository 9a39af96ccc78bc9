"""The plan of a mask: which patches of each sample are kept, which are removed, in which order."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(eq=False)
class MaskPlan:
    """Which of L patches are kept (visible) and which are removed, for each of B samples.

    Patches are numbered in raster order over the grid. The functions of `fastssl.masking` make
    plans and take them; a plan is a few kilobytes and holds no pixel.

    Attributes:
        ids_shuffle: int64 [B, L], every patch once: the kept ones first, in the order in which an
            encoder sees them, then the removed ones.
        ids_restore: int64 [B, L], the inverse: the place of each patch in `ids_shuffle`.
        mask: bool [B, L], True = removed.
        keep: K, how many patches are kept; the most that any sample may keep where that varies.
        grid: patches along each axis, (L,), (rows, columns) or (frames, rows, columns).
        keep_lengths: int64 [B], how many patches each sample keeps, at most K; None where all keep
            K.
    """

    ids_shuffle: Tensor
    ids_restore: Tensor
    mask: Tensor
    keep: int
    grid: tuple[int, ...]
    keep_lengths: Tensor | None = None

    def __post_init__(self):
        if self.ids_restore.dim() != 2 or self.ids_shuffle.shape != self.ids_restore.shape:
            shapes = f"{tuple(self.ids_shuffle.shape)} and {tuple(self.ids_restore.shape)}"
            raise ValueError(f"ids_shuffle, ids_restore: got shapes {shapes}, must both be [B, L]")
        for name in ("ids_shuffle", "ids_restore"):
            if getattr(self, name).dtype != torch.int64:
                raise TypeError(f"{name}: got {getattr(self, name).dtype}, must be int64")
        if self.mask.dtype != torch.bool or self.mask.shape != self.ids_restore.shape:
            got = f"{self.mask.dtype} {tuple(self.mask.shape)}"
            raise ValueError(f"mask: got {got}, must be bool {tuple(self.ids_restore.shape)}")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int):
            raise TypeError(f"keep: got {self.keep!r}, must be an integer")
        if not 0 <= self.keep <= self.length:
            raise ValueError(f"keep: got {self.keep}, must be between 0 and L = {self.length}")
        if math.prod(self.grid) != self.length:
            raise ValueError(f"grid: got {self.grid}, must have L = {self.length} patches")
        lengths = self.keep_lengths
        if lengths is not None and (lengths.dtype != torch.int64 or lengths.shape != (len(self),)):
            got = f"{lengths.dtype} {tuple(lengths.shape)}"
            raise ValueError(f"keep_lengths: got {got}, must be int64 ({len(self)},)")
        if self.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_values()

    def _check_values(self) -> None:
        limit = self.keep
        if self.keep_lengths is not None:
            limit = self.keep_lengths.unsqueeze(1)
            if ((self.keep_lengths < 0) | (self.keep_lengths > self.keep)).any():
                got = self.keep_lengths.tolist()
                raise ValueError(f"keep_lengths: got {got}, must be in [0, K] = [0, {self.keep}]")
        if not torch.equal(self.mask, self.ids_restore >= limit):
            raise ValueError(
                "mask: must be True where ids_restore is not below K, or keep_lengths; "
                "MaskPlan.from_mask makes a plan of another mask"
            )

    def __len__(self) -> int:
        return self.ids_restore.shape[0]

    @property
    def length(self) -> int:
        """L, the number of patches of a sample."""
        return self.ids_restore.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the plan is."""
        return self.ids_restore.device

    @property
    def ids_keep(self) -> Tensor:
        """int64 [B, K], the kept patches; a view.

        Where `keep_lengths` varies, row b holds keep_lengths[b] kept patches, then removed ones,
        which `gather_patches` and `gather_tokens` replace by zeros.
        """
        return self.ids_shuffle[:, : self.keep]

    @property
    def ids_removed(self) -> Tensor:
        """int64 [B, L - K], the removed patches, in the order of a masked-only prediction; a view.

        Raises:
            ValueError: the number of kept patches varies.
        """
        if self.keep_lengths is not None:
            raise ValueError("ids_removed: the number of removed patches varies; use mask")
        return self.ids_shuffle[:, self.keep :]

    @property
    def padding(self) -> Tensor | None:
        """Where `ids_keep` holds filling, bool [B, K]; None where all samples keep K.

        As `key_padding_mask` of torch.nn.MultiheadAttention takes it.
        """
        if self.keep_lengths is None:
            return None
        return torch.arange(self.keep, device=self.device) >= self.keep_lengths.unsqueeze(1)

    def to(self, device, non_blocking: bool = False) -> "MaskPlan":
        """The same plan on another device."""
        names = ("ids_shuffle", "ids_restore", "mask", "keep_lengths")
        tensors = {name: getattr(self, name) for name in names}
        moved = {
            name: x.to(device, non_blocking=non_blocking)
            for name, x in tensors.items()
            if x is not None
        }
        return replace(self, **moved)

    def trimmed(self) -> "MaskPlan":
        """The same plan with K no larger than the most that a sample of it keeps.

        Less filling for an encoder where `keep_lengths` varies; on a GPU this waits for it.
        """
        if self.keep_lengths is None or not len(self):
            return self
        return replace(self, keep=int(self.keep_lengths.max()))

    @classmethod
    def from_order(cls, ids_shuffle: Tensor, keep: int, grid=None) -> "MaskPlan":
        """The plan that keeps the first `keep` patches of each row.

        Args:
            ids_shuffle: int64 [B, L], each row a permutation of 0 to L - 1.
            keep: K.
            grid: patches along each axis; None for (L,).

        Raises:
            TypeError: `ids_shuffle` is no int64 tensor.
            ValueError: it is not [B, L] or, which is looked at on the CPU only, no permutation.
        """
        if not isinstance(ids_shuffle, Tensor) or ids_shuffle.dtype != torch.int64:
            got = getattr(ids_shuffle, "dtype", type(ids_shuffle).__name__)
            raise TypeError(f"ids_shuffle: got {got}, must be an int64 tensor")
        if ids_shuffle.dim() != 2:
            raise ValueError(f"ids_shuffle: got shape {tuple(ids_shuffle.shape)}, must be [B, L]")
        length = ids_shuffle.shape[1]
        looked_at = ids_shuffle.device.type == "cpu" and not torch.compiler.is_compiling()
        places = torch.arange(length, device=ids_shuffle.device).expand_as(ids_shuffle)
        if (
            looked_at
            and ids_shuffle.numel()
            and not 0 <= ids_shuffle.min() <= ids_shuffle.max() < length
        ):
            raise ValueError(f"ids_shuffle: must be in [0, {length})")
        ids_restore = torch.full_like(ids_shuffle, -1).scatter_(1, ids_shuffle, places)
        if looked_at and (ids_restore < 0).any():
            raise ValueError("ids_shuffle: must have every patch once in each row")
        grid = (length,) if grid is None else tuple(grid)
        return cls(ids_shuffle, ids_restore, ids_restore >= keep, keep, grid)

    @classmethod
    def from_mask(cls, mask: Tensor, grid=None, keep: int | None = None) -> "MaskPlan":
        """The plan of any mask: kept and removed patches each in raster order.

        Args:
            mask: bool [B, L] or [B, *grid], True = removed.
            grid: patches along each axis; None for the shape of the mask.
            keep: how many patches every sample keeps, or None where that varies; not checked on a
                GPU, which would wait for it.

        Raises:
            TypeError: `mask` is not bool.
            ValueError: the mask has no patch axis, or does not keep `keep` patches.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = getattr(mask, "dtype", type(mask).__name__)
            raise TypeError(f"mask: got {got}, must be a bool tensor")
        if mask.dim() < 2:
            raise ValueError(f"mask: got shape {tuple(mask.shape)}, must be [B, L] or [B, *grid]")
        grid = tuple(mask.shape[1:]) if grid is None else tuple(grid)
        mask = mask.flatten(1)
        length, lengths = mask.shape[1], (~mask).sum(1)
        if keep is None:
            keep = length
        else:
            looked_at = mask.device.type == "cpu" and not torch.compiler.is_compiling()
            if looked_at and not bool((lengths == keep).all()):
                raise ValueError(f"keep: got {keep}, the mask keeps {lengths.tolist()} patches")
            lengths = None
        places = torch.arange(length, device=mask.device)
        before = (~mask).cumsum(1)  # kept patches up to and with each
        kept = before[:, -1:] if length else before
        ids_restore = torch.where(mask, kept + places - before, before - 1)
        ids_shuffle = torch.empty_like(ids_restore)
        ids_shuffle.scatter_(1, ids_restore, places.expand_as(ids_restore))
        return cls(ids_shuffle, ids_restore, mask, keep, grid, lengths)

"""The mask generator of BEiT, iBOT and DINOv2.

Bao et al., "BEiT: BERT Pre-Training of Image Transformers", 2022; Oquab et al., "DINOv2: Learning
Robust Visual Features without Supervision", 2023.
"""

import numpy as np
import torch

from fastssl import masking
from fastssl.compat._draw import Stream


class MaskingGenerator:
    """Masks rectangles of an image until `num_masking_patches` are masked.

    Args:
        input_size: rows and columns of patches, or one number for both.
        num_masking_patches: how many to mask; None where every call says it.
        min_num_patches: least area of a rectangle.
        max_num_patches: most patches that a rectangle may add, rounded down (DINOv2 gives half of
            the patches); None for `num_masking_patches`.
        min_aspect: least height over width.
        max_aspect: greatest; None for 1 / `min_aspect`.
        exact: mask exactly `num_masking_patches`; False for as many as the original reaches, which
            gives up once no rectangle fits.
        seed: in [0, 2^63), with which the n-th call of a generator is always the same, in every
            worker of a loader too; None to follow torch.manual_seed, under which workers differ.

    Raises:
        TypeError: `seed` is no integer.
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int],
        num_masking_patches: int | None = None,
        min_num_patches: int = 4,
        max_num_patches: int | None = None,
        min_aspect: float = 0.3,
        max_aspect: float | None = None,
        *,
        exact: bool = False,
        seed: int | None = None,
    ):
        size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
        self.height, self.width = size
        self.num_patches = self.height * self.width
        self.num_masking_patches = num_masking_patches
        self.min_num_patches = min_num_patches
        self.max_num_patches = num_masking_patches if max_num_patches is None else max_num_patches
        # A whole number, or None: a rectangle adds no more than what is missing anyway.
        self._most = None if max_num_patches is None else int(max_num_patches)
        self.aspect = (min_aspect, 1 / min_aspect if max_aspect is None else max_aspect)
        self.exact = exact
        self._stream = Stream(seed)

    def get_shape(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height, self.width

    def __repr__(self) -> str:
        return (
            f"MaskingGenerator({self.height}, {self.width} -> [{self.min_num_patches} ~ "
            f"{self.max_num_patches}], max = {self.num_masking_patches}, aspect = {self.aspect})"
        )

    def __call__(self, num_masking_patches: int | None = None) -> np.ndarray:
        """The mask of one image, 1 or True = masked.

        Args:
            num_masking_patches: how many to mask, as DINOv2 calls it; None as in the constructor.

        Returns:
            [rows, columns], int64 as BEiT has it; bool, as DINOv2, with `num_masking_patches`.
        """
        mask = self.batch(1, num_masking_patches=num_masking_patches).mask
        mask = mask.view(self.get_shape()).numpy()
        return mask.astype(np.int64) if num_masking_patches is None else mask

    def batch(
        self,
        n: int,
        device: torch.device | str | None = None,
        num_masking_patches: int | torch.Tensor | None = None,
    ) -> masking.MaskPlan:
        """The plan of n images, drawn on the device.

        Args:
            n: B.
            device: None for the CPU.
            num_masking_patches: of all images, or int64 [B], of each; None as in the constructor.

        Raises:
            ValueError: there is no number of patches to mask.
        """
        counts = self.num_masking_patches if num_masking_patches is None else num_masking_patches
        if counts is None:
            raise ValueError("num_masking_patches: got None, must be an integer")
        return masking.block_masks(
            n,
            self.get_shape(),
            counts=counts,
            least=self.min_num_patches,
            most=self._most,
            aspect=self.aspect,
            exact=self.exact,
            **self._stream.keyed(n, device),
        )

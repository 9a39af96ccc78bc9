"""SimMIM's mask generator: Xie et al., "SimMIM: a Simple Framework for Masked Image Modeling"."""

import math

import numpy as np
import torch

from fastssl import masking
from fastssl.compat._draw import Stream


class MaskGenerator:
    """Masks ceil(cells * mask_ratio) square cells of an image.

    Args:
        input_size: pixels along a side of the image.
        mask_patch_size: pixels along a side of a cell; divides `input_size`.
        model_patch_size: pixels along a side of the model's patch; divides `mask_patch_size`.
        mask_ratio: in [0, 1).
        seed: in [0, 2^63), with which the n-th call of a generator is always the same, in every
            worker of a loader too; None to follow torch.manual_seed, under which workers differ.

    Raises:
        TypeError: `seed` is no integer.
        ValueError: a size does not divide the other.
    """

    def __init__(
        self,
        input_size: int = 192,
        mask_patch_size: int = 32,
        model_patch_size: int = 4,
        mask_ratio: float = 0.6,
        *,
        seed: int | None = None,
    ):
        if input_size % mask_patch_size:
            allowed = f"must divide input_size = {input_size}"
            raise ValueError(f"mask_patch_size: got {mask_patch_size}, {allowed}")
        if mask_patch_size % model_patch_size:
            allowed = f"must divide mask_patch_size = {mask_patch_size}"
            raise ValueError(f"model_patch_size: got {model_patch_size}, {allowed}")
        self.input_size = input_size
        self.mask_patch_size = mask_patch_size
        self.model_patch_size = model_patch_size
        self.mask_ratio = mask_ratio
        self.rand_size = input_size // mask_patch_size
        self.scale = mask_patch_size // model_patch_size
        self.token_count = self.rand_size**2
        self.mask_count = math.ceil(self.token_count * mask_ratio)
        self._stream = Stream(seed)

    def __call__(self) -> np.ndarray:
        """The mask of one image, int64 [rows, columns] of the model's patches, 1 = masked."""
        return self.batch(1).mask.view(self._grid()).numpy().astype(np.int64)

    def batch(self, n: int, device: torch.device | str | None = None) -> masking.MaskPlan:
        """The plan of n images, drawn on the device; None for the CPU."""
        how = {"cell": self.scale, **self._stream.keyed(n, device)}
        return masking.simmim_masks(n, self._grid(), self.mask_ratio, **how)

    def _grid(self) -> tuple[int, int]:
        return (self.rand_size * self.scale,) * 2

"""VideoMAE's mask generator.

Tong et al., "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
Pre-Training", 2022.
"""

import numpy as np
import torch

from fastssl import masking
from fastssl.compat._draw import Stream


class TubeMaskingGenerator:
    """Masks int(H * W * mask_ratio) patches of a frame, the same ones in all frames.

    Args:
        input_size: frames, rows and columns of tokens (T, H, W).
        mask_ratio: in [0, 1).
        seed: in [0, 2^63), with which the n-th call of a generator is always the same, in every
            worker of a loader too; None to follow torch.manual_seed, under which workers differ.

    Raises:
        TypeError: `seed` is no integer.
    """

    def __init__(
        self, input_size: tuple[int, int, int], mask_ratio: float, *, seed: int | None = None
    ):
        self.frames, self.height, self.width = input_size
        self.mask_ratio = mask_ratio
        self.num_patches_per_frame = self.height * self.width
        self.total_patches = self.frames * self.num_patches_per_frame
        self.num_masks_per_frame = int(mask_ratio * self.num_patches_per_frame)
        self.total_masks = self.frames * self.num_masks_per_frame
        self._stream = Stream(seed)

    def __repr__(self) -> str:
        return (
            f"TubeMaskingGenerator({self.total_masks} of {self.total_patches} tokens, "
            f"{self.num_masks_per_frame} of {self.num_patches_per_frame} in a frame)"
        )

    def __call__(self) -> np.ndarray:
        """The mask of one clip, float64 [T * H * W], 1 = masked."""
        return self.batch(1).mask.view(-1).numpy().astype(np.float64)

    def batch(self, n: int, device: torch.device | str | None = None) -> masking.MaskPlan:
        """The plan of n clips, drawn on the device; None for the CPU."""
        grid = (self.frames, self.height, self.width)
        return masking.tube_masks(n, grid, self.mask_ratio, **self._stream.keyed(n, device))

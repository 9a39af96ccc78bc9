"""What `make gpu-check` does after the build: tests on the GPU, then figures, then one table.

    python -m benchmarks.gpu_check --seconds 360

Tests and sanitizers come first, then every family's figures: those with a target, then those with
the largest gap between prediction and floor. All is written after every step, to
benchmarks/results/<gpu>.json; what is there and still holds is not done again, so that a call that
was cut off goes on. A time is kept only after parity was asserted in the same run. Needs no network
and no package beside torch, triton, pytest and this one.
"""

import sys
import time

BEGAN = time.monotonic()  # the imports take seconds, which count

from benchmarks import gpu_augment, gpu_contrast, gpu_nt_xent, gpu_patch, gpu_step  # noqa: E402
from benchmarks.gpu_driver import main  # noqa: E402
from benchmarks.gpu_measure import difference  # noqa: E402
from benchmarks.gpu_nt_xent import TEMPERATURE, views, with_gradients  # noqa: E402

__all__ = ["FAMILIES", "TEMPERATURE", "difference", "views", "with_gradients"]

FAMILIES = (gpu_nt_xent, gpu_contrast, gpu_augment, gpu_patch, gpu_step)

if __name__ == "__main__":
    sys.exit(main(FAMILIES, BEGAN))

"""The Triton kernels, for CUDA tensors."""

from fastssl._library import register_triton

register_triton("contrast", "forward", "backward", "forward_kept", "backward_kept")

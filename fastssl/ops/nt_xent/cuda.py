"""The Triton kernels, for CUDA tensors."""

from fastssl._library import register_triton

register_triton("nt_xent", "forward", "backward")

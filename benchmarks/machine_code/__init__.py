"""What GPU kernels are made of, read from their compiled code, and what that costs."""

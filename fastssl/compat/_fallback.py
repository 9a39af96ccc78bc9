"""What a drop-in says where it leaves the work to the library that it stands in for."""

import functools
import warnings


@functools.cache
def say_once(name: str, reason: str, instead: str) -> None:
    """Warn that `name` does not run fused because of `reason`, once in a process.

    Args:
        name: the drop-in.
        reason: what about the call or the module is the cause.
        instead: what computes the result.
    """
    warnings.warn(f"{name}: {reason}; not fused, {instead} computes it", stacklevel=4)

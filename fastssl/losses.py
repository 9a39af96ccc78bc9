"""Losses as modules. They hold arguments; the functions in fastssl.ops do the work."""

from torch import Tensor, nn

from fastssl.ops.nt_xent import checked_temperature, nt_xent


class NTXentLoss(nn.Module):
    """NT-Xent between two views of a batch, SimCLR's loss; see `fastssl.nt_xent`.

    Args:
        temperature: a number with |temperature| >= 1e-8, a 0-d parameter to be learned, or a 0-d
            tensor, which becomes a buffer. The value of a tensor is checked at each call.

    Raises:
        TypeError: the temperature is neither a number nor a tensor.
        ValueError: the temperature is too small.
    """

    def __init__(self, temperature: float | Tensor = 0.5):
        super().__init__()
        if isinstance(temperature, nn.Parameter):
            self.temperature = temperature
        elif isinstance(temperature, Tensor):
            self.register_buffer("temperature", temperature)
        else:
            self.temperature = checked_temperature(temperature)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of the projections of both views, each [N, D]; a 0-d tensor."""
        return nt_xent(out0, out1, self.temperature)

    def extra_repr(self) -> str:
        """The arguments, as `repr` shows them."""
        tensor = isinstance(self.temperature, Tensor)
        return f"temperature={self.temperature.detach() if tensor else self.temperature}"

"""Losses as modules. They hold arguments; the functions in fastssl.ops do the work."""

from torch import Tensor, nn

from fastssl.ops.nt_xent import nt_xent


class NTXentLoss(nn.Module):
    """NT-Xent between two views of a batch, SimCLR's loss; see `fastssl.nt_xent`.

    Args:
        temperature: a number with |temperature| >= 1e-8, or a 0-d tensor or parameter.

    Raises:
        ValueError: the temperature is too small.
    """

    def __init__(self, temperature: float | Tensor = 0.5):
        super().__init__()
        if not isinstance(temperature, Tensor) and not abs(temperature) >= 1e-8:
            raise ValueError(f"temperature: got {temperature}, |temperature| must be at least 1e-8")
        self.temperature = temperature

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The mean loss of the projections of both views, each [N, D]; a 0-d tensor."""
        return nt_xent(out0, out1, self.temperature)

    def extra_repr(self) -> str:
        """The arguments, as `repr` shows them."""
        return f"temperature={float(self.temperature)}"

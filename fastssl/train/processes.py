"""What methods say to the other processes of a run; with one process, nothing."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


def everyone() -> "dist.ProcessGroup | None":
    """The group of all processes for the fused losses, None where there is one process."""
    return dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None


@torch.no_grad()
def mean_over(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without a gradient."""
    if everyone() is None:
        return tensor
    summed = tensor.clone()
    dist.all_reduce(summed)
    return summed / dist.get_world_size()


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, on any device; torch's own wants a GPU."""

    def _check_input_dim(self, input):
        pass

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to the same; processes' batches are of equal size."""
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        numbers = x.float()
        moments = torch.stack([numbers.mean(axes), numbers.square().mean(axes)])
        mean, square = all_reduce(moments) / dist.get_world_size()
        variance = (square - mean.square()).clamp(min=0)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), rate)
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = (variance + self.eps).rsqrt()
        shift = -mean * scale
        if self.affine:
            scale = scale * self.weight
            shift = self.bias - mean * scale
        return (numbers * scale.view(shape) + shift.view(shape)).to(x.dtype)


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with batch norm over the batches of all processes, if there are several."""
    if everyone() is None:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            new = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
            new.load_state_dict(child.state_dict())
            setattr(module, name, new)
        else:
            synchronised(child, device)
    return module

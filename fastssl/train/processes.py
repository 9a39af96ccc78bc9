"""What methods say to the other processes of a run; with one process, nothing."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


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


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, whose gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _Sum.apply(grad.contiguous())


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, on any device; torch's own wants a GPU."""

    def _check_input_dim(self, input):
        pass

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to the same; processes' batches are of equal size."""
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        numbers = x if x.dtype == torch.float64 else x.float()
        shape = (1, -1, *[1] * (x.ndim - 2))
        # The mean comes first: the difference of two moments would lose the variance's digits.
        mean = _Sum.apply(numbers.mean(axes)) / dist.get_world_size()
        centred = numbers - mean.view(shape)
        variance = _Sum.apply(centred.square().mean(axes)) / dist.get_world_size()
        count = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.num_batches_tracked += 1
            rate = self.momentum
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), rate)
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with batch norm over the batches of all processes, if there are several.

    Its parameters and buffers stay the same objects.
    """
    if everyone() is None:
        return module
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            new = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
            # The parameters themselves: an optimizer may know them, and some have no gradient.
            new._parameters, new._buffers = child._parameters, child._buffers
            setattr(module, name, new.train(child.training))
        else:
            synchronised(child, device)
    return module

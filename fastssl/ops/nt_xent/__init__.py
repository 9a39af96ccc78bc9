"""NT-Xent: the contrastive loss of SimCLR, without the similarity matrix.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
equation 1. docs/nt_xent.md derives what the kernels compute.
"""

import torch
from torch import Tensor

from fastssl import _dispatch
from fastssl._autograd import applied, autocast_enabled
from fastssl._checks import FLOATING, checked_floating, compute_dtype
from fastssl.ops.nt_xent import cuda, reference, schema  # noqa: F401 (cuda registers kernels)

_dispatch.register("nt_xent", cpu="cpu", cuda="triton")


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    temperature: float | Tensor = 0.5,
    *,
    normalize: bool = True,
    reduction: str = "mean",
    labels: Tensor | None = None,
    false_negative_margin: float | None = None,
    hard_negative_margin: float | None = None,
    return_metrics: bool = False,
    process_group=None,
    strategy: str = "gather",
    impl: str = "auto",
) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Normalised-temperature cross entropy between two views of a batch.

    With z = [z0; z1] (2N rows, each divided by max(|row|, 1e-12) when `normalize`), S = z zT /
    temperature and p(i) = (i + N) mod 2N, row i's loss is logsumexp_{j != i} S_ij - S_{i p(i)}.
    No [2N, 2N] matrix is stored: memory grows with N * D. The result is the same from call to call,
    bit by bit, for the same number of threads. Differentiable twice; the second derivative goes
    through the reference and its matrix.

    Args:
        z0: projections of the first view, [N, D]; float16, bfloat16, float32 or float64; any
            strides.
        z1: projections of the second view, same shape, dtype and device.
        temperature: a number, or a 0-d tensor (learnable if it requires a gradient), with
            |temperature| >= 1e-8. On a GPU the value of a tensor is not checked: that would wait
            for the device.
        normalize: divide rows by their Euclidean norm first.
        reduction: "mean" over the 2N rows, "sum", or "none" for the rows' losses, [2N].
        labels: int [N]: rows with the label of row i, but for its partner, are no negatives of i.
        false_negative_margin: leave out negatives whose cosine exceeds the partner's by more.
        hard_negative_margin: keep only negatives whose cosine is below the partner's by at most
            this.
        return_metrics: return (loss, metrics); see `fastssl.info_nce`.
        process_group: a torch.distributed group: the rows of all its ranks are candidates; see
            `fastssl.info_nce` for what a rank returns.
        strategy: how rows travel in a process group, "gather" or "ring".
        impl: "auto", or one of "reference", "cpu", "triton" by name.

    Returns:
        The loss in the inputs' dtype; half-precision inputs are computed in float32 throughout, and
        inside torch.autocast give a float32 loss.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices, temperature, `reduction` or `impl` are not acceptable.
        RuntimeError: `impl` cannot run here.
    """
    autocast = autocast_enabled(z0)
    both = autocast and isinstance(z1, Tensor) and {z0.dtype, z1.dtype} <= set(FLOATING)
    if both and z0.dtype != z1.dtype:
        dtype = torch.promote_types(z0.dtype, z1.dtype)
        z0, z1 = z0.to(dtype), z1.to(dtype)
    temperature, tau = _check(z0, z1, temperature, normalize, reduction, process_group)
    masks = labels, false_negative_margin, hard_negative_margin
    if return_metrics or process_group is not None or any(m is not None for m in masks):
        from fastssl.ops.contrast import views

        return views.nt_xent(
            z0, z1, tau if temperature is None else temperature, normalize, reduction, impl,
            *masks, return_metrics, process_group, strategy,
        )  # fmt: skip
    if strategy != "gather":
        from fastssl.ops.contrast.checks import checked_strategy

        checked_strategy(strategy)
    out_dtype = torch.promote_types(z0.dtype, torch.float32) if autocast else z0.dtype
    chosen = _dispatch.choose("nt_xent", impl, z0.device)
    if impl == "reference":
        loss = reference.nt_xent(
            z0, z1, tau if temperature is None else temperature, normalize, reduction
        )
    else:
        loss, _, _ = _differentiable(z0, z1, temperature, tau, normalize, reduction, chosen)
    return loss if loss.dtype == out_dtype else loss.to(out_dtype)


def _check(z0, z1, temperature, normalize, reduction, group) -> tuple[Tensor | None, float]:
    for name, z in (("z0", z0), ("z1", z1)):
        checked_floating(name, z, 2, "[N, D]")
        # An empty shard of a process group is an error of all ranks, raised later.
        if (z.shape[0] == 0 and group is None) or z.shape[1] == 0:
            raise ValueError(f"{name}: got shape {tuple(z.shape)}, N and D must be at least 1")
    if z0.shape != z1.shape:
        raise ValueError(f"z1: got shape {tuple(z1.shape)}, must be that of z0, {tuple(z0.shape)}")
    if z0.dtype != z1.dtype:
        raise TypeError(f"z1: got dtype {z1.dtype}, must be that of z0, {z0.dtype}")
    if z0.device != z1.device:
        raise ValueError(f"z1: got device {z1.device}, must be that of z0, {z0.device}")
    if not isinstance(normalize, bool):
        raise TypeError(f"normalize: got {normalize!r}, must be True or False")
    if reduction not in schema.REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, must be one of {schema.REDUCTIONS}")
    return _check_temperature(temperature, z0)


def checked_temperature(temperature: float) -> float:
    """The number itself; raises TypeError or ValueError where it is no usable temperature."""
    try:
        tau = float(temperature)
    except (TypeError, ValueError):
        raise TypeError(f"temperature: got {temperature!r}, must be a number or tensor") from None
    if not abs(tau) >= 1e-8:
        raise ValueError(f"temperature: got {tau}, |temperature| must be at least 1e-8")
    return tau


def _check_temperature(temperature, z0) -> tuple[Tensor | None, float]:
    if not isinstance(temperature, Tensor):
        return None, checked_temperature(temperature)
    if temperature.dim() != 0:
        raise ValueError(f"temperature: got shape {tuple(temperature.shape)}, must be 0-d")
    if temperature.dtype not in FLOATING:
        raise TypeError(f"temperature: got dtype {temperature.dtype}, must be floating-point")
    if temperature.device.type == "cpu" and not torch.compiler.is_compiling():
        checked_temperature(temperature.detach().item())
    dtype = compute_dtype(z0.dtype)
    return temperature.to(device=z0.device, dtype=dtype), 0.0


def _kernels(impl: str):
    """The raw operators, or Triton's launchers where they run on CPU tensors in its interpreter."""
    if impl == "triton" and _dispatch.INTERPRET:
        from fastssl.ops.nt_xent import triton

        return triton.forward, triton.backward
    return torch.ops.fastssl.nt_xent_forward, torch.ops.fastssl.nt_xent_backward


class _NTXent(torch.autograd.Function):
    @staticmethod
    def forward(z0, z1, temperature, tau, normalize, reduction, impl):
        forward, _ = _kernels(impl)
        return forward(z0, z1, temperature, tau, normalize, schema.REDUCTIONS.index(reduction))

    @staticmethod
    def setup_context(ctx, inputs, output):
        z0, z1, temperature, *ctx.options = inputs
        _, lse, miss = output
        ctx.mark_non_differentiable(lse, miss)
        ctx.set_materialize_grads(False)  # else two launches would make zeros for lse and miss
        ctx.save_for_backward(z0, z1, temperature, lse, miss)

    @staticmethod
    def backward(ctx, grad, _lse, _miss):
        if grad is None:
            return (None,) * 7
        # A graph of the gradient is only wanted where grad mode is on (create_graph=True).
        gradient = _NTXentBackward.apply if torch.is_grad_enabled() else _NTXentBackward.forward
        grads = gradient(grad, *ctx.saved_tensors, *ctx.options)
        needed = ctx.needs_input_grad[:3]
        return *(g if need else None for g, need in zip(grads, needed, strict=True)), *[None] * 4


class _NTXentBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that it has one: that of the reference."""

    @staticmethod
    def forward(grad, z0, z1, temperature, lse, miss, tau, normalize, reduction, impl):
        _, backward = _kernels(impl)
        return backward(
            grad, z0, z1, temperature, tau, normalize, schema.REDUCTIONS.index(reduction), lse, miss
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        grad, z0, z1, temperature, _, _, *ctx.options = inputs
        ctx.save_for_backward(grad, z0, z1, temperature)

    @staticmethod
    def backward(ctx, *grads):
        grad, z0, z1, temperature = ctx.saved_tensors
        tau, normalize, reduction, _ = ctx.options
        with torch.enable_grad():
            wanted = [z0, z1] if temperature is None else [z0, z1, temperature]
            wanted = [x if x.requires_grad else x.detach().requires_grad_() for x in wanted]
            grad = grad if grad.requires_grad else grad.detach().requires_grad_()
            loss = reference.nt_xent(
                *wanted[:2], tau if temperature is None else wanted[2], normalize, reduction
            )
            first = torch.autograd.grad(loss, wanted, grad, create_graph=True)
        second = torch.autograd.grad(
            first,
            [grad, *wanted],
            grads[: len(first)],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
        return *second, *[None] * (10 - len(second))


_differentiable = applied(_NTXent)

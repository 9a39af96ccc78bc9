"""A training step on batches larger than the encoder's memory: gradient caching.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021.
docs/cached_step.md says what it computes and costs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fastssl._checks import checked_integer
from fastssl._replay import Buffers, random_state

BATCH_NORM = ("chunk", "fixed")


def cached_step(
    encoder: nn.Module | Sequence[nn.Module],
    views: Sequence,
    loss: Callable,
    *,
    chunk_size: int | None = None,
    batch_norm: str = "chunk",
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Tensor | tuple[Tensor, Any]:
    """Forward and backward of a loss over embeddings, with the memory of one chunk's activations.

    Embeds all views chunk by chunk without a graph, computes the loss and its gradient with respect
    to all embeddings, and goes through the chunks again, with the random state each had, to
    backpropagate. Gradients are added to `.grad` and equal those of
    ``loss(*(encoder(view) for view in views)).backward()`` up to rounding, batch norm apart; an
    optimizer step is left to the caller. Memory: the activations of one chunk, all embeddings and
    their gradients. Time: one more forward pass of the encoder.

        loss = cached_step(encoder, (view0, view1), NTXentLoss(0.1), chunk_size=256)
        optimizer.step()

    In both passes a chunk sees the same random numbers (torch's global generators on the CPU and on
    the devices of views and encoders, Python's and NumPy's), the same autocast, and the same
    buffers of modules that train. The state after the step is that after the first pass: each
    buffer is updated once for each chunk. State that is neither (attributes, a
    `torch.Generator` of the module's own) is not put back.

    Batch norm that trains normalises each chunk by its own statistics (`batch_norm="chunk"`), and
    moves its running statistics once for each chunk: gradients are exact for that, which is not
    what a pass over the whole batch computes. ``"fixed"`` normalises by the running statistics and
    leaves them alone, whatever the chunks. `SyncBatchNorm` takes a chunk's statistics over all
    processes, which must then have equally many chunks.

    `DistributedDataParallel`, anywhere in an encoder, reduces once: in the backward pass of its
    last chunk. Parameters of the loss that the wrapped module holds (CLIP's logit scale) need
    ``find_unused_parameters=True``; those outside of any are the caller's to reduce. Inside
    ``no_sync()`` nothing is reduced, so that steps accumulate as usual.

    Args:
        encoder: a module for all views, or a sequence with one for each view, in which a module may
            occur more than once. Returns a floating-point tensor, the batch first.
        views: for each view a tensor, or a tuple or mapping of tensors, which become positional or
            keyword arguments of the encoder. All tensors of a view have the batch first, [N, ...],
            and are sliced along it; N may differ between views. A tensor that requires a gradient
            gets it.
        loss: called once with the embeddings of all views, [N, ...] each, as positional arguments;
            returns a scalar, or a tuple (scalar, metrics). It may depend on parameters, which get
            their gradients, and need not depend on all views.
        chunk_size: rows that pass the encoder at a time; None is the usual step: all views at once,
            one forward pass.
        batch_norm: "chunk" or "fixed"; see above.
        backward: called instead of ``loss.backward()``, such as `fabric.backward` or
            ``lambda x: scaler.scale(x).backward()``: first with the loss, then for each chunk with
            a scalar of value 0 that carries the chunk's gradients, which its scale does not change.

    Returns:
        The detached loss, or (loss, metrics), tensors among the metrics detached.

    Raises:
        TypeError: an argument has the wrong type, or an encoder does not return a tensor.
        ValueError: sizes do not fit, `batch_norm` is no choice, the loss is not a scalar or depends
            on nothing that is trained, batch norm has no running statistics to be fixed at, or DDP
            has a static graph.
        RuntimeError: gradients are switched off.
    """
    inputs = _checked_views(views)
    encoders = _checked_encoders(encoder, len(inputs))
    if not callable(loss):
        raise TypeError(f"loss: got {type(loss).__name__}, must be callable")
    if chunk_size is not None:
        checked_integer("chunk_size", chunk_size, 1)
    if batch_norm not in BATCH_NORM:
        raise ValueError(f"batch_norm: got {batch_norm!r}, must be one of {BATCH_NORM}")
    if not callable(backward):
        raise TypeError(f"backward: got {type(backward).__name__}, must be callable")
    if not torch.is_grad_enabled():
        raise RuntimeError("cached_step: needs gradients, which are switched off here (no_grad)")
    # Or weights that were changed inside autocast would be used as they were before.
    torch.clear_autocast_cache()
    with _fixed_batch_norm(encoders) if batch_norm == "fixed" else ExitStack():
        chunks = _chunks(inputs, encoders, chunk_size)
        if chunk_size is None or len(chunks) == 1:
            return _plain(chunks, loss, backward)
        if any(ddp.static_graph for ddp in _last_chunks(chunks)):
            raise ValueError("encoder: DistributedDataParallel's static_graph cannot be chunked")
        return _cached(chunks, inputs, loss, backward)


class _View(NamedTuple):
    """Tensors with the batch first, and the keywords they go by, if any."""

    name: str
    tensors: tuple[Tensor, ...]
    keys: tuple[str, ...] | None

    def rows(self) -> int:
        return len(self.tensors[0])


class _Chunk(NamedTuple):
    """Rows of a view and the encoder they pass."""

    number: int
    view: _View
    rows: slice
    encoder: nn.Module
    name: str

    def embed(self, tensors: Sequence[Tensor]) -> Tensor:
        if self.view.keys is None:
            z = self.encoder(*tensors)
        else:
            z = self.encoder(**dict(zip(self.view.keys, tensors, strict=True)))
        if not isinstance(z, Tensor):
            raise TypeError(f"{self.name}: returned {type(z).__name__}, must return a tensor")
        count = len(tensors[0])
        if not z.is_floating_point():
            raise TypeError(f"{self.name}: returned dtype {z.dtype}, must be floating-point")
        if z.dim() == 0 or len(z) != count:
            raise ValueError(
                f"{self.name}: returned shape {tuple(z.shape)} for {count} rows of "
                f"{self.view.name}, must be [{count}, ...]"
            )
        return z


def _plain(chunks: list[_Chunk], loss: Callable, backward: Callable):
    embeddings = []
    last = _last_chunks(chunks)
    for i, chunk in enumerate(chunks):
        # DDP copes with several forward passes, but would broadcast buffers before each.
        with _reducing(chunk, last, i):
            embeddings.append(chunk.embed(chunk.view.tensors))
    value, metrics = _value(loss(*embeddings))
    backward(value)
    return _result(value, metrics)


def _cached(chunks: list[_Chunk], inputs: list[_View], loss: Callable, backward: Callable):
    embeddings: list[Tensor] = [None] * len(inputs)
    buffers = Buffers([chunk.encoder for chunk in chunks])
    devices = _devices(chunks)
    moments = []
    with torch.no_grad():
        for chunk in chunks:
            moments.append((random_state(devices), buffers.save()))
            z = chunk.embed([x[chunk.rows] for x in chunk.view.tensors])
            if embeddings[chunk.number] is None:
                embeddings[chunk.number] = z.new_empty((chunk.view.rows(), *z.shape[1:]))
            embeddings[chunk.number][chunk.rows] = z
    after = buffers.save()
    # Whether weights that were cast without a graph are cast again depends on torch's version.
    torch.clear_autocast_cache()
    for z in embeddings:
        z.requires_grad_()
    value, metrics = _value(loss(*embeddings))
    backward(value)
    result = _result(value, metrics)
    restore_random = random_state(devices)
    # Neither the loss's graph nor the embeddings are needed any longer.
    grads = [z.grad for z in embeddings]
    del embeddings, value, metrics, z

    wanted = [(c, m) for c, m in zip(chunks, moments, strict=True) if grads[c.number] is not None]
    last = _last_chunks([chunk for chunk, _ in wanted])
    of_inputs = {
        (i, j): torch.zeros_like(x)
        for i, view in enumerate(inputs)
        for j, x in enumerate(view.tensors)
        if x.requires_grad and grads[i] is not None
    }
    frozen = set()
    for i, (chunk, (restore, moment)) in enumerate(wanted):
        if chunk.number in frozen:
            continue
        restore()
        buffers.restore(moment)
        tensors = [
            x[chunk.rows].detach().requires_grad_(x.requires_grad) for x in chunk.view.tensors
        ]
        with _reducing(chunk, last, i):
            z = chunk.embed(tensors)
            if z.requires_grad:
                backward(_Gradients.apply([grads[chunk.number][chunk.rows]], z))
            else:
                frozen.add(chunk.number)
        del z
        for j, x in enumerate(tensors):
            if x.grad is not None:
                of_inputs[chunk.number, j][chunk.rows] = x.grad
    buffers.restore(after)
    restore_random()
    if of_inputs:
        # At once, since what the views were computed by has one graph for all chunks.
        tensors = [inputs[i].tensors[j] for i, j in of_inputs]
        backward(_Gradients.apply(list(of_inputs.values()), *tensors))
    return result


class _Gradients(torch.autograd.Function):
    """A zero whose backward pass hands out gradients that are known, whatever it is given.

    They come out of the loss and have its scale, so that they must not be scaled once more.
    """

    @staticmethod
    def forward(ctx, grads: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.grads = grads
        return tensors[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, _):
        return None, *ctx.grads


def _chunks(inputs: list[_View], encoders: list[nn.Module], size: int | None) -> list[_Chunk]:
    several = len({id(encoder) for encoder in encoders}) > 1
    chunks = []
    for i, (view, encoder) in enumerate(zip(inputs, encoders, strict=True)):
        name = f"encoder[{i}]" if several else "encoder"
        for start in range(0, view.rows(), size or view.rows()):
            rows = slice(start, min(start + (size or view.rows()), view.rows()))
            chunks.append(_Chunk(i, view, rows, encoder, name))
    return chunks


def _distributed(encoder: nn.Module) -> list[DistributedDataParallel]:
    return [m for m in encoder.modules() if isinstance(m, DistributedDataParallel)]


def _last_chunks(chunks: list[_Chunk]) -> dict[DistributedDataParallel, int]:
    """The last of the chunks that pass each DDP module."""
    return {ddp: i for i, chunk in enumerate(chunks) for ddp in _distributed(chunk.encoder)}


@contextmanager
def _reducing(chunk: _Chunk, last: dict[DistributedDataParallel, int], number: int) -> Iterator:
    with ExitStack() as stack:
        for ddp in _distributed(chunk.encoder):
            if last[ddp] != number:
                stack.enter_context(ddp.no_sync())
        yield


def _devices(chunks: list[_Chunk]) -> list[torch.device]:
    found = {x.device for chunk in chunks for x in chunk.view.tensors}
    for encoder in {chunk.encoder for chunk in chunks}:
        found |= {x.device for x in (*encoder.parameters(), *encoder.buffers())}
    return [device for device in found if device.type not in ("cpu", "meta")]


@contextmanager
def _fixed_batch_norm(encoders: list[nn.Module]) -> Iterator:
    changed = []
    for encoder in dict.fromkeys(encoders):
        for name, module in encoder.named_modules():
            if isinstance(module, _BatchNorm) and module.training:
                if module.running_mean is None:
                    raise ValueError(
                        f"batch_norm: got 'fixed', but {name or 'the encoder'} has no running "
                        f"statistics"
                    )
                changed.append(module)
    for module in changed:
        module.training = False
    try:
        yield
    finally:
        for module in changed:
            module.training = True


def _value(returned) -> tuple[Tensor, Any]:
    value, metrics = returned, ()
    if isinstance(returned, tuple):
        if len(returned) != 2:
            raise TypeError(
                f"loss: returned a tuple of {len(returned)}, must return a scalar or "
                f"(scalar, metrics)"
            )
        value, metrics = returned[0], (returned[1],)
    if not isinstance(value, Tensor):
        raise TypeError(f"loss: returned {type(value).__name__}, must return a tensor")
    if value.numel() != 1:
        raise ValueError(f"loss: returned shape {tuple(value.shape)}, must be a scalar")
    if not value.requires_grad:
        raise ValueError("loss: depends on no embedding and no parameter that requires a gradient")
    return value, metrics


def _result(value: Tensor, metrics: tuple):
    return (value.detach(), *(_detached(x) for x in metrics)) if metrics else value.detach()


def _detached(x):
    if isinstance(x, Tensor):
        return x.detach()
    if type(x) in (list, tuple):
        return type(x)(_detached(y) for y in x)
    return {k: _detached(y) for k, y in x.items()} if type(x) is dict else x


def _checked_encoders(encoder, count: int) -> list[nn.Module]:
    if not isinstance(encoder, (list, tuple, nn.ModuleList)):
        if not isinstance(encoder, nn.Module):
            raise TypeError(
                f"encoder: got {type(encoder).__name__}, must be a module or a sequence of modules"
            )
        return [encoder] * count
    for i, module in enumerate(encoder):
        if not isinstance(module, nn.Module):
            raise TypeError(f"encoder[{i}]: got {type(module).__name__}, must be a module")
    if len(encoder) != count:
        raise ValueError(f"encoder: got {len(encoder)} modules, must be one for each view, {count}")
    return list(encoder)


def _checked_views(views) -> list[_View]:
    if not isinstance(views, (list, tuple)):
        raise TypeError(f"views: got {type(views).__name__}, must be a list or tuple of views")
    if not views:
        raise ValueError("views: got none, must be at least one")
    return [_checked_view(f"views[{i}]", view) for i, view in enumerate(views)]


def _checked_view(name: str, view) -> _View:
    keys = None
    if isinstance(view, Tensor):
        named = {name: view}
    elif isinstance(view, Mapping):
        keys = tuple(view)
        named = {f"{name}[{key!r}]": x for key, x in view.items()}
    elif isinstance(view, (list, tuple)):
        named = {f"{name}[{i}]": x for i, x in enumerate(view)}
    else:
        raise TypeError(
            f"{name}: got {type(view).__name__}, must be a tensor, or a tuple or mapping of tensors"
        )
    if not named:
        raise ValueError(f"{name}: got no tensors, must be at least one")
    first = None
    for part, x in named.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{part}: got {type(x).__name__}, must be a tensor")
        if x.dim() == 0 or len(x) == 0:
            raise ValueError(f"{part}: got shape {tuple(x.shape)}, must be [N, ...] with N >= 1")
        if first is not None and len(x) != first:
            raise ValueError(f"{part}: got {len(x)} rows, the view's first tensor has {first}")
        first = len(x)
    return _View(name, tuple(named.values()), keys)

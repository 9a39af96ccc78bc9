"""A training step recorded once as a CUDA graph and replayed: one launch instead of hundreds.

A graph repeats addresses and numbers. What differs from step to step therefore stands in tensors
that keep their place and are written before each replay: the batch, the ids of its samples, the
step's number, of which all random draws are a function, and the learning rates. The first steps of
a process are taken eagerly on a stream of their own, so that kernels are compiled, libraries have
their workspaces and the optimizer its state; they are steps of the run like any other. Recording
executes nothing: the step during which it happens is the first replay.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastssl.train.errors import UsageError

#: Eager steps before the recording; PyTorch's own advice.
WARM_UP = 3

#: A step on tensors: inputs, sample ids, number of the step.
Step = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]


def check(device: torch.device, processes: int) -> None:
    """Checks that steps can be recorded on a device by one of so many processes.

    Raises:
        UsageError: it is no CUDA device, or there are several processes.
    """
    if processes > 1:
        raise UsageError(
            f"cuda_graph: cannot be combined with {processes} processes, whose messages are not "
            f"recorded"
        )
    if device.type != "cuda":
        raise UsageError(f"cuda_graph: needs a CUDA device, this run would be on {device.type}")


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Lets an optimizer that has no state yet keep all of it on a CUDA device.

    One kernel for many parameters, which reads the learning rate and counts steps on the device.
    """
    if device.type != "cuda":
        return
    for group in optimizer.param_groups:
        wanted = {"capturable": True, "fused": True, "foreach": False}
        group.update({name: value for name, value in wanted.items() if name in group})


class CudaGraphs:
    """Warms up and records on a stream of its own; replays on the current one.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Runs a function as it will be recorded, after all that was asked of the device."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Records a function, of which the device executes nothing yet.

        Returns:
            What replays it, and returns what the function did: tensors that each replay fills.
        """
        graph = torch.cuda.CUDAGraph()
        # Autocast may keep its casts of the weights: it begins and ends within the function, so
        # that each replay makes them anew. Not "global": threads that read images may pin memory.
        options = {"stream": self.stream, "capture_error_mode": "thread_local"}
        # The outer one, because torch's own context does not leave its stream where it fails.
        outer = torch.cuda.stream(torch.cuda.current_stream(self.stream.device))
        with outer, torch.cuda.graph(graph, **options):
            result = function()

        def replay():
            graph.replay()
            return result

        return replay


class Replayed:
    """The steps of a run: the first few eagerly, the others as replays of one recording.

    Args:
        step: takes a step; what it decides on the host is decided when it is recorded.
        optimizer: that the step uses, after `make_capturable`. Between calls its learning rates
            are the numbers that a scheduler has set; of its other options those hold that it had
            when the step was recorded.
        graphs: `CudaGraphs`, or what stands for them in tests.
    """

    def __init__(self, step: Step, optimizer: Optimizer, graphs: CudaGraphs):
        self.step, self.optimizer, self.graphs = step, optimizer, graphs
        self.taken = 0
        self.buffers: tuple[Tensor, Tensor, Tensor] | None = None
        self.rates: list[Tensor] = []
        self.replay: Callable[[], dict[str, Tensor]] | None = None

    def __call__(self, inputs: Tensor, sample_ids: Tensor, step: int) -> dict[str, Tensor]:
        """Takes a step.

        Args:
            inputs: of the shape that they have at each call.
            sample_ids: int64 [N].
            step: its number.

        Returns:
            The step's scalars; the next call may write over them.

        Raises:
            UsageError: the step cannot be recorded.
        """
        if self.buffers is None:
            self._allocate(inputs, sample_ids)
        self._fill(inputs, sample_ids, step)
        with self._tensor_rates():
            if self.taken < WARM_UP:
                logs = self._warmed_up()
            else:
                if self.replay is None:
                    self.replay = self._captured()
                logs = self.replay()
        self.taken += 1
        return logs

    def _take(self) -> dict[str, Tensor]:
        # Without the graph behind them: it would keep the activations of a recording.
        return {name: value.detach() for name, value in self.step(*self.buffers).items()}

    def _allocate(self, inputs: Tensor, sample_ids: Tensor) -> None:
        device = inputs.device
        number = torch.zeros((), dtype=torch.int64, device=device)
        self.buffers = torch.empty_like(inputs), torch.empty_like(sample_ids), number
        # Fused optimizers read float32 on a GPU; elsewhere nothing shall be lost.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self.rates = [torch.zeros((), dtype=dtype, device=device) for _ in self._groups]

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _fill(self, inputs: Tensor, sample_ids: Tensor, step: int) -> None:
        kept_inputs, kept_ids, number = self.buffers
        if inputs.shape != kept_inputs.shape:
            was, got = tuple(kept_inputs.shape), tuple(inputs.shape)
            raise ValueError(f"inputs: got shape {got}, those of earlier steps have {was}")
        kept_inputs.copy_(inputs)
        kept_ids.copy_(sample_ids)
        # Filled in, not copied, which would wait for the device.
        number.fill_(step)
        for group, rate in zip(self._groups, self.rates, strict=True):
            rate.fill_(group["lr"])

    @contextmanager
    def _tensor_rates(self) -> Iterator[None]:
        """The optimizer reads its rates from tensors; schedulers and checkpoints see numbers."""
        numbers = [group["lr"] for group in self._groups]
        try:
            for group, rate in zip(self._groups, self.rates, strict=True):
                group["lr"] = rate
            yield
        finally:
            for group, number in zip(self._groups, numbers, strict=True):
                group["lr"] = number

    def _warmed_up(self) -> dict[str, Tensor]:
        with warnings.catch_warnings():
            # The optimizer sees a step without a recording and takes its settings for a mistake.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            return self.graphs.warm_up(self._take)

    def _captured(self) -> Callable[[], dict[str, Tensor]]:
        try:
            return self.graphs.capture(self._take)
        except torch.OutOfMemoryError as error:
            raise UsageError(
                "cuda_graph: no memory left for a recording, which keeps a pool of its own; train "
                "without, or with a smaller batch"
            ) from error
        # Libraries raise what they like; what they say is of a call that a graph cannot hold.
        except Exception as error:
            first = error
            while first.__context__ is not None:
                first = first.__context__
            said = (str(first) or type(first).__name__).splitlines()[0]
            raise UsageError(
                f"cuda_graph: this step cannot be recorded, train without: {said}"
            ) from error

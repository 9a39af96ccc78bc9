"""What all measures on a GPU share: steps, times, captured graphs, failures that stay put."""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.measure import Missing

#: The name of what is measured, among the implementations of a case; the others are its peers.
OURS = "fastssl"
#: How torch and cuBLAS say that a GPU has no memory left.
NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Target:
    """A figure to aim at: `limit` bounds the result's entry `key`, from above if not `at_least`.

    It holds on `card`, a part of a GPU's name, or on all.
    """

    limit: float
    key: str = "ms"
    unit: str = "ms"
    at_least: bool = False
    card: str | None = "H200"

    def applies(self, gpu: str) -> bool:
        """Whether it holds on this card."""
        return self.card is None or self.card in gpu

    def met(self, result: dict) -> bool | None:
        """None where the figure is missing."""
        found = result.get(self.key)
        if found is None:
            return None
        return found >= self.limit if self.at_least else found <= self.limit


@dataclass(frozen=True)
class Step:
    """One implementation at one size.

    `run` is given a clock and a dict that it fills as it goes, so that what it found before it
    failed is kept. `seconds` is what it takes at most, as a rule.
    """

    family: str
    case: str
    size: dict
    impl: str
    run: Callable[["Clock", dict], None]
    seconds: float = 5
    target: Target | None = None

    @property
    def ours(self) -> bool:
        """Not a peer."""
        return self.impl == OURS

    @property
    def place(self) -> str:
        """The same for all implementations of a case at a size."""
        size = ", ".join(f"{key} {value}" for key, value in self.size.items())
        return f"{self.family}: {self.case}; {size}" if size else f"{self.family}: {self.case}"

    @property
    def name(self) -> str:
        """The place and the implementation: what a result is kept by."""
        return f"{self.place}; {self.impl}"


def _by_events() -> tuple[Callable[[], None], Callable[[], float]]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def stop() -> float:
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return start.record, stop


def _by_host() -> tuple[Callable[[], None], Callable[[], float]]:
    began = []
    return (
        lambda: began.append(time.perf_counter()),
        lambda: 1e3 * (time.perf_counter() - began[-1]),
    )


def milliseconds(
    call,
    least: int = 5,
    budget: float = 1.5,
    before: Callable = lambda: None,
    stopwatch: Callable = _by_events,
) -> tuple[float, int]:
    """Median time of single calls, warm, and their number: as many as fit `budget` seconds.

    `before` is called ahead of each, untimed.
    """
    call()
    times = []
    began = time.monotonic()
    while len(times) < least or (time.monotonic() - began < budget and len(times) < 100):
        start, stop = stopwatch()
        before()
        start()
        call()
        times.append(stop())
        if times[0] > 1000 * budget and len(times) >= 3:
            break
    return statistics.median(times), len(times)


class Clock:
    """Times calls on a device: with CUDA events on a GPU, with the host's clock elsewhere.

    Attributes:
        device: where steps put their tensors.
        name: the device's, which is also the results' file's.
        gpu: whether there are events, graphs and memory to count.
    """

    def __init__(self, device: str = "cuda", name: str | None = None):
        self.device = torch.device(device)
        self.gpu = self.device.type == "cuda"
        self.name = name or (torch.cuda.get_device_name() if self.gpu else "CPU")
        self.stopwatch = _by_events if self.gpu else _by_host

    def milliseconds(self, call: Callable, budget: float = 0.5, **options) -> tuple[float, int]:
        """See the function of this name."""
        return milliseconds(call, budget=budget, stopwatch=self.stopwatch, **options)

    def replayed(self, call: Callable, budget: float = 0.5, **options) -> float:
        """Milliseconds of the captured call: what remains without Python and launch costs."""
        if not self.gpu:
            return self.milliseconds(call, budget, **options)[0]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()
        result = self.milliseconds(graph.replay, budget, **options)[0]
        del kept
        return result

    def peak_mib(self, call: Callable) -> float | None:
        """Memory that a call adds at its peak."""
        if not self.gpu:
            call()
            return None
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.gpu:
            torch.cuda.synchronize()

    def alive(self) -> bool:
        """Whether the device still answers: after an illegal access it does so to no one here."""
        try:
            self.wait()
        except RuntimeError:
            return False
        return True


@functools.cache
def compiler() -> Callable:
    """torch.compile, with room for more shapes than it allows by default.

    One too many would run eagerly, and in silence.
    """
    import torch._dynamo  # seconds that only baselines shall cost

    torch._dynamo.config.recompile_limit = 64
    return torch.compile


def difference(ours, theirs) -> float:
    """Largest difference, relative to the largest value of what is compared."""
    return max(
        ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()
        for a, b in zip(ours, theirs, strict=True)
    )


def assert_close(ours, theirs, allowed: float) -> float:
    """The difference, where rounding explains it.

    Raises:
        AssertionError: it does not.
    """
    worst = difference(ours, theirs)
    assert worst <= allowed, f"differs by {worst:.3g}, allowed {allowed:.3g}"
    return worst


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's of memory, or was made of one, as a compiler makes its own.

    Such an error may hide where it came from, but still tells it.
    """
    told = isinstance(error, RuntimeError) and any(x in str(error) for x in NO_MEMORY)
    origins = {error.__cause__, error.__context__} - {None}
    return told or isinstance(error, torch.OutOfMemoryError) or any(map(out_of_memory, origins))


@contextlib.contextmanager
def contained(result: dict) -> Iterator[None]:
    """What goes wrong becomes a line of the result: one broken baseline shall not cost the rest."""
    try:
        yield
    except Missing as error:
        result["missing"] = str(error)[:300]
    except AssertionError as error:
        result["error"] = f"parity: {str(error)[:300]}"
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:300]}"
        result["error"] = "out of memory" if out_of_memory(error) else told
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # of a device that is lost
            torch.cuda.empty_cache()

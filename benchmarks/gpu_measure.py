"""What all measures on a GPU share: times, captured graphs, failures that stay where they are."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.measure import Missing


def milliseconds(
    call, least: int = 5, budget: float = 1.5, before: Callable = lambda: None
) -> tuple[float, int]:
    """Median of CUDA-event times of single calls, warm; as many as fit `budget` seconds.

    `before` is called ahead of each, untimed.
    """
    call()
    times = []
    began = time.monotonic()
    while len(times) < least or (time.monotonic() - began < budget and len(times) < 100):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before()
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
        if times[0] > 1000 * budget and len(times) >= 3:
            break
    return statistics.median(times), len(times)


def replayed(
    call: Callable, milliseconds: Callable = milliseconds, budget: float = 0.5, **options
) -> float:
    """Milliseconds of the captured call: what remains without Python and launch costs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()
    result = milliseconds(graph.replay, budget=budget, **options)[0]
    del kept
    return result


@contextlib.contextmanager
def contained(result: dict) -> Iterator[None]:
    """What goes wrong becomes a line of the result: one broken baseline shall not cost the rest."""
    try:
        yield
    except Missing as error:
        result["missing"] = str(error)[:300]
    except torch.OutOfMemoryError:
        result["error"] = "out of memory"
    except AssertionError as error:
        result["error"] = f"parity: {error}"
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

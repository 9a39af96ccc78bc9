"""What a run shows while it runs: a bar on a terminal, a line now and then elsewhere."""

import resource
import sys
import time

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Seconds between two lines where there is no terminal.
QUIET = 5.0


def note(text: str) -> None:
    """Prints a line, once for all processes."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    first = getattr(rank_zero_only, "rank", 0) in (0, None)
    Console(quiet=not first, highlight=False, markup=False).print(text, soft_wrap=True)


class Display:
    """Shows steps, loss, images/s and time left; a context manager.

    Args:
        title: what the bar is called.
        steps: of the whole run.
        done: steps that an earlier part of the run has taken.
        epochs: of the whole run.
        enabled: False on all processes but the first.
    """

    def __init__(self, title: str, steps: int, done: int, epochs: int, *, enabled: bool):
        self.console = Console(quiet=not enabled, highlight=False)
        self.title, self.epochs = title, epochs
        self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(title, total=steps, completed=done, status="")

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def update(
        self, step: int, loss: float, rate: float, waiting: float, device: torch.device
    ) -> None:
        """Shows the latest step.

        Args:
            step: its number.
            loss: its loss.
            rate: images/s.
            waiting: share of the time in which data was waited for, 0 to 1.
            device: whose memory is shown; of a CPU the process's.
        """
        status = f"loss {loss:.3f}  {rate:,.0f} images/s  {waiting:.0%} waiting"
        self.bar.update(self.task, completed=step, status=f"{status}  {memory(device)}  left")

    def epoch(self, epoch: int, loss: float, rate: float) -> None:
        """Prints a line about an epoch where there is no bar and the last line is not fresh."""
        now = time.monotonic()
        if not self.console.is_terminal and (
            now - self.last_line >= QUIET or epoch in (1, self.epochs)
        ):
            self.last_line = now
            self.console.print(
                f"{self.title}: epoch {epoch}/{self.epochs}  loss {loss:.3f}  {rate:,.0f} images/s"
            )

    def online(self, epoch: int, values: dict[str, float], warning: str | None) -> None:
        """Prints what features are worth: on a terminal always, elsewhere a warning alone."""
        if warning:
            self.console.print(f"{self.title}: epoch {epoch}: {warning}", soft_wrap=True)
        elif self.console.is_terminal:
            shown = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
            self.console.print(f"{self.title}: epoch {epoch}/{self.epochs}  features: {shown}")


def memory(device: torch.device) -> str:
    """The most memory that was in use so far, in GiB: of a GPU, or of the process."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / 2**30:.1f} GiB"

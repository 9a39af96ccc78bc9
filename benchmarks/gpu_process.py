"""Processes that `make gpu-check` starts: none outlives its limit, nor who started it."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

#: The status of a process whose device is lost, once it wrote down what it knows.
LOST = 76
#: The end of a pipe whose other end only the parent holds: its number here, and in the system.
_PARENT = "FASTSSL_PARENT_PIPE"
#: Seconds between looks at a process.
_LOOK = 0.1


def run(
    command: Sequence[str],
    seconds: float,
    environment: dict[str, str] | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> int | None:
    """The exit status; None where it was ended after `seconds`, or when `enough` said so.

    All that the command started ends with it, also when this is left by an exception.
    """
    read, write = os.pipe()
    pipe = f"{read} {os.fstat(read).st_ino}"
    environment = {**os.environ, **(environment or {}), _PARENT: pipe}
    process = subprocess.Popen(
        command, env=environment, pass_fds=[read], stdin=subprocess.DEVNULL, start_new_session=True
    )
    os.close(read)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline and not enough():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_LOOK)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(write)


def end_with_parent() -> None:
    """This process, started by `run`, shall not outlive its parent, however that ends."""
    pipe, inode = map(int, os.environ.get(_PARENT, "-1 -1").split())

    def watch() -> None:
        if not os.read(pipe, 1):
            os._exit(1)

    # What stands between the two may have closed the pipe, and the number be another file's.
    with contextlib.suppress(OSError):
        if os.fstat(pipe).st_ino == inode:
            threading.Thread(target=watch, daemon=True).start()

"""What is said of files that cannot be read."""

from collections.abc import Sequence

from fastssl.train import progress
from fastssl.train.data.kinds import Data

#: Files named in a line about those that cannot be read.
NAMED = 3


def reason(error: Exception) -> str:
    """Why a file cannot be read; Pillow would say again which, or name an object in memory."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "no image of a known format"
    return str(error) or type(error).__name__


def listed(done: str, names: Sequence[str]) -> str:
    """A line about files that cannot be read: what was done with how many, and the first names."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"data: {done} {len(names)} that cannot be read: {', '.join(names[:NAMED])}{more}"


def note_left_out(names: Sequence[str]) -> None:
    """Prints a line about files that were left out, if there are any."""
    if names:
        progress.note(listed("left out", names))


def note_at_end(data: Data) -> None:
    """Prints how many images of a run could not be read, if there were any."""
    if data.left_out:
        progress.note(f"data: {data.left_out} files could not be read and were left out")
    # Images in memory have all been read.
    lazy = [s.inputs for s in (data.train, data.test) if hasattr(s.inputs, "unreadable")]
    replaced = [name for images in lazy for name in images.unreadable()]
    if replaced:
        progress.note(listed("replaced", replaced))

"""What a user's terminal shows and takes: sizes, errors in their lines, descriptors that somebody closed."""

from __future__ import annotations

import os
import sys

from netns_graft.errors import GraftError
from netns_graft.lines import say


def size(count: int) -> str:
    """Bytes for people: ``517 B``, ``5.1 KiB``."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def print_error(error: GraftError) -> None:
    """``netns-graft: error: …``, then ``netns-graft: hint: …`` where there is a cure; a line each."""
    say("error", str(error))
    if error.hint:
        say("hint", error.hint)


def fill_standard_descriptors() -> None:
    """Open /dev/null for each of 0, 1 and 2 that the caller closed, or our own sockets would get these numbers."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        if fd > 2:
            os.close(fd)
            break
        os.set_inheritable(fd, True)
    # Python has None where a descriptor was closed, and everybody else writes to these without asking.
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)


def flush_stdout() -> bool:
    """Write what is still buffered; False when nobody reads stdout any more (``netns-graft --help | head -1``).

    Then stdout is pointed at nothing, for Python would complain of the rest at exit.
    """
    if sys.stdout is None:
        return True
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    if not _reader_left():
        return True
    null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null_fd, 1)
    os.close(null_fd)
    return False


def _reader_left() -> bool:
    """Whether stdout is a pipe without a reader: poll(2) tells, without anything to write."""
    import select

    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))

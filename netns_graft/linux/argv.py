"""The memory that holds this process's arguments: what ``/proc/PID/cmdline`` and so ``ps`` shows.

See proc(5): fields 48 and 49 of ``/proc/PID/stat`` say where it lies, and a process may always write to its
own ``/proc/self/mem``. No capability is needed, unlike for ``prctl(PR_SET_MM)``.
"""

from __future__ import annotations

import os


def argument_memory() -> tuple[int, bytes]:
    """(address, content): the arguments, each ended by a NUL. ``OSError`` when the kernel does not tell."""
    with open("/proc/self/stat", "rb") as file:
        stat = file.read()
    # Field 2 is the name in parentheses, which may hold anything; field 3 is the first after it.
    fields = stat[stat.rindex(b")") + 2 :].split()
    start, end = int(fields[48 - 3]), int(fields[49 - 3])
    fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return start, os.pread(fd, end - start, start)
    finally:
        os.close(fd)


def overwrite(address: int, content: bytes) -> None:
    """Put bytes into this process's own memory. The caller knows what lies there."""
    fd = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, content, address)
    finally:
        os.close(fd)

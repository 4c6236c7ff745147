"""A process whose picture is taken again and again: its files in /proc kept open, and whether it lives.

To read a kept file costs a third of what it costs to open, read and close it. Each belongs to the process, not to what
that was when the file was opened: after an exec it tells of the new program; once the process has been reaped it tells
nothing, whoever has the pid then. Proved in tests/platform.
"""

from __future__ import annotations

import os
import select

from netns_graft.linux import proc
from netns_graft.linux.proc import Descriptors


class Sitter:
    """What the functions of ``proc`` with the same names tell, of the process of ``descriptors`` (borrowed), in 2 µs
    each. Owns up to three descriptors."""

    __slots__ = ("_call_fd", "_cmdline_fd", "_descriptors", "_exe_fd")

    def __init__(self, descriptors: Descriptors) -> None:
        """Raises OSError when the process has ended."""
        self._descriptors = descriptors
        self._call_fd = -1
        self._cmdline_fd = os.open("../cmdline", os.O_RDONLY | os.O_CLOEXEC, dir_fd=descriptors.fd)
        try:
            # The link itself: followed, it would keep the program's file system from being unmounted.
            self._exe_fd = os.open("../exe", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptors.fd)
        except OSError:
            os.close(self._cmdline_fd)
            raise

    def close(self) -> None:
        """From then on it is as if the process had ended."""
        for fd in (self._cmdline_fd, self._exe_fd, self._call_fd):
            if fd >= 0:
                os.close(fd)
        self._cmdline_fd = self._exe_fd = self._call_fd = -1

    @property
    def pid(self) -> int:
        return self._descriptors.pid

    def exe(self) -> str | None:
        try:
            path = os.readlink("", dir_fd=self._exe_fd)
        except OSError:
            return None
        return proc.undeleted(self.pid, path) if path.endswith(" (deleted)") else path

    def argv(self) -> tuple[str, ...]:
        try:
            return proc.arguments(os.pread(self._cmdline_fd, proc.ARGV_LIMIT, 0))
        except OSError:
            return ()

    def connecting(self) -> int | None:
        """Of the process's first thread."""
        try:
            if self._call_fd < 0:
                flags = os.O_RDONLY | os.O_CLOEXEC
                self._call_fd = os.open("../syscall", flags, dir_fd=self._descriptors.fd)
            return proc.connecting_by(os.pread(self._call_fd, 256, 0))
        except OSError:
            return None


class Pulse:
    """Whether a process lives, which its pidfd tells in less than 1 µs. A zombie does not: its children have another
    parent by then. Owns the pidfd."""

    __slots__ = ("_pid_fd", "_poll")

    def __init__(self, pid: int) -> None:
        """Raises OSError when ``pid`` is gone."""
        self._pid_fd = os.pidfd_open(pid)
        self._poll: select.poll | None = select.poll()
        self._poll.register(self._pid_fd, select.POLLIN)

    def beats(self) -> bool:
        return self._poll is not None and not self._poll.poll(0)

    def close(self) -> None:
        """From then on it is as if the process had ended."""
        if self._poll is not None:
            self._poll = None
            os.close(self._pid_fd)

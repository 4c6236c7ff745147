"""One thread, stopped at the entry of one system call, until it is let go.

A thread in this stop hears no signal but SIGKILL, so whoever keeps a call keeps the program from being interrupted:
let go first, and answer later, wherever the kernel can do the waiting.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

from netns_graft.linux import pidfd, ptrace

Returned = Callable[["Call", int], int | None]


class Threads(Protocol):
    """What a call needs of its tracer."""

    returning: dict[int, tuple[Call, Returned]]  # thread → who wants to know how its call returned

    def process_of(self, tid: int) -> int: ...


class Call:
    """``over`` becomes true when the thread has ended; it may be gone before, and then the methods do nothing.

    Exactly one of ``go_on``, ``go_on_then`` and ``answer`` has an effect: the first.
    """

    __slots__ = ("_held", "_threads", "args", "name", "over", "tid", "wide")

    def __init__(self, threads: Threads, tid: int, name: str, args: tuple[int, ...], wide: bool) -> None:
        self._threads = threads
        self._held = True
        self.tid = tid
        self.name = name  # of the call meant: socketcall(SYS_CONNECT) is "connect"
        self.args = args  # six, unsigned
        self.wide = wide  # 64-bit pointers in the caller's structures
        self.over = False

    @property
    def pid(self) -> int:
        """The process of the thread."""
        return self._threads.process_of(self.tid)

    def go_on(self) -> None:
        """Let the kernel make the call."""
        if self._let_go():
            self._resume(ptrace.cont)

    def go_on_then(self, returned: Returned) -> None:
        """Let the kernel make the call, then call ``returned(call, result)`` while the thread is stopped once more.

        ``result`` is the kernel's, negative errno included. For ERESTART* (-512 to -516) the program gets EINTR, or
        calls anew after a signal's handler, which is a new ``Call``. What ``returned`` gives, unless None, is the
        program's result instead. It is never called when the thread ends in the call.
        """
        if self._let_go():
            self._threads.returning[self.tid] = (self, returned)
            self._resume(ptrace.cont_to_exit)

    def answer(self, value: int) -> None:
        """Skip the call; ``value`` (negative errno) is its result."""
        if self._let_go():
            try:
                ptrace.skip(self.tid, value)
            except ProcessLookupError:
                return
            self._resume(ptrace.cont)

    def sock(self, fd: int) -> socket.socket:
        """The thread's own socket, the same open file; the caller closes it. OSError: EBADF, ENOTSOCK, ESRCH, EPERM."""
        ours_fd = pidfd.descriptor_of(self.tid, fd)
        try:
            return socket.socket(fileno=ours_fd)
        except OSError:
            os.close(ours_fd)
            raise

    def read(self, address: int, size: int) -> bytes:
        """All of ``size`` bytes of the program's memory, or OSError: EFAULT, ESRCH, EPERM."""
        return ptrace.read(self.tid, address, size)

    def write(self, address: int, data: bytes) -> None:
        """OSError, as the kernel's own writing for the program would fail."""
        ptrace.write(self.tid, address, data)

    def end(self) -> None:
        """The tracer's: the thread is no more."""
        self.over = True
        self._held = False

    def _let_go(self) -> bool:
        held, self._held = self._held, False
        return held

    def _resume(self, how: Callable[[int], None]) -> None:
        try:
            how(self.tid)
        except ProcessLookupError:
            pass  # killed in its stop: its end is reported next

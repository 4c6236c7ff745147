"""A terminal with somebody at it: a pseudo-terminal, what is typed, and what is shown."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from lab.internet import eventually


class Terminal:
    """``argv`` as the leader of a session on a terminal of its own, 40 lines by 200 columns."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            try:
                os.execvpe(argv[0], list(argv), dict(environment))
            finally:
                os._exit(127)
        self.resize(40, 200)
        self.shown = ""
        self._looked = 0
        self._status: int | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.hang_up()
        # A command line that is about to end has the time to do so; then it is ended.
        if self._status is None and not eventually(self._reaped, 5):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _reaped(self) -> bool:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._status = os.waitstatus_to_exitcode(status)
        return bool(pid)

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def hang_up(self) -> None:
        """Close the terminal, as when its window is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def wait_for(self, text: str, seconds: float = 20.0) -> str:
        """Everything from the last look up to and with ``text``; fails when it does not come."""
        deadline = time.monotonic() + seconds
        while (found := self.shown.find(text, self._looked)) < 0:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} was not shown, but {self.shown[self._looked :]!r}")
        seen = self.shown[self._looked : found + len(text)]
        self._looked = found + len(text)
        return seen

    def wait(self, seconds: float = 20.0) -> int:
        """Read on until the session's leader ends; its exit status, negative for a signal."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        assert eventually(self._reaped, max(1.0, deadline - time.monotonic())), (
            f"still running: {self.shown!r}"
        )
        assert self._status is not None
        return self._status

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
        try:
            data = os.read(self._fd, 65536) if ready else b""
        except OSError:  # EIO: nobody has the other end any more
            data = b""
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

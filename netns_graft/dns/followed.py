"""A file of the host that may change while we run: read when first wanted, and again when it is another one.

Change is told by ``stat`` at each use (about 2 µs): inotify would need a descriptor and still miss a symlink
that is turned (``/etc/resolv.conf`` usually is one).
"""

from __future__ import annotations

import os


class FollowedFile:
    """The text of ``path``. A file that is missing or unreadable reads as empty, as libc has it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None

    def changed_text(self) -> str | None:
        """The whole text if it was never read or has changed since; None while it is the same."""
        seen: tuple[int, ...] = ()
        try:
            status = os.stat(self.path)
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            pass
        if seen == self._seen:
            return None
        self._seen = seen
        if not seen:
            return ""
        try:
            with open(self.path, encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except OSError:
            return ""

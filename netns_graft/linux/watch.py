"""inotify(7), for the one question that a process asks about its own files: has somebody taken them away?"""

from __future__ import annotations

import ctypes
import os

_IN_MOVED_FROM, _IN_DELETE, _IN_DELETE_SELF, _IN_MOVE_SELF = 0x40, 0x200, 0x400, 0x800
_IN_ONLYDIR = 0x01000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes = [ctypes.c_int]
_libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]


def losses_of(directory: str) -> int:
    """A descriptor, readable whenever a name has gone from ``directory`` (by another's rename over it too: that is
    an unlink of ours), or the directory itself. Read it empty, then look. OSError; a user may have 128 of these.
    """
    watch_fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if watch_fd == -1:
        raise _error("inotify_init1")
    events = _IN_DELETE | _IN_MOVED_FROM | _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
    if _libc.inotify_add_watch(watch_fd, os.fsencode(directory), events) == -1:
        error = _error("inotify_add_watch")
        os.close(watch_fd)
        raise error
    return int(watch_fd)


def read_empty(watch_fd: int) -> None:
    """What happened does not matter, only that something did."""
    try:
        while os.read(watch_fd, 4096):
            pass
    except BlockingIOError:
        pass


def _error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), call)

"""pidfds: the descriptors of another process or thread, taken as duplicates that share the open file.

A descriptor table belongs to a thread: mostly it is its process's one, but ``unshare(CLONE_FILES)`` gives a thread one
of its own. Linux 6.9 opens a pidfd for a very thread. Before that there is only the process's leader to ask, and
``kcmp`` says whether the thread has the same table; where it has not, nothing is taken, for the same number would
be another file.

``pidfd_getfd`` is Linux 5.6; it asks whether we may trace the thread. The duplicate is close-on-exec.
"""

from __future__ import annotations

import ctypes
import errno
import os

from netns_graft.linux import proc

PIDFD_THREAD = os.O_EXCL
_KCMP_FILES = 2
_PIDFD_OPEN, _PIDFD_GETFD = 434, 438  # the same number on every machine
_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine, -1)

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, *[ctypes.c_ulong] * 5]  # the kernel takes the lower halves of ints


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
    return result


def pidfd_open(pid: int, flags: int = 0) -> int:
    """A pidfd of process ``pid``, of thread ``pid`` with PIDFD_THREAD (EINVAL before Linux 6.9)."""
    return _checked(_syscall(_PIDFD_OPEN, pid, flags, 0, 0, 0), "pidfd_open")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate of ``fd`` of the process or thread that ``pidfd`` is. EBADF: it has no such descriptor."""
    return _checked(_syscall(_PIDFD_GETFD, pidfd, fd, 0, 0, 0), "pidfd_getfd")


def same_descriptors(one: int, other: int) -> bool:
    """Whether threads ``one`` and ``other`` share a descriptor table. OSError ENOSYS: a kernel without kcmp."""
    return _checked(_syscall(_KCMP, one, other, _KCMP_FILES, 0, 0), "kcmp") == 0


def descriptor_of(thread: int, fd: int) -> int:
    """A duplicate of what ``fd`` is for ``thread``; the caller closes it. OSError: EBADF, ESRCH, or EPERM when we may
    not look, or cannot be sure that it is the thread's."""
    try:
        pidfd = pidfd_open(thread, PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return descriptor_by_leader(thread, fd)
    try:
        return pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)


def descriptor_by_leader(thread: int, fd: int) -> int:
    """The same before Linux 6.9, through the process of ``thread``. EPERM when its tables are not one."""
    process = proc.process_of_thread(thread)
    if process is None:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), "pidfd_open")
    if process != thread and not same_descriptors(thread, process):
        raise PermissionError(errno.EPERM, "the thread has descriptors of its own", "kcmp")
    pidfd = pidfd_open(process)
    try:
        return pidfd_getfd(pidfd, fd)
    finally:
        os.close(pidfd)

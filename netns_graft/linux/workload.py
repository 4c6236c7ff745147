"""A container's network namespace W by way of its processes: entering by a pid, who is in it, when they end.

A pid names a process only while it lives. So a pidfd is taken first and asked again after whatever was read by the
pid: if the process had not ended by then, what was read was its own.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import select
import signal
from typing import NamedTuple

from netns_graft.linux import proc, syscalls

_NS_GET_USERNS = 0xB701
_NEEDED = (1 << 21) | (1 << 12)  # CAP_SYS_ADMIN, CAP_NET_ADMIN
_PARENTS = 8
_PF_EXITING = 0x4  # in the flags of /proc/PID/stat


class Workload(NamedTuple):
    """Descriptors, owned by the holder. ``inode`` is W's."""

    pid: int
    pid_fd: int
    ns_fd: int
    inode: int

    def close(self) -> None:
        os.close(self.pid_fd)
        os.close(self.ns_fd)


def open_workload(pid: int) -> Workload:
    """The process ``pid`` and its network namespace. OSError: ESRCH when it has ended, EACCES when we may not."""
    pid_fd = os.pidfd_open(pid)
    try:
        ns_fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if has_ended(pid_fd):
                raise OSError(errno.ESRCH, "the process has ended")
            return Workload(pid, pid_fd, ns_fd, os.fstat(ns_fd).st_ino)
        except BaseException:
            os.close(ns_fd)
            raise
    except BaseException:
        os.close(pid_fd)
        raise


def has_ended(pid_fd: int) -> bool:
    poll = select.poll()
    poll.register(pid_fd, select.POLLIN)
    return bool(poll.poll(0))


def is_ending(pid_fd: int) -> bool:
    """Has it ended, or begun to? What the kernel kills from then on ends as it would have."""
    if has_ended(pid_fd):
        return True
    try:
        with open(f"/proc/self/fdinfo/{pid_fd}", encoding="ascii") as file:
            (pid,) = (int(line.split()[1]) for line in file if line.startswith("Pid:"))
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return True
    return bool(int(fields[6]) & _PF_EXITING)


def kill(pid_fd: int) -> None:
    try:
        signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
    except OSError:
        pass  # it has ended, or is not ours to kill


def own_network() -> int:
    """The inode of the network namespace that we are in."""
    return os.stat("/proc/self/ns/net").st_ino


def own_user_namespace() -> int:
    return os.stat("/proc/self/ns/user").st_ino


def someone_in(ns_inode: int) -> int | None:
    """A pidfd of any process in W but ourselves; None when there is none left."""
    for pid in proc.pids():
        if pid == os.getpid() or proc.network_namespace(pid) != ns_inode:
            continue
        try:
            pid_fd = os.pidfd_open(pid)
        except OSError:
            continue
        if proc.network_namespace(pid) == ns_inode and not has_ended(pid_fd):
            return pid_fd
        os.close(pid_fd)
    return None


def enter_owner_of(ns_fd: int) -> None:
    """Enter the user namespace that owns W, unless we have power over W from where we are. OSError.

    Root in an engine's user namespace has power over everything below it. An ordinary user has it over the user
    namespaces that it made, once inside.
    """
    if has_power():
        return
    user_ns_fd = fcntl.ioctl(ns_fd, _NS_GET_USERNS)
    try:
        syscalls.setns(user_ns_fd, syscalls.CLONE_NEWUSER)
    finally:
        os.close(user_ns_fd)


def has_power() -> bool:
    """Over the network namespaces of our own user namespace and of those below it."""
    return _effective_capabilities() & _NEEDED == _NEEDED


def name_by_monitor(pid: int) -> str | None:
    """The container's name as its engine's monitor has it: the ``-n NAME`` of the conmon above ``pid``."""
    for _ in range(_PARENTS):
        stat = proc.stat(pid)
        if stat is None or stat.parent <= 1:
            return None
        pid = stat.parent
        argv = proc.argv(pid)
        if argv and os.path.basename(argv[0]) == "conmon":
            for option, value in itertools.pairwise(argv):
                if option in ("-n", "--name"):
                    return value
            return None
    return None


def is_awaited_by(program: str) -> bool:
    """Is our parent a process of this name? Those that were started and left go to the nearest subreaper above."""
    argv = proc.argv(os.getppid())
    return bool(argv) and os.path.basename(argv[0]) == program


def root_of(pid: int) -> str:
    """A path to the root directory of ``pid``, through which its mount namespace's files can be read."""
    return f"/proc/{pid}/root"


def _effective_capabilities() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0

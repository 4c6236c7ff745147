"""System calls that Python's ``os`` does not have (or has only since 3.12), a few lines each, by the kernel's names.

All raise ``OSError`` with the call's name as the file name, so that an error line can say which call was refused.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_PTRACER = 0x59616D61
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}.get(os.uname().machine, -1)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [ctypes.c_int]
_libc.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


def _check(result: int, call: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)


def unshare(flags: int) -> None:
    """Leave the namespaces in ``flags`` (CLONE_NEW*) for new ones. NEWUSER needs a single-threaded process."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that ``fd`` refers to; ``kind`` is its CLONE_NEW* flag, checked by the kernel."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    _check(
        _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data.encode()), f"mount {target}"
    )


def umount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send us ``number`` when the thread that forked us ends. A set-uid exec clears it."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")


def set_not_dumpable() -> None:
    """Keep processes of our own uid from attaching to us or opening our descriptors through /proc."""
    _check(_libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")


def set_ptracer(pid: int) -> None:
    """Let ``pid`` trace us where Yama would allow our ancestors alone. Without Yama there is nobody to ask."""
    if _libc.prctl(PR_SET_PTRACER, pid, 0, 0, 0) == -1 and ctypes.get_errno() != errno.EINVAL:
        _check(-1, "prctl")


def clear_ambient_capabilities() -> None:
    _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl")


def set_time_slice(seconds: float) -> None:
    """Ask the scheduler (Linux 6.12) for turns of this length, 0.1 to 100 ms, and so to be let in sooner when there is
    something to do. It takes no privilege and gives no more time. OSError.
    """
    # struct sched_attr: size, policy (SCHED_OTHER), flags, nice, priority, runtime, deadline, period
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, int(seconds * 1e9), 0, 0)
    _check(_libc.syscall(_SCHED_SETATTR, 0, attributes, 0), "sched_setattr")


def set_process_name(name: str) -> None:
    """The name in ``ps`` and ``/proc/PID/comm``: at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0), "prctl")

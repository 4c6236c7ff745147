"""``in_own_namespaces``: a test function in a process and in namespaces of its own.

The test's process is a fork of pytest. Without root it enters a new user namespace in which its uid and gid stay
what they are (maps written by the parent, as ``linux/userns.py`` does it for a graft) and in which it has every
capability; then, as root too, a network and a mount namespace with ``lo`` up. What the function raises, what it left
open and whom it left running are told to pytest by text, for tracebacks do not cross processes.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from netns_graft.linux import proc, syscalls, userns

_PR_SET_CHILD_SUBREAPER = 36
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_OK = b"ok"
_WAIT = 60.0  # seconds for the whole of a test


def in_own_namespaces(test: Callable[..., None]) -> Callable[..., None]:
    """Run ``test`` in a fork, in fresh user (unless root), network and mount namespaces. It returns nothing."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            _child(theirs, lambda: test(*args, **kwargs))
        theirs.close()
        with ours:
            try:
                verdict = _parent(ours, pid)
            except BaseException:
                os.kill(pid, signal.SIGKILL)
                raise
            finally:
                _, status = os.waitpid(pid, 0)
        if verdict != _OK:
            pytest.fail(
                verdict.decode(errors="replace") or f"the test's process ended with {status}", pytrace=False
            )

    return run


def fork(work: Callable[[], object]) -> int:
    """Run ``work`` in a child that ends with this process. Returns its pid; status 0 when nothing was raised."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        syscalls.set_parent_death_signal(signal.SIGKILL)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a child; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def end(pid: int) -> None:
    """SIGKILL, and wait."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def eventually(true: Callable[[], Any], seconds: float = 5.0) -> Any:
    """``true()`` as soon as it is true, for what the kernel does in its own time and announces to nobody."""
    deadline = time.monotonic() + seconds
    while not (value := true()) and time.monotonic() < deadline:
        time.sleep(0.002)
    return value


def descendants() -> list[int]:
    found, todo = [], [os.getpid()]
    while todo:
        more = proc.children(todo.pop())
        found += more
        todo += more
    return found


def _parent(channel: socket.socket, pid: int) -> bytes:
    channel.settimeout(_WAIT)
    while True:
        message = channel.recv(1 << 20)
        if message != b"map":
            return message
        userns.write_maps(pid)
        channel.send(b"mapped")


def _child(channel: socket.socket, test: Callable[[], None]) -> NoReturn:
    try:
        verdict = _OK
        try:
            _enter(channel)
            faults = _run(test)
            if faults:
                verdict = "\n".join(faults).encode(errors="replace")
        except BaseException:
            verdict = traceback.format_exc().encode(errors="replace")
        for pid in descendants():
            os.kill(pid, signal.SIGKILL)
        channel.send(verdict[-200_000:])
    finally:
        os._exit(0)


def _enter(channel: socket.socket) -> None:
    syscalls._check(syscalls._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    syscalls.set_parent_death_signal(signal.SIGKILL)
    signal.alarm(0)
    if os.geteuid() != 0:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        channel.send(b"map")
        assert channel.recv(64) == b"mapped"
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
    loopback_up()


def _run(test: Callable[[], None]) -> list[str]:
    """The test, and what it left. Raises what it raises."""
    unraisable: list[str] = []
    sys.unraisablehook = lambda it: unraisable.append(
        f"{it.err_msg or 'ignored'}: {it.exc_value!r} in {it.object!r}"
    )
    before = _descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test()
        gc.collect()
    faults = [f"unraisable: {text}" for text in unraisable]
    opened = {fd: what for fd, what in _descriptors().items() if fd not in before}
    faults += [f"left open: descriptor {fd}: {what}" for fd, what in opened.items()]
    eventually(lambda: not _running(), 1.0)
    faults += [f"left running: {pid}: {proc.argv(pid)}" for pid in _running()]
    return faults


def _running() -> list[int]:
    """Descendants that are not zombies. Those that became ours by a parent's death are waited for."""
    found = []
    for pid in descendants():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                state = file.read().rpartition(b")")[2].split()[0]
        except OSError:
            continue
        if state not in (b"Z", b"X"):
            found.append(pid)
    return found


def _descriptors() -> dict[int, str]:
    held = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            held[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the one that listed them
    return held


def loopback_up() -> None:
    """``ip link set lo up`` in the network namespace that we are in."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))

"""A fork that works in namespaces of its own, and says when they stand: the forwarder, and the demo's stage.

Words on the channel (SOCK_SEQPACKET, one message each)::

    child → parent   "map"                       in its new user namespace, waiting for id maps
    parent → child   "mapped"
    child → parent   {"ready": …} + descriptors  or {"error": …, "hint": …, "status": …}

What follows is between the two. Ids are mapped by the parent because only a process in the parent namespace may.
"""

from __future__ import annotations

import array
import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from netns_graft.errors import GraftError
from netns_graft.linux import proc, syscalls, userns

MESSAGE = 65536
_MOST_FDS = 8


class Ready(NamedTuple):
    """A child whose namespaces stand. The caller owns all of it."""

    pid: int
    channel: socket.socket
    fds: list[int]


def is_real_root() -> bool:
    """May we make network namespaces as we are? Root in a container without that power needs a user namespace."""
    if os.geteuid() != 0:
        return False
    needed = (1 << 21) | (1 << 12)  # CAP_SYS_ADMIN, CAP_NET_ADMIN
    return proc.effective_capabilities() & needed == needed


def fork_uninterrupted() -> int:
    """``os.fork()``; the child ignores SIGINT from its first instruction on.

    A Ctrl-C between the fork and the child's ``setsid`` is its parent's to deal with; in the child Python would raise
    KeyboardInterrupt wherever it is.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def fork_until_ready(who: str, become: Callable[[socket.socket], None], *, own_user_ns: bool) -> Ready:
    """Fork a child that runs ``become(channel)``, which never returns, and wait until it is ready.

    ``who`` is its name in an error. Raises GraftError; then nothing is left of the child.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = fork_uninterrupted()
    if pid == 0:
        ours.close()
        become(theirs)
        os._exit(125)
    theirs.close()
    try:
        if own_user_ns:
            _map_ids(who, ours, pid)
        space = socket.CMSG_SPACE(_MOST_FDS * array.array("i").itemsize)
        data, ancillary, _flags, _address = ours.recvmsg(MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
        _raise_reported(who, data)
    except BaseException:
        ours.close()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(pid, 0)
        raise
    fds = array.array("i")
    for _level, _kind, payload in ancillary:
        fds.frombytes(payload)
    return Ready(pid, ours, list(fds))


def _map_ids(who: str, channel: socket.socket, pid: int) -> None:
    data = channel.recv(MESSAGE)
    if data != b"map":
        _raise_reported(who, data)
    try:
        userns.write_maps(pid)
    except OSError as error:
        raise GraftError(
            f"cannot map ids into a user namespace: {error.strerror}",
            hint="a security module may forbid it (kernel.apparmor_restrict_unprivileged_userns)",
        ) from None
    channel.send(b"mapped")


def _raise_reported(who: str, data: bytes) -> None:
    if not data:
        raise GraftError(f"{who} ended before it was ready")
    message = json.loads(data)
    if "error" in message:
        hint, status = message.get("hint"), message.get("status")
        raise GraftError(
            str(message["error"]), hint=str(hint) if hint else None, status=status if isinstance(status, int) else 125
        )


# The child's side


def enter_user_ns(channel: socket.socket) -> int:
    """A new user namespace, its ids mapped by the parent. Returns its descriptor."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    except OSError as error:
        raise GraftError(
            f"cannot make a user namespace: {error.strerror}", hint=_user_ns_hint(error.errno)
        ) from None
    channel.send(b"map")
    if channel.recv(MESSAGE) != b"mapped":
        os._exit(125)  # the parent gave up, and has said why
    return os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def send_ready(channel: socket.socket, fds: Sequence[int]) -> None:
    socket.send_fds(channel, [json.dumps({"ready": True}).encode()], fds)


def send_error(channel: socket.socket, error: GraftError) -> None:
    channel.send(json.dumps({"error": str(error), "hint": error.hint, "status": error.status}).encode())


def _user_ns_hint(number: int | None) -> str:
    if number == errno.ENOSPC:
        return "user namespaces are switched off or used up: sysctl -w user.max_user_namespaces=15000 (as root)"
    if number == errno.EPERM:
        return (
            "unprivileged user namespaces are forbidden here: sysctl kernel.unprivileged_userns_clone=1, or"
            " kernel.apparmor_restrict_unprivileged_userns=0 (as root)"
        )
    return "netns-graft needs user namespaces (CONFIG_USER_NS), or root"

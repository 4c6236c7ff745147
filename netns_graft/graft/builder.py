"""The short life of the process that makes F and W. Only here is pyroute2 imported, and its memory goes with it."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Sequence

from netns_graft.linux.cable import Wiring


class BuildError(Exception):
    """The builder's last words."""


def build_in_child(
    *,
    hold: bool,
    dns: bool,
    loopback_resolvers: Sequence[str],
    meanwhile: Callable[[], None],
    workload_ns_fd: int | None = None,
) -> Wiring:
    """Fork, build F and W there, take over the sockets. Raises BuildError with what the kernel refused.

    ``meanwhile`` runs here while the child works: there is a second core, and imports to do. ``workload_ns_fd``: a W
    that exists (borrowed).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        os._exit(_build(theirs, hold, dns, loopback_resolvers, workload_ns_fd))
    theirs.close()
    with ours:
        meanwhile()
        try:
            wiring = Wiring.receive(ours)
        except (ValueError, KeyError):
            wiring = None  # not a wiring but words
        reason = ours.recv(65536).decode(errors="replace") if wiring is None else ""
    os.waitpid(pid, 0)
    if wiring is None:
        raise BuildError(reason or "the builder ended without a word")
    return wiring


def _build(
    channel: socket.socket, hold: bool, dns: bool, loopback_resolvers: Sequence[str], workload_ns_fd: int | None
) -> int:
    from netns_graft.linux import wiring as cables  # 170 ms: in this process only

    try:
        wiring = cables.build(
            hold=hold, dns=dns, loopback_resolvers=loopback_resolvers, workload_ns_fd=workload_ns_fd
        )
        wiring.send(channel)
    except Exception as error:  # noqa: BLE001  # pyroute2 raises many kinds; all of them end here, in words
        if os.environ.get("NETNS_GRAFT_DEBUG"):
            traceback.print_exc()
        channel.send(b"")
        channel.send(str(error).encode(errors="replace") or type(error).__name__.encode())
        return 1
    return 0


"""A vantage point: sockets born in one network namespace, through which a process elsewhere asks about it.

A netlink socket, a table of /proc/net and a sysctl belong to the namespace of the thread that opened them, for as long
as they are open. So a thread of ours goes in, opens what will be needed and ends; this process stays where it is.
Entering takes CAP_SYS_ADMIN in the user namespace that owns the target, which the forwarder has in its own and hence
in every one below.

What is open here keeps the namespace alive. A vantage point of a namespace that is not ours is closed soon after use.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable

from netns_graft.linux import conntrack, links, proc, sock_diag, syscalls
from netns_graft.linux.conntrack import Entry, Tuple
from netns_graft.linux.sock_diag import SocketOwner
from netns_graft.linux.socket_tables import SocketTables

_NETLINK_SOCK_DIAG = 4
_COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"
_PROBE_GOOD = 1.0  # seconds for which a family is believed to be tracked or not
_PROBE_WAIT = 0.05
_LINKS_GOOD = 1.0  # seconds between looks at what interfaces there are, when nobody was found
_LOOPBACK = {4: (socket.AF_INET, "127.0.0.1"), 16: (socket.AF_INET6, "::1")}


class Vantage:
    """Asks about the network namespace behind ``ns_fd`` (borrowed). Owns what it opens there."""

    def __init__(self, ns_fd: int) -> None:
        """Raises OSError when the namespace may not be entered."""
        self.inode = os.fstat(ns_fd).st_ino
        self._ns_fd = os.dup(ns_fd)
        self._tracked: dict[int, tuple[float, bool | None]] = {}
        self._count_fd: int | None = None
        self._interfaces: list[int] = []
        self._listed = 0.0
        self._has_tracked = False
        try:
            within(ns_fd, self._open)
        except BaseException:
            os.close(self._ns_fd)
            raise
        self._list_interfaces()

    def _open(self) -> None:
        self._diag_sock = _netlink(_NETLINK_SOCK_DIAG)
        try:
            self._conntrack_sock: socket.socket | None = _netlink(conntrack.NETLINK_NETFILTER)
        except OSError:
            self._conntrack_sock = None  # a kernel without netfilter
        self.route_sock = _netlink(links.NETLINK_ROUTE)
        self._tables = SocketTables()
        self._open_count()

    def _open_count(self) -> None:
        try:
            self._count_fd = os.open(_COUNT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._count_fd = None  # this kernel has no conntrack (yet)

    def _list_interfaces(self) -> None:
        """Those that a socket could be bound to; the ports of a bridge have no addresses. Loopback comes last."""
        try:
            found = [link.number for link in links.links(self.route_sock) if link.master is None]
        except OSError:
            found = []
        self._interfaces = sorted(found, reverse=True) or [0]
        self._listed = time.monotonic()

    def close(self) -> None:
        for sock in (self._diag_sock, self._conntrack_sock, self.route_sock):
            if sock is not None:
                sock.close()
        self._tables.close()
        for fd in (self._ns_fd, self._count_fd):
            if fd is not None:
                os.close(fd)

    # Sockets

    def senders(self, protocol: int, own: Tuple, method: str, since: float) -> list[SocketOwner]:
        """The sockets that may have sent what looks like ``own``: none, one, or for UDP several.

        ``method`` is "sock_diag" or "proc"; ``since`` as in ``SocketTables.find``. Raises OSError when sock_diag
        refuses to answer.
        """
        if method == "proc":
            return self._tables.find(protocol, own, since)
        if protocol == socket.IPPROTO_UDP:
            return sock_diag.udp_senders(self._diag_sock, *own)
        for interface in self._interfaces:
            owner = sock_diag.find(self._diag_sock, protocol, *own, interface)
            if owner is not None:
                return [owner]
        if time.monotonic() - self._listed > _LINKS_GOOD:
            self._list_interfaces()
        return []

    # Connection tracking

    def tracked_entries(self) -> int:
        """How many entries conntrack has here. 1 µs."""
        if self._count_fd is None:
            if not os.path.exists(_COUNT):  # shown in every namespace once the kernel has it
                return 0
            within(self._ns_fd, self._open_count)
            if self._count_fd is None:
                return 0
        return int(os.pread(self._count_fd, 32, 0))

    def has_tracked(self) -> bool:
        """False: conntrack has no entries here and had none whenever we looked, so nothing was translated.

        That it has none *now* is not enough: somebody may have flushed them since the packet left.
        """
        if not self._has_tracked:
            self._has_tracked = self.tracked_entries() > 0
        return self._has_tracked

    def entry(self, protocol: int, wanted: Tuple) -> Entry | None:
        """As ``conntrack.find``."""
        return conntrack.find(self._conntrack(), protocol, wanted)

    def entry_of_any_zone(self, protocol: int, reply: Tuple) -> Entry | None:
        """As ``conntrack.find_in_dump``: slow."""
        return conntrack.find_in_dump(self._conntrack(), protocol, reply)

    def _conntrack(self) -> socket.socket:
        if self._conntrack_sock is None:
            raise OSError(errno.EPROTONOSUPPORT, "this kernel has no conntrack to be asked")
        return self._conntrack_sock

    def tracks(self, version: int) -> bool | None:
        """Does conntrack see the connections of this address family (4 or 16: the length of its addresses)?

        No list of conntrack's hooks is to be had, so we try: a datagram between two sockets of ours, over the
        namespace's loopback. None: it did not arrive.
        """
        now = time.monotonic()
        at, answer = self._tracked.get(version, (-_PROBE_GOOD, None))
        if now - at >= _PROBE_GOOD:
            answer = self._probe(*_LOOPBACK[version])
            self._tracked[version] = (now, answer)
        return answer

    def _probe(self, family: int, address: str) -> bool | None:
        made: list[socket.socket] = []
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        try:
            within(self._ns_fd, lambda: made.extend(socket.socket(family, kind) for _ in range(2)))
            sender, receiver = made
            receiver.settimeout(_PROBE_WAIT)
            for sock in made:
                sock.bind((address, 0))
            sender.sendto(b"?", receiver.getsockname())
            receiver.recv(1)
            packed = socket.inet_pton(family, address)
            sent = Tuple(packed, sender.getsockname()[1], packed, receiver.getsockname()[1])
            return self.entry(socket.IPPROTO_UDP, sent) is not None
        except OSError:
            return None
        finally:
            for sock in made:
                sock.close()


def within(ns_fd: int, work: Callable[[], object]) -> None:
    """Run ``work`` in a thread of its own that has entered the network namespace (right here where that is ours).
    What it raises is raised here."""
    if os.fstat(ns_fd).st_ino == proc.own_network_namespace():
        work()
        return
    failed: list[BaseException] = []

    def inside() -> None:
        try:
            syscalls.setns(ns_fd, syscalls.CLONE_NEWNET)
            work()
        except BaseException as error:  # noqa: BLE001  # raised again below
            failed.append(error)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _netlink(protocol: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        sock.bind((0, 0))
    except OSError:
        sock.close()
        raise
    return sock


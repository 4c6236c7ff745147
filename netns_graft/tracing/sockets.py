"""What the kernel knows of a socket that is open here too: the truth about it, whoever holds it besides.

``host`` is packed everywhere, 4 bytes for IPv4 and for IPv4-mapped addresses of IPv6 sockets.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, ENOPROTOOPT

from netns_graft.linux.sockets import disconnect
from netns_graft.wire.sockaddr import plain

INET = (socket.AF_INET, socket.AF_INET6)
TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_CLOSE = 1, 2, 3, 7
LOOPBACK = {4: "127.0.0.1", 16: "::1"}
_SO_COOKIE, _SO_BINDTOIFINDEX, _SO_NETNS_COOKIE = 57, 62, 71
_DEFERRED_SECONDS = 0.05  # loopback is synchronous, unless the kernel hands its packets to ksoftirqd


def cookie(sock: socket.socket) -> int:
    """The socket's own number, never used again while the machine runs."""
    number: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0]
    return number


def network_cookie(sock: socket.socket) -> int:
    """The number of the network namespace that the socket was born in; 0 before Linux 5.14, which does not tell."""
    try:
        number: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
    except OSError as error:
        if error.errno != ENOPROTOOPT:
            raise
        return 0
    return number


def is_tcp(sock: socket.socket) -> bool:
    return sock.type == socket.SOCK_STREAM and sock.proto == socket.IPPROTO_TCP


def is_udp(sock: socket.socket) -> bool:
    return sock.type == socket.SOCK_DGRAM and sock.proto == socket.IPPROTO_UDP


def tcp_state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def family_of(host: bytes) -> socket.AddressFamily:
    return socket.AF_INET if len(host) == 4 else socket.AF_INET6


def text(host: bytes) -> str:
    return socket.inet_ntop(family_of(host), host)


def packed(name: str) -> bytes:
    """Of an address as Python's socket module gives it, with or without a scope."""
    if ":" in name:
        return plain(socket.inet_pton(socket.AF_INET6, name.partition("%")[0]))
    return socket.inet_aton(name)


def own_name(sock: socket.socket) -> tuple[bytes, int]:
    """(host, port) that the socket has; all zeroes and 0 as long as it has none."""
    name = sock.getsockname()
    return packed(name[0]), name[1]


def has_host(host: bytes) -> bool:
    return any(host)


def in_form(sock: socket.socket, host: bytes, port: int) -> tuple[str, int]:
    """The address as ``sock`` must be given it: an IPv6 socket reaches IPv4 by mapped addresses."""
    name = text(host)
    return (f"::ffff:{name}" if sock.family == socket.AF_INET6 and len(host) == 4 else name), port


def blocks(sock: socket.socket) -> bool:
    """Is O_NONBLOCK clear? It belongs to the open file, which the program shares."""
    return not fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK


@contextmanager
def without_waiting(sock: socket.socket) -> Iterator[None]:
    """O_NONBLOCK is set meanwhile, and then is what it was."""
    flags = fcntl.fcntl(sock, fcntl.F_GETFL)
    if flags & os.O_NONBLOCK:
        yield
        return
    fcntl.fcntl(sock, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        yield
    finally:
        fcntl.fcntl(sock, fcntl.F_SETFL, flags)


def is_tied(sock: socket.socket) -> bool:
    """To an interface (SO_BINDTODEVICE)."""
    return sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX) != 0


def bound_elsewhere(sock: socket.socket) -> bool:
    """Is the socket tied to an interface from which loopback cannot be reached?"""
    index = sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX)
    if index == 0:
        return False
    try:
        return index != socket.if_nametoindex("lo")
    except OSError:
        return True


def fresh(sock: socket.socket) -> None:
    """A TCP socket as if it had never connected, without the error that this leaves. OSError."""
    disconnect(sock)
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def ready(sock: socket.socket, events: int) -> bool:
    """Have ``events`` come, now or in the moment that a busy kernel may take for a packet on loopback?"""
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(0) or poll.poll(_DEFERRED_SECONDS * 1000))


def source_for(host: bytes, port: int, scope: int = 0) -> tuple[bytes, int]:
    """(host, scope) of the address that the kernel would use for a direct connection. No packet is sent.

    OSError: there is no way to ``host`` (ENETUNREACH, EHOSTUNREACH), it may not be used (EACCES: a broadcast address).
    """
    with socket.socket(family_of(host), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe_sock:
        if len(host) == 4:
            probe_sock.connect((text(host), port or 9))
        else:
            probe_sock.connect((text(host), port or 9, 0, scope))
        name = probe_sock.getsockname()
    return packed(name[0]), name[3] if len(name) > 3 else 0


def is_multicast(host: bytes) -> bool:
    """Or IPv4's limited broadcast."""
    return host[0] == 0xFF if len(host) == 16 else 224 <= host[0] <= 239 or host == b"\xff\xff\xff\xff"


def is_link_local(host: bytes) -> bool:
    """IPv6's, which mean something on one link only."""
    return len(host) == 16 and host[0] == 0xFE and host[1] & 0xC0 == 0x80


def is_broadcast(host: bytes) -> bool:
    """Of some network of this host. Connecting a UDP socket to one takes SO_BROADCAST, which ours has not."""
    if len(host) == 16:
        return False
    try:
        source_for(host, 9)
    except OSError as error:
        return error.errno == EACCES
    return False

"""sock_diag(7): ask the kernel for one socket by its exact addresses. About 5 µs, whatever the number of sockets.

The netlink socket answers for the network namespace in which it was *created*, so a process elsewhere can hold one
that was born in the workload's. Requests are packed by hand: a general netlink library takes longer to build the
message than the kernel takes to answer it, and this runs once per connection.

Kernel facts: a socket in SYN_SENT is already found by its 4-tuple. An IPv4 look-up finds IPv4-mapped IPv6 sockets
too. For UDP the kernel takes source and destination the other way round (udp_dump_one looks the socket up as the
receiver of a packet), and it finds unconnected sockets by their local half. Where no connection has the addresses,
it falls back to whoever listens on the source port: not the sender, so not an answer. A socket bound to an interface
is found only by a question that names the interface; others are found whatever it names. Proved in tests/platform.

A UDP socket that is not connected is found by its port alone, and several may share one (SO_REUSEPORT): the kernel
then picks a *receiver*. Who may have *sent* is everyone on that port, which ``udp_senders`` lists.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_ANY_STATE = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF
_TCP_LISTEN = 10
_CONNECTED = 1  # TCP_ESTABLISHED, which UDP uses as well
_MAPPED = b"\0" * 10 + b"\xff\xff"
# nlmsghdr; inet_diag_req_v2 up to the socket id; ports; then addresses, interface, cookie
_HEAD = struct.pack("=IHHII", 72, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
_TAIL = struct.Struct("=III")
_PORTS = struct.Struct("!HH")
_REQUEST = struct.Struct("=BBBBI")
_TYPE = struct.Struct("=IH")
# inet_diag_msg after its 52 bytes of head and id: expires, rqueue, wqueue, uid, inode
_REST = struct.Struct("=IIIII")
_REST_OFFSET = 16 + 4 + 48
_STATE_OFFSET = 16 + 1
_PAD = bytes(12)

_PREFIXES = {
    (family, protocol): _HEAD + _REQUEST.pack(family, protocol, 0, 0, _ANY_STATE)
    for family in (socket.AF_INET, socket.AF_INET6)
    for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
}


class SocketOwner(NamedTuple):
    """``inode`` names the socket in /proc/PID/fd; ``uid`` owns it, numbered as the netlink socket's opener sees it."""

    inode: int
    uid: int


def find(
    diag_sock: socket.socket,
    protocol: int,
    source: bytes,
    source_port: int,
    target: bytes,
    target_port: int,
    interface: int = 0,
) -> SocketOwner | None:
    """The socket whose own address is ``source`` and whose peer is ``target`` (packed, 4 or 16 bytes), or None.

    ``protocol`` is IPPROTO_TCP or IPPROTO_UDP; ``interface`` the index of the one that the packet went through (0:
    sockets that are bound to one are not found). Inode 0 (a socket that no process holds any more) counts as None.
    Raises OSError when the kernel refuses the question itself.
    """
    if protocol == socket.IPPROTO_UDP:
        source, source_port, target, target_port = target, target_port, source, source_port
    if len(source) == 4:
        prefix = _PREFIXES[socket.AF_INET, protocol]
        source += _PAD
        target += _PAD
    else:
        prefix = _PREFIXES[socket.AF_INET6, protocol]
    tail = _TAIL.pack(interface, _NO_COOKIE, _NO_COOKIE)
    diag_sock.send(prefix + _PORTS.pack(source_port, target_port) + source + target + tail)
    reply = diag_sock.recv(4096)
    _length, kind = _TYPE.unpack_from(reply)
    if kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", reply, 16)
        if code == -2:  # ENOENT
            return None
        raise OSError(-code, "sock_diag refused the question")
    if len(reply) < _REST_OFFSET + _REST.size:
        return None
    if protocol == socket.IPPROTO_TCP and reply[_STATE_OFFSET] == _TCP_LISTEN:
        return None
    *_queues, uid, inode = _REST.unpack_from(reply, _REST_OFFSET)
    return SocketOwner(inode, uid) if inode else None


def udp_senders(
    diag_sock: socket.socket, source: bytes, source_port: int, target: bytes, target_port: int
) -> list[SocketOwner]:
    """The UDP sockets that may have sent from ``source``: the one that is connected to ``target``, else everyone on
    the port whose own address is ``source`` or any. Some 100 µs: the kernel goes through all its UDP sockets."""
    possible: list[SocketOwner] = []
    families = [(socket.AF_INET, source + _PAD, target + _PAD)] if len(source) == 4 else []
    mapped = (_MAPPED + source, _MAPPED + target) if len(source) == 4 else (source, target)
    families.append((socket.AF_INET6, *mapped))
    for family, own, peer in families:
        for message in _dump_udp(diag_sock, family, source_port):
            port, far_port = _PORTS.unpack_from(message, 4)
            local, remote = message[8:24], message[24:40]
            *_queues, uid, inode = _REST.unpack_from(message, _REST_OFFSET - 16)
            if port != source_port or not inode or local not in (own, bytes(16)):
                continue
            if message[1] == _CONNECTED and (remote, far_port) == (peer, target_port):
                return [SocketOwner(inode, uid)]
            possible.append(SocketOwner(inode, uid))
    return possible


def _dump_udp(diag_sock: socket.socket, family: int, port: int) -> list[bytes]:
    """inet_diag_msg of each UDP socket of ``family`` that is bound to ``port``."""
    request = _REQUEST.pack(family, socket.IPPROTO_UDP, 0, 0, _ANY_STATE) + _PORTS.pack(port, 0) + bytes(32)
    request += _TAIL.pack(0, _NO_COOKIE, _NO_COOKIE)
    head = struct.pack("=IHHII", 72, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    diag_sock.send(head + request)
    found: list[bytes] = []
    while True:
        data = diag_sock.recv(1 << 16)
        offset = 0
        while offset + 16 <= len(data):
            length, kind = _TYPE.unpack_from(data, offset)
            if kind == _NLMSG_DONE:
                return found
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, offset + 16)
                raise OSError(-code, "sock_diag refused the question")
            found.append(data[offset + 16 : offset + length])
            offset += (length + 3) & ~3

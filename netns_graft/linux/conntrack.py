"""conntrack: ask the kernel what a translated connection looked like before. About 10 µs a question.

A connection that NAT touched has an entry with two tuples: *original*, as the program's own socket has it, and
*reply*, as an answer from the wire would be addressed. Who sees the packet on the wire knows the second and asks for
the first.

Packed by hand, like ``sock_diag``: pyroute2's ``Conntrack.entry`` asks the same question in 0.6 ms and 170 ms of
import, in a process that imports nothing of the kind so far. It stays what these answers are checked against, in
tests/platform/test_fact_conntrack.py.

Kernel facts: the entry is there before the packet leaves the namespace. A question by tuple finds an entry by either
of its tuples, so an answer must be looked at. It looks in zone 0; other zones (nftables ``ct zone set``) are found
only by dumping the table. The kernel keeps *tuples* from clashing, not sockets: with one program's port 40001
translated to 40002 and another's 40002 to 40001 each is seen on the wire with the addresses of the other's socket.
So an exact ``sock_diag`` answer counts only where conntrack has no entries, or says the same.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from netns_graft.linux.nlattr import attributes

NETLINK_NETFILTER = 12

_GET = (1 << 8) | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTO_NUMBER, _PROTO_SOURCE, _PROTO_TARGET = 1, 2, 3
_ENOENT = -2

_HEAD = struct.Struct("=IHHII")
_FAMILY = {4: socket.AF_INET, 16: socket.AF_INET6}
_IP_ATTRIBUTES = {4: (1, 2), 16: (3, 4)}  # CTA_IP_V4_SRC, _DST; CTA_IP_V6_SRC, _DST


class Tuple(NamedTuple):
    """Where packets of one direction come from and go to; addresses packed, 4 or 16 bytes."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int

    def turned(self) -> Tuple:
        """The other direction."""
        return Tuple(self.target, self.target_port, self.source, self.source_port)


class Entry(NamedTuple):
    """``original``: as the first packet was sent. ``reply``: as answers to it arrive from the wire."""

    original: Tuple
    reply: Tuple


def find(conntrack_sock: socket.socket, protocol: int, wanted: Tuple) -> Entry | None:
    """The entry of zone 0 that has ``wanted`` as its original *or* its reply tuple, or None.

    ``conntrack_sock`` is a NETLINK_NETFILTER socket; it answers for the namespace that it was created in. Raises
    OSError when the kernel refuses the question (no CAP_NET_ADMIN, no ctnetlink).
    """
    body = bytes([_FAMILY[len(wanted.source)], 0, 0, 0]) + _packed_tuple(_TUPLE_REPLY, protocol, wanted)
    conntrack_sock.send(_HEAD.pack(16 + len(body), _GET, _NLM_F_REQUEST, 1, 0) + body)
    reply = conntrack_sock.recv(8192)
    length, kind, _flags, _sequence, _port = _HEAD.unpack_from(reply)
    if kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", reply, 16)
        if code == _ENOENT:
            return None
        raise OSError(-code, "conntrack refused the question")
    return _entry(reply[20:length], protocol)


def find_in_dump(conntrack_sock: socket.socket, protocol: int, reply: Tuple) -> Entry | None:
    """As ``find`` by the reply tuple alone, in every zone. Reads the whole table: 1 ms and more."""
    for entry in dump(conntrack_sock, protocol, _FAMILY[len(reply.source)]):
        if entry.reply == reply:
            return entry
    return None


def dump(conntrack_sock: socket.socket, protocol: int, family: int) -> Iterator[Entry]:
    """Every entry of one protocol and address family. Must be read to its end; raises OSError when refused."""
    conntrack_sock.send(_HEAD.pack(20, _GET, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + bytes([family, 0, 0, 0]))
    found: list[Entry] = []
    while True:
        data = conntrack_sock.recv(1 << 18)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, _flags, _sequence, _port = _HEAD.unpack_from(data, offset)
            if kind == _NLMSG_DONE:
                return iter(found)
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, offset + 16)
                raise OSError(-code, "conntrack refused the question")
            entry = _entry(data[offset + 20 : offset + length], protocol)
            if entry is not None:
                found.append(entry)
            offset += (length + 3) & ~3


def _packed_tuple(kind: int, protocol: int, it: Tuple) -> bytes:
    source, target = _IP_ATTRIBUTES[len(it.source)]
    ip = _attribute(source, it.source) + _attribute(target, it.target)
    proto = (
        _attribute(_PROTO_NUMBER, bytes([protocol]))
        + _attribute(_PROTO_SOURCE, it.source_port.to_bytes(2, "big"))
        + _attribute(_PROTO_TARGET, it.target_port.to_bytes(2, "big"))
    )
    nested = _attribute(_TUPLE_IP | _NESTED, ip) + _attribute(_TUPLE_PROTO | _NESTED, proto)
    return _attribute(kind | _NESTED, nested)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _entry(data: bytes, protocol: int) -> Entry | None:
    fields = attributes(data)
    original, reply = (_tuple(fields.get(kind, b""), protocol) for kind in (_TUPLE_ORIG, _TUPLE_REPLY))
    return Entry(original, reply) if original is not None and reply is not None else None


def _tuple(data: bytes, protocol: int) -> Tuple | None:
    fields = attributes(data)
    ip, proto = attributes(fields.get(_TUPLE_IP, b"")), attributes(fields.get(_TUPLE_PROTO, b""))
    if proto.get(_PROTO_NUMBER) != bytes([protocol]):
        return None
    try:
        return Tuple(
            ip.get(1) or ip[3],
            int.from_bytes(proto[_PROTO_SOURCE], "big"),
            ip.get(2) or ip[4],
            int.from_bytes(proto[_PROTO_TARGET], "big"),
        )
    except KeyError:
        return None

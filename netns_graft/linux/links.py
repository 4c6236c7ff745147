"""Links and routes of one network namespace, as far as the way to a nested namespace goes. rtnetlink by hand.

A namespace knows its neighbours by small numbers of its own ("nsid"): a veth whose other end lies elsewhere names it
by one. So the way from an address to the namespace behind it is: the route's interface, the bridge ports under it,
the number of the namespace at the other end of each, and the process whose namespace has that number. It is the
kernel's own account of the topology; names, parents and address ranges prove nothing.

Each function takes a NETLINK_ROUTE socket that was born in the namespace it is about, and raises OSError when the
kernel refuses the question.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from netns_graft.linux.nlattr import attributes

NETLINK_ROUTE = 0

_RTM_GETLINK, _RTM_GETROUTE, _RTM_GETNSID = 18, 26, 90
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTA_DST, _RTA_OIF = 1, 4
_RTN_LOCAL = 2
_IFLA_LINK, _IFLA_MASTER, _IFLA_LINK_NETNSID = 5, 10, 37
_NETNSA_NSID, _NETNSA_FD = 1, 3
_HEAD = struct.Struct("=IHHII")


class Link(NamedTuple):
    """``lower``: the interface it sits on or is paired with, in the namespace ``far`` (None: in this one)."""

    number: int
    lower: int | None
    master: int | None
    far: int | None


class Way(NamedTuple):
    """How a packet to some address leaves. ``local``: it does not, the address is the namespace's own."""

    local: bool
    interface: int


def way_to(route_sock: socket.socket, address: bytes) -> Way | None:
    """The route to ``address`` (packed), or None when there is none."""
    family, bits = (socket.AF_INET, 32) if len(address) == 4 else (socket.AF_INET6, 128)
    body = struct.pack("=BBBBBBBBI", family, bits, 0, 0, 0, 0, 0, 0, 0) + _attribute(_RTA_DST, address)
    try:
        reply = _ask(route_sock, _RTM_GETROUTE, body)
    except OSError:
        return None
    return Way(reply[7] == _RTN_LOCAL, _number(attributes(reply[12:]).get(_RTA_OIF)) or 0)


def links(route_sock: socket.socket) -> list[Link]:
    """Every link of the namespace."""
    route_sock.send(_HEAD.pack(32, _RTM_GETLINK, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + bytes(16))
    found: list[Link] = []
    while True:
        data = route_sock.recv(1 << 18)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, _flags, _sequence, _port = _HEAD.unpack_from(data, offset)
            if kind == _NLMSG_DONE:
                return found
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", data, offset + 16)
                raise OSError(-code, "the kernel refused to list links")
            (index,) = struct.unpack_from("=i", data, offset + 20)
            fields = attributes(data[offset + 32 : offset + length])
            found.append(
                Link(
                    index, _number(fields.get(_IFLA_LINK)), _number(fields.get(_IFLA_MASTER)),
                    _number(fields.get(_IFLA_LINK_NETNSID)),
                )
            )  # fmt: skip
            offset += (length + 3) & ~3


def namespaces_behind(route_sock: socket.socket, interface: int) -> set[int]:
    """The numbers of the namespaces at the other ends of ``interface``, or of its ports when it is a bridge."""
    every = links(route_sock)
    wanted = {interface}
    while more := {
        link.lower for link in every if link.number in wanted and link.far is None and link.lower
    } - wanted:
        wanted |= more  # a VLAN or macvlan on top of what leads out
    return {
        link.far for link in every if link.far is not None and (link.number in wanted or link.master in wanted)
    }


def number_of(route_sock: socket.socket, ns_fd: int) -> int | None:
    """The number by which this namespace knows the one behind ``ns_fd``; None: it has none."""
    body = bytes(4) + _attribute(_NETNSA_FD, struct.pack("=I", ns_fd))
    reply = _ask(route_sock, _RTM_GETNSID, body)
    number = _number(attributes(reply[4:]).get(_NETNSA_NSID))
    return None if number is None or number < 0 else number


def _number(value: bytes | None) -> int | None:
    return None if value is None else int(struct.unpack("=i", value)[0])


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _ask(route_sock: socket.socket, kind: int, body: bytes) -> bytes:
    """The body of the one answer."""
    route_sock.send(_HEAD.pack(16 + len(body), kind, _NLM_F_REQUEST, 1, 0) + body)
    reply = route_sock.recv(16384)
    length, answered, _flags, _sequence, _port = _HEAD.unpack_from(reply)
    if answered == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", reply, 16)
        raise OSError(-code, "the kernel refused the question")
    return reply[16:length]

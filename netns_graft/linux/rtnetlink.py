"""Links, addresses, neighbours, routes and rules of one network namespace, made by hand-packed rtnetlink messages.

A container waits for these, and a general library takes longer to put a message together than the kernel takes to act
on it. Each function gives one ``Request`` (pure); a ``RouteSocket`` has the kernel do any number of them at one go.
Numbers: linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h, fib_rules.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from netns_graft.linux.nlattr import attribute, attributes

_NETLINK_ROUTE = 0
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_NEWROUTE, _RTM_NEWNEIGH, _RTM_NEWRULE = 16, 18, 20, 24, 28, 32
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 16, 18, 28
_IF_OPER_UP = b"\x06"
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RTPROT_STATIC, _RTNH_F_ONLINK = 4, 4
_FRA_IIFNAME, _FRA_PRIORITY, _FR_ACT_TO_TBL = 3, 6, 1
_HEAD = struct.Struct("=IHHII")

RTN_UNICAST, RTN_LOCAL = 1, 2
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
MAIN = 254  # the table


class Request(NamedTuple):
    """One message. ``what``: the name of the thing, for the error when the kernel refuses it."""

    kind: int
    flags: int
    body: bytes
    what: str


class RouteSocket:
    """Speaks to the network namespace in which it was made, wherever its holder goes."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._sock.bind((0, 0))

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def do(self, requests: Iterable[Request]) -> None:
        """All of them, in their order. OSError for the first that was refused; those after it were done all the same.

        The kernel answers before it returns from send(2). It tells every error, and is asked to acknowledge the last.
        """
        given = list(requests)
        parts = []
        for number, request in enumerate(given, 1):
            flags = request.flags | _NLM_F_REQUEST | (_NLM_F_ACK if number == len(given) else 0)
            parts.append(_HEAD.pack(16 + len(request.body), request.kind, flags, number, 0) + request.body)
        self._sock.send(b"".join(parts))
        refused: OSError | None = None
        answered = 0
        while answered != len(given):
            kind, answered, payload = _message(self._sock.recv(65536))
            code = -struct.unpack_from("=i", payload)[0] if kind == _NLMSG_ERROR else 0
            if code and refused is None:
                refused = OSError(code, os.strerror(code), given[answered - 1].what)
        if refused is not None:
            raise refused

    def sends(self, index: int) -> bool:
        """Does the link send what it is given, by now? One whose other end is down, or was a moment ago, does not."""
        self._sock.send(_HEAD.pack(32, _RTM_GETLINK, _NLM_F_REQUEST, 1, 0) + _link(index))
        kind, _number, payload = _message(self._sock.recv(65536))
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", payload)[0]
            raise OSError(code, os.strerror(code), f"link {index}")
        # Set together with what makes it send (linkwatch_do_dev). Its queueing discipline is there long before.
        return attributes(payload[16:]).get(_IFLA_OPERSTATE) == _IF_OPER_UP

    def close(self) -> None:
        self._sock.close()


class LinkEnd(NamedTuple):
    """One end of a veth. ``ns_fd``: where it is to be (borrowed); None: here. ``mac`` is packed, ``mtu`` bytes."""

    name: str
    mac: bytes
    mtu: int
    ns_fd: int | None = None


def veth(end: LinkEnd, peer: LinkEnd) -> Request:
    info = attribute(_VETH_INFO_PEER, _link() + _described(peer))
    kind = attribute(_IFLA_INFO_KIND, b"veth") + attribute(_IFLA_INFO_DATA, info)
    return _make(_RTM_NEWLINK, _link() + _described(end) + attribute(_IFLA_LINKINFO, kind), end.name)


def link_up(index: int) -> Request:
    return Request(_RTM_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP), f"link {index}")


def address(index: int, own: str) -> Request:
    """``own`` with a full-length prefix. IPv6: usable at once, nobody is asked whether he has it already."""
    family, packed = _packed(own)
    flags = _IFA_F_PERMANENT | (_IFA_F_NODAD if family == socket.AF_INET6 else 0)
    body = struct.pack("=BBBBI", family, len(packed) * 8, flags, SCOPE_UNIVERSE, index)
    local = attribute(_IFA_LOCAL, packed) if family == socket.AF_INET else b""
    return _make(_RTM_NEWADDR, body + local + attribute(_IFA_ADDRESS, packed), own)


def neighbour(index: int, other: str, mac: bytes) -> Request:
    """A permanent entry: nobody is asked for it."""
    family, packed = _packed(other)
    body = struct.pack("=BxxxiHBB", family, index, _NUD_PERMANENT, 0, 0)
    return _make(_RTM_NEWNEIGH, body + attribute(_NDA_DST, packed) + attribute(_NDA_LLADDR, mac), other)


def route_on_link(index: int, destination: str) -> Request:
    """To one address, which is behind this link itself."""
    family, packed = _packed(destination)
    more = attribute(_RTA_DST, packed) + _number(_RTA_OIF, index)
    return _route(family, len(packed) * 8, RTN_UNICAST, SCOPE_LINK, MAIN, more, destination)


def default_route(index: int, gateway: str) -> Request:
    """RTNH_F_ONLINK: the gateway need not lie in a prefix of ours."""
    family, packed = _packed(gateway)
    more = attribute(_RTA_GATEWAY, packed) + _number(_RTA_OIF, index)
    return _route(family, 0, RTN_UNICAST, SCOPE_UNIVERSE, MAIN, more, "the default route", _RTNH_F_ONLINK)


def everything_is_local(family: int, loopback: int, table: int) -> Request:
    """"AnyIP": whatever is looked up in ``table`` is for ourselves."""
    return _route(family, 0, RTN_LOCAL, SCOPE_HOST, table, _number(_RTA_OIF, loopback), f"table {table}")


def rule(family: int, interface: str, table: int, priority: int) -> Request:
    """What arrives by ``interface`` is looked up in ``table`` (at most 255)."""
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, table, 0, 0, _FR_ACT_TO_TBL, 0)
    body += attribute(_FRA_IIFNAME, interface.encode() + b"\0") + _number(_FRA_PRIORITY, priority)
    return _make(_RTM_NEWRULE, body, f"rule {priority}")


def _make(kind: int, body: bytes, what: str) -> Request:
    return Request(kind, _NLM_F_CREATE | _NLM_F_EXCL, body, what)


def _link(index: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, 0, 0)


def _described(end: LinkEnd) -> bytes:
    data = attribute(_IFLA_IFNAME, end.name.encode() + b"\0")
    data += attribute(_IFLA_ADDRESS, end.mac) + _number(_IFLA_MTU, end.mtu)
    return data if end.ns_fd is None else data + _number(_IFLA_NET_NS_FD, end.ns_fd)


def _route(
    family: int, bits: int, kind: int, scope: int, table: int, more: bytes, what: str, flags: int = 0
) -> Request:
    body = struct.pack("=BBBBBBBBI", family, bits, 0, 0, table, _RTPROT_STATIC, scope, kind, flags)
    return _make(_RTM_NEWROUTE, body + more, what)


def _packed(given: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in given else socket.AF_INET
    return family, socket.inet_pton(family, given)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _message(datagram: bytes) -> tuple[int, int, bytes]:
    """(type, sequence number, payload) of the one message in it."""
    length, kind, _flags, number, _port = _HEAD.unpack_from(datagram)
    return kind, number, datagram[16:length]

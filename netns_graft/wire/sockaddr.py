"""Socket addresses and message headers as programs lay them out in memory: sockaddr_in, sockaddr_in6, msghdr,
mmsghdr and iovec, for 64-bit callers (``wide``) and 32-bit ones.

Families and lengths are in the machine's byte order, ports and addresses in the network's. What the kernel itself
would refuse (a sockaddr cut short) is a ``ProtocolError`` here, so that a caller can leave the refusal to the kernel.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from netns_graft.wire import ProtocolError

AF_UNSPEC, AF_UNIX, AF_INET, AF_INET6 = 0, 1, 2, 10
LONGEST = 128  # sockaddr_storage: what the kernel takes at the most
MOST_MESSAGES = 1024  # UIO_MAXIOV: of one sendmmsg() or recvmmsg()
MOST_VECTORS = 1024  # and of the iovecs of one message

_MAPPED = bytes(10) + b"\xff\xff"
_FAMILY = struct.Struct("=H")
_IN = struct.Struct("=H2s4s8x")
_IN6 = struct.Struct("=H2s4s16s")  # RFC 2133 knew no scope; Linux still takes these 24 bytes
_SCOPE = struct.Struct("=I")

# name, its length, iovecs, their count, control, its length, flags
_MESSAGE = {True: struct.Struct("=QI4xQQQQI4x"), False: struct.Struct("=IIIIIII")}
_VECTOR = {True: struct.Struct("=QQ"), False: struct.Struct("=II")}
MESSAGE_SIZE = {True: 56, False: 28}
MESSAGES_STEP = {True: 64, False: 32}  # struct mmsghdr: a msghdr, then msg_len
VECTOR_SIZE = {True: 16, False: 8}
NAME_LENGTH_OFFSET = {True: 8, False: 4}  # of msg_namelen in msghdr


class Address(NamedTuple):
    """``family`` is the form it was written in (AF_INET or AF_INET6); ``host`` is packed, 4 bytes for IPv4 and for
    IPv4-mapped; ``scope`` an interface index or 0.
    """

    family: int
    host: bytes
    port: int
    scope: int = 0


class Message(NamedTuple):
    """A msghdr. Addresses are the caller's; lengths are unsigned, as they stand there."""

    name: int
    name_length: int
    vectors: int
    vector_count: int
    control: int
    control_length: int
    flags: int


def family(data: bytes) -> int:
    """The first two bytes of any sockaddr."""
    if len(data) < 2:
        raise ProtocolError("sockaddr cut short")
    number: int = _FAMILY.unpack_from(data)[0]
    return number


def plain(host: bytes) -> bytes:
    """4 bytes for an IPv4-mapped address, else ``host`` as it is."""
    return host[12:] if host.startswith(_MAPPED) and len(host) == 16 else host


def mapped(host: bytes) -> bytes:
    """16 bytes, whatever ``host`` is."""
    return _MAPPED + host if len(host) == 4 else host


def parse(data: bytes, form: int | None = None) -> Address:
    """A sockaddr_in or sockaddr_in6, read as ``form`` when that is given, else as its family says."""
    form = family(data) if form is None else form
    if form == AF_INET:
        if len(data) < _IN.size:
            raise ProtocolError("sockaddr_in cut short")
        _, port, host = _IN.unpack_from(data)
        return Address(AF_INET, host, int.from_bytes(port))
    if form == AF_INET6:
        if len(data) < _IN6.size:
            raise ProtocolError("sockaddr_in6 cut short")
        _, port, _flow, host = _IN6.unpack_from(data)
        scope = _SCOPE.unpack_from(data, _IN6.size)[0] if len(data) >= _IN6.size + 4 else 0
        return Address(AF_INET6, plain(host), int.from_bytes(port), scope)
    raise ProtocolError(f"a sockaddr of family {form}")


def build(address: Address) -> bytes:
    """As the kernel writes it: 16 bytes for AF_INET, 28 for AF_INET6. ValueError for a 16-byte host in AF_INET."""
    port = address.port.to_bytes(2)
    if address.family == AF_INET:
        if len(address.host) != 4:
            raise ValueError("not an IPv4 address")
        return _IN.pack(AF_INET, port, address.host)
    return _IN6.pack(AF_INET6, port, bytes(4), mapped(address.host)) + _SCOPE.pack(address.scope)


def parse_message(data: bytes, *, wide: bool) -> Message:
    """A msghdr (or the first part of an mmsghdr)."""
    if len(data) < MESSAGE_SIZE[wide]:
        raise ProtocolError("msghdr cut short")
    return Message(*_MESSAGE[wide].unpack_from(data))


def parse_vectors(data: bytes, *, wide: bool) -> list[tuple[int, int]]:
    """iovecs: (address, length) of each. The rest of ``data`` that makes no whole one is an error."""
    if len(data) % VECTOR_SIZE[wide]:
        raise ProtocolError("iovec cut short")
    return list(_VECTOR[wide].iter_unpack(data))

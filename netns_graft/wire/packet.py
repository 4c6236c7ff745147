"""Ethernet frames with a TCP SYN in, and the frames that refuse it out.

A frame is what a packet socket with ``PACKET_VNET_HDR`` gives: a 10-byte virtio_net_hdr, Ethernet, IPv4 or IPv6, TCP.
The refusals are built so that the program's ``connect()`` fails as it would on the host:

* ``reset``: RST with ACK of the SYN: ECONNREFUSED
* ``unreachable``: an ICMP error that quotes the SYN; Linux turns it at once into an errno (icmp_err_convert and
  icmpv6_err_convert in the kernel), since a socket in SYN_SENT takes such errors as final.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from netns_graft.wire import ProtocolError

VNET_HEADER = 10
_ETHERNET = 14
_MAC_DESTINATION = slice(VNET_HEADER, VNET_HEADER + 6)
_MAC_SOURCE = slice(VNET_HEADER + 6, VNET_HEADER + 12)
_IP = VNET_HEADER + _ETHERNET
_PORTS_AND_SEQUENCE = struct.Struct("!HHI")
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_NO_OFFLOAD = bytes(VNET_HEADER)

# errno for the program -> (type, code)
_ICMP4 = {
    # Not the plain codes 0 and 1: those make Linux send a SYN that waited for long once more before it gives up
    # (RFC 6069, tcp_ld_RTO_revert), and we would take it for a new flow. These give the same errno.
    errno.ENETUNREACH: (3, 6),
    errno.EHOSTUNREACH: (3, 12),
    errno.ETIMEDOUT: (3, 12),  # nothing on the wire says "timed out" but silence; the next best, and at once
    errno.EACCES: (3, 13),  # administratively prohibited: EHOSTUNREACH in the program
}
_ICMP6 = {
    errno.ENETUNREACH: (1, 0),
    errno.EACCES: (1, 1),
    errno.EHOSTUNREACH: (1, 3),
    errno.ETIMEDOUT: (1, 3),
}


class Syn(NamedTuple):
    """A connection attempt. Addresses are packed, 4 or 16 bytes; together the four name the flow."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int


def parse_syn(frame: bytes) -> Syn:
    """The addresses of a SYN frame. Raises ProtocolError on anything else, a SYN with ACK included."""
    try:
        kind = frame[_IP - 2 : _IP]
        if kind == b"\x08\x00":
            head = frame[_IP]
            tcp = _IP + (head & 0xF) * 4
            if head >> 4 != 4 or tcp < _IP + 20 or frame[_IP + 9] != 6:
                raise ProtocolError("not TCP over IPv4")
            source, target = frame[_IP + 12 : _IP + 16], frame[_IP + 16 : _IP + 20]
        elif kind == b"\x86\xdd":
            tcp = _IP + 40
            if frame[_IP] >> 4 != 6 or frame[_IP + 6] != 6:
                raise ProtocolError("not TCP over IPv6")
            source, target = frame[_IP + 8 : _IP + 24], frame[_IP + 24 : _IP + 40]
        else:
            raise ProtocolError("neither IPv4 nor IPv6")
        if frame[tcp + 13] & (_SYN | _ACK) != _SYN or len(frame) < tcp + 20:
            raise ProtocolError("not a SYN")
        source_port, target_port, _sequence = _PORTS_AND_SEQUENCE.unpack_from(frame, tcp)
    except (IndexError, struct.error):
        raise ProtocolError("frame cut short") from None
    return Syn(source, source_port, target, target_port)


def sequence(frame: bytes) -> int:
    """The sequence number of a SYN frame (one that parses): the same when a SYN is sent again, by chance only in
    another connection between the same ends."""
    number: int = _PORTS_AND_SEQUENCE.unpack_from(frame, _tcp_offset(frame))[2]
    return number


def marked(frame: bytes, mark: bytes) -> bytes:
    """The same frame with the source MAC ``mark``: F's rules let it pass."""
    return frame[: VNET_HEADER + 6] + mark + frame[VNET_HEADER + 12 :]


def refusal(frame: bytes, number: int) -> bytes:
    """The frame that makes ``connect()`` fail with errno ``number`` for the SYN in ``frame`` (one that parses)."""
    if number in _ICMP4:
        return unreachable(frame, number)
    return reset(frame)


def reset(frame: bytes) -> bytes:
    """RST,ACK in answer to the SYN in ``frame``."""
    syn, tcp = parse_syn(frame), _tcp_offset(frame)
    _source, _target, sequence = _PORTS_AND_SEQUENCE.unpack_from(frame, tcp)
    segment = struct.pack(
        "!HHIIBBHHH", syn.target_port, syn.source_port, 0, (sequence + 1) & 0xFFFFFFFF, 5 << 4, _RST | _ACK, 0, 0, 0
    )
    checksum = _checksum(_pseudo_header(syn, 6, len(segment)) + segment)
    segment = segment[:16] + struct.pack("!H", checksum) + segment[18:]
    return _packet(frame, syn, 6, segment)


def unreachable(frame: bytes, number: int) -> bytes:
    """ICMP destination unreachable for the SYN in ``frame``; ``number`` is ENETUNREACH, EHOSTUNREACH or EACCES."""
    syn, tcp = parse_syn(frame), _tcp_offset(frame)
    quoted = frame[_IP : tcp + 20]
    if len(syn.source) == 4:
        kind, code = _ICMP4[number]
        message = struct.pack("!BBHI", kind, code, 0, 0) + quoted
        checksum = _checksum(message)
        protocol = 1
    else:
        kind, code = _ICMP6[number]
        message = struct.pack("!BBHI", kind, code, 0, 0) + quoted
        checksum = _checksum(_pseudo_header(syn, 58, len(message)) + message)
        protocol = 58
    return _packet(frame, syn, protocol, message[:2] + struct.pack("!H", checksum) + message[4:])


def _tcp_offset(frame: bytes) -> int:
    return _IP + (40 if frame[_IP] >> 4 == 6 else (frame[_IP] & 0xF) * 4)


def _pseudo_header(syn: Syn, protocol: int, length: int) -> bytes:
    """Of a packet that goes back: the SYN's target is its source."""
    if len(syn.source) == 4:
        return syn.target + syn.source + struct.pack("!BBH", 0, protocol, length)
    return syn.target + syn.source + struct.pack("!IHBB", length, 0, 0, protocol)


def _packet(frame: bytes, syn: Syn, protocol: int, payload: bytes) -> bytes:
    """``payload`` on its way back to the sender of ``frame``."""
    if len(syn.source) == 4:
        head = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0, syn.target, syn.source
        )
        head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    else:
        head = struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, 64, syn.target, syn.source)
    macs = frame[_MAC_SOURCE] + frame[_MAC_DESTINATION]
    return _NO_OFFLOAD + macs + frame[_IP - 2 : _IP] + head + payload


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    return ~total & 0xFFFF

"""Ethernet frames by hand: the tests' own reading of the RFCs, which shares nothing with netns_graft.wire.packet.

A frame here begins with Ethernet; the virtio_net_hdr of a packet socket with PACKET_VNET_HDR is ``VNET`` more.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

VNET = bytes(10)
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def sum16(data: bytes) -> int:
    """The ones' complement sum of RFC 1071, byte pairs one after the other. 0xFFFF: a packet that verifies."""
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"), "big")
        if total > 0xFFFF:
            total -= 0xFFFF
    return total


def checksum(data: bytes) -> bytes:
    return (0xFFFF - sum16(data)).to_bytes(2, "big")


def pseudo_header(source: bytes, target: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + target + bytes([0, protocol]) + length.to_bytes(2, "big")
    return source + target + length.to_bytes(4, "big") + bytes([0, 0, 0, protocol])


def ipv4(
    source: bytes, target: bytes, protocol: int, payload: bytes, *, options: bytes = b"", flags: int = 0x4000
) -> bytes:
    words = 5 + len(options) // 4
    head = bytes([0x40 | words, 0]) + (words * 4 + len(payload)).to_bytes(2, "big") + b"\x12\x34"
    head += flags.to_bytes(2, "big") + bytes([64, protocol, 0, 0]) + source + target + options
    return head[:10] + checksum(head) + head[12:] + payload


def ipv6(source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
    return b"\x60\0\0\0" + len(payload).to_bytes(2, "big") + bytes([protocol, 64]) + source + target + payload


def tcp(
    source: bytes, source_port: int, target: bytes, target_port: int, sequence: int, acknowledged: int, flags: int,
    *, options: bytes = b"", data: bytes = b"",
) -> bytes:  # fmt: skip
    words = 5 + len(options) // 4
    head = struct.pack(
        "!HHIIBBHHH", source_port, target_port, sequence, acknowledged, words << 4, flags, 64240, 0, 0
    )
    segment = head + options + data
    return segment[:16] + checksum(pseudo_header(source, target, 6, len(segment)) + segment) + segment[18:]


def packet(source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
    return (ipv4 if len(source) == 4 else ipv6)(source, target, protocol, payload)


def ethernet(target_mac: bytes, source_mac: bytes, ip: bytes) -> bytes:
    return target_mac + source_mac + (b"\x08\0" if ip[0] >> 4 == 4 else b"\x86\xdd") + ip


def icmp(source: bytes, target: bytes, kind: int, code: int, quoted: bytes) -> bytes:
    """An ICMP or ICMPv6 error message, by the family of the addresses."""
    message = bytes([kind, code, 0, 0, 0, 0, 0, 0]) + quoted
    head = b"" if len(source) == 4 else pseudo_header(source, target, 58, len(message))
    return message[:2] + checksum(head + message) + message[4:]


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame taken apart. ``checksums``: of IPv4's header and of what IP carries, whether each verifies."""

    target_mac: bytes
    source_mac: bytes
    source: str
    target: str
    protocol: int
    payload: bytes
    checksums: tuple[bool, bool]

    @property
    def flags(self) -> int:
        assert self.protocol == 6
        return self.payload[13]

    @property
    def ports(self) -> tuple[int, int]:
        source, target = struct.unpack_from("!HH", self.payload)
        return source, target

    @property
    def sequence(self) -> tuple[int, int]:
        """TCP: (sequence number, acknowledgement number)."""
        sequence, acknowledged = struct.unpack_from("!II", self.payload, 4)
        return sequence, acknowledged


def take_apart(frame: bytes) -> Seen:
    """Of an IP frame. Fails by an exception when lengths do not agree."""
    ip = frame[14:]
    if frame[12:14] == b"\x08\0":
        words, length = ip[0] & 15, int.from_bytes(ip[2:4], "big")
        assert ip[0] >> 4 == 4 and length <= len(ip)
        source, target, protocol, payload = ip[12:16], ip[16:20], ip[9], ip[words * 4 : length]
        head_right = sum16(ip[: words * 4]) == 0xFFFF
        if protocol == 1:
            right = sum16(payload) == 0xFFFF
        else:
            right = sum16(pseudo_header(source, target, protocol, len(payload)) + payload) == 0xFFFF
    else:
        assert frame[12:14] == b"\x86\xdd" and ip[0] >> 4 == 6
        length, protocol = int.from_bytes(ip[4:6], "big"), ip[6]
        source, target, payload = ip[8:24], ip[24:40], ip[40 : 40 + length]
        assert len(payload) == length
        head_right = True
        right = sum16(pseudo_header(source, target, protocol, length) + payload) == 0xFFFF
    return Seen(
        frame[:6], frame[6:12], str(ipaddress.ip_address(source)), str(ipaddress.ip_address(target)),
        protocol, payload, (head_right, right),
    )  # fmt: skip


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)

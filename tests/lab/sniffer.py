"""What crosses the cable between the host and the Internet, frame by frame.

A packet socket on the Internet's end of the cable sees everything that leaves the host. To know when all of
it has been seen, a marker is sent after it by the host itself: frames on one cable stay in order.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from types import TracebackType

from lab import addresses as at
from lab.internet import Lab

ETH_P_ALL = 3
PACKET_OUTGOING = 4
SO_RCVBUFFORCE = 33


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame from the host: ``protocol`` is the IP protocol number, or -1 for what is not IP
    (``ethertype``).
    """

    ethertype: int
    protocol: int
    source: str
    destination: str
    destination_port: int
    data: bytes


class Sniffer:
    """Between ``with`` and ``seen`` nothing that leaves the host is missed."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def __enter__(self) -> Sniffer:
        self._sock = self._lab.inet.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        self._sock.bind(("cable", ETH_P_ALL))
        self._sock.settimeout(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._sock.close()

    def seen(self) -> list[Frame]:
        """Everything that left the host up to now, but for ARP and neighbour discovery, which are the
        host's own.
        """
        marker = os.urandom(16)
        with self._lab.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(marker, (at.GATEWAY, 9))
        frames = []
        while True:
            data, address = self._sock.recvfrom(65535)
            if address[2] == PACKET_OUTGOING:
                continue
            if data.endswith(marker):
                return [frame for frame in frames if not _neighbourly(frame)]
            frames.append(parse(data))


def parse(data: bytes) -> Frame:
    """An Ethernet frame as far as the tests need it."""
    ethertype = int.from_bytes(data[12:14], "big")
    packet = data[14:]
    if ethertype == 0x0800:
        header = (packet[0] & 15) * 4
        source, destination = (
            socket.inet_ntop(socket.AF_INET, packet[12:16]),
            socket.inet_ntop(socket.AF_INET, packet[16:20]),
        )
        protocol, payload = packet[9], packet[header:]
    elif ethertype == 0x86DD:
        source, destination = (
            socket.inet_ntop(socket.AF_INET6, packet[8:24]),
            socket.inet_ntop(socket.AF_INET6, packet[24:40]),
        )
        protocol, payload = packet[6], packet[40:]
    else:
        return Frame(ethertype, -1, "", "", -1, data)
    port = int.from_bytes(payload[2:4], "big") if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) else -1
    return Frame(ethertype, protocol, source, destination, port, data)


def _neighbourly(frame: Frame) -> bool:
    arp = frame.ethertype == 0x0806
    # ICMPv6 133-137, and the multicast listener reports that precede them (behind a hop-by-hop header,
    # protocol 0)
    discovery = frame.ethertype == 0x86DD and (
        frame.protocol == 0 or (frame.protocol == socket.IPPROTO_ICMPV6 and 133 <= frame.data[54] <= 143)
    )
    return arp or discovery

"""Packet sockets: the tap that sees each SYN arrive in F, and the injector that puts it back on the wire from W.

``PACKET_VNET_HDR`` puts a 10-byte virtio_net_hdr before each frame. It must stay with the frame on the way back:
over a veth the TCP checksum is only partial, and that header says so.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

VNET_HEADER = 10
_SOL_PACKET = 263
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_SO_ATTACH_FILTER = 26
_ETH_P_ALL = 3

# Classic BPF (linux/filter.h). Loads: 0x28 half word, 0x30 byte, 0x50 byte at X+k, 0xb1 X = 4*(P[k]&0xf);
# 0x20 word, 0x54 A &= k; jumps 0x05 (always), 0x15 (A == k), 0x45 (A & k); 0x06 return. What passes: SYN set and
# ACK clear, IPv4 or IPv6. Offsets count from the Ethernet header, whatever PACKET_VNET_HDR puts before it.
def _syn_filter(mark: bytes) -> list[tuple[int, int, int, int]]:
    first, last = struct.unpack("!IH", mark)
    return [
        (0x20, 0, 0, 6),  # 0  source MAC, its first four bytes
        (0x15, 0, 2, first),  # 1  the mark's? else 4
        (0x28, 0, 0, 10),  # 2  and its last two
        (0x15, 15, 0, last),  # 3  our own SYN on its way to the listener: drop (19)
        (0x28, 0, 0, 12),  # 4  ethertype
        (0x15, 0, 7, 0x0800),  # 5  IPv4? else 13
        (0x30, 0, 0, 23),  # 6  protocol
        (0x15, 0, 11, 6),  # 7  TCP? else drop (19)
        (0x28, 0, 0, 20),  # 8  fragment offset
        (0x45, 9, 0, 0x1FFF),  # 9  later fragment? drop (19)
        (0xB1, 0, 0, 14),  # 10 X = IP header length
        (0x50, 0, 0, 27),  # 11 TCP flags
        (0x05, 0, 0, 4),  # 12 go to 17
        (0x15, 0, 5, 0x86DD),  # 13 IPv6? else drop (19)
        (0x30, 0, 0, 20),  # 14 next header
        (0x15, 0, 3, 6),  # 15 TCP? else drop (19)
        (0x30, 0, 0, 67),  # 16 TCP flags
        (0x54, 0, 0, 0x12),  # 17 SYN and ACK
        (0x15, 1, 0, 0x02),  # 18 just SYN? accept (20)
        (0x06, 0, 0, 0),  # 19 drop
        (0x06, 0, 0, 0x40000),  # 20 accept
    ]


def open_tap(interface: str, mark: bytes) -> socket.socket | None:
    """See incoming SYNs on ``interface``, but for those from the MAC ``mark`` (6 bytes), and send frames out of it.

    None where packet sockets are refused.
    """
    sock = _packet_socket()
    if sock is None:
        return None
    # The filter goes on before the bind: between the two nothing may be queued that it would have dropped.
    steps = _syn_filter(mark)
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(steps), ctypes.addressof(buffer)))
    sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    sock.bind((interface, _ETH_P_ALL))
    return sock


def open_injector(interface: str) -> socket.socket | None:
    """Send frames out of ``interface``; receives nothing (protocol 0). None where packet sockets are refused."""
    sock = _packet_socket()
    if sock is not None:
        sock.bind((interface, 0))
    return sock


def _packet_socket() -> socket.socket | None:
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT):
            return None
        raise
    return sock

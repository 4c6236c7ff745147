"""Frames of every kind, put on the wire by a packet socket. Usage: inject.py ADDRESS4 ADDRESS6 DENIED4  (CAP_NET_RAW)

What a hostile workload could do with its end of the cable. Prints the number of frames sent.
"""

import socket
import struct
import sys

four, six, denied = sys.argv[1:4]


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, destination: str, protocol: int, payload: bytes, flags: int = 0) -> bytes:
    def header(check: int) -> bytes:
        ends = socket.inet_aton(source) + socket.inet_aton(destination)
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, flags, 64, protocol, check) + ends

    return header(checksum(header(0))) + payload


def ipv6(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends + payload


def interface() -> str:
    """Our only way out."""
    (name,) = [name for _, name in socket.if_nameindex() if name != "lo"]
    return name


def neighbour(sock: socket.socket) -> bytes:
    """The hardware address at the other end of the cable, from an allowed connection's answer."""
    sock.settimeout(10)
    with socket.create_connection((four, 80), timeout=10):
        while True:
            frame, address = sock.recvfrom(2000)
            if address[2] != socket.PACKET_OUTGOING and frame[12:14] == b"\x08\0":
                return frame[6:12]


def own_addresses() -> tuple[str, str]:
    ours = []
    for family, towards in ((socket.AF_INET, four), (socket.AF_INET6, six)):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((towards, 9))
            ours.append(probe.getsockname()[0])
    return ours[0], ours[1]


mine, mine6 = own_addresses()
udp = struct.pack("!HHHH", 4000, 9999, 12, 0) + b"out!"
quic = struct.pack("!HHHH", 4000, 443, 12, 0) + b"out!"
echo, echo6 = b"\x08\0" + bytes(6), b"\x80\0" + bytes(6)
tcp = (
    struct.pack("!HHIIBBHHH", 4000, 80, 1, 1, 0x50, 0x18, 1000, 0, 0) + b"out!"
)  # PSH and ACK, no SYN before
syn_ack = struct.pack("!HHIIBBHHH", 4000, 80, 1, 1, 0x50, 0x12, 1000, 0, 0)
rst = struct.pack("!HHIIBBHHH", 4000, 80, 1, 1, 0x50, 0x04, 1000, 0, 0)
packets = []
for source in (
    mine,
    "192.0.2.10",
    "203.0.113.200",
    "127.0.0.1",
):  # our own, the host's, a stranger's, nonsense
    for protocol, payload in (
        (17, udp),
        (17, quic),
        (1, echo),
        (6, tcp),
        (6, syn_ack),
        (6, rst),
        (47, udp),
        (132, udp),
    ):
        packets.append((0x0800, ipv4(source, four, protocol, payload)))
    packets.append((0x0800, ipv4(source, four, 17, udp[:8], flags=0x2000)))  # a first fragment
    packets.append((0x0800, ipv4(source, four, 17, udp, flags=0x0010)))  # a later one
    packets.append((0x0800, ipv4(source, "255.255.255.255", 17, udp)))
    packets.append((0x0800, ipv4(source, "224.0.0.251", 17, udp)))
for source in (mine6, "2001:db8:1::10", "2001:db8:9::9"):
    for protocol, payload in ((17, udp), (58, echo6), (6, tcp), (6, syn_ack), (47, udp)):
        packets.append((0x86DD, ipv6(source, six, protocol, payload)))
    hop_by_hop = bytes([17, 0, 1, 4, 0, 0, 0, 0])
    packets.append((0x86DD, ipv6(source, six, 0, hop_by_hop + udp)))
packets.append((0x0806, bytes.fromhex("0001080006040001") + bytes(20)))  # ARP
packets.append((0x88B5, b"not even IP"))

# A connection by hand is a connection, and judged like one: so to where a rule forbids it, from our own address and
# from others', and with the mark of a SYN that the forwarder itself has let through.
syn = struct.pack("!HHIIBBHHH", 4001, 80, 1, 0, 0x50, 0x02, 1000, 0, 0)
packets += [(0x0800, ipv4(source, denied, 6, syn)) for source in (mine, "192.0.2.10", "203.0.113.200")]

sent = 0
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
    sock.bind((interface(), 3))
    own, peer = sock.getsockname()[4], neighbour(sock)
    for destination in (peer, b"\xff" * 6, b"\x33\x33\0\0\0\x01", b"\x01\0\x5e\0\0\xfb"):
        for source in (own, b"\x02GRAFT", peer):
            for ethertype, packet in packets:
                sock.send(destination + source + struct.pack("!H", ethertype) + packet)
                sent += 1
print(sent)

"""Everything that is not TCP, or DNS, ends at the cable; quickly where a program can be told. Root in W may try all.

Each test has an Internet on which every frame is seen. What a test sends last, by an allowed TCP connection, shows
that all before it had its chance.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground.child import in_own_namespaces
from ground.frames import checksum, ethernet, ipv4, packed, take_apart, tcp
from ground.grafts import Graft, graft
from ground.network import OTHER, WEB, WEB6, Network, internet

from netns_graft.linux.cable import WORKLOAD_V4
from netns_graft.linux.wiring import FORWARDER_MAC, WORKLOAD_MAC

V4, V6 = socket.AF_INET, socket.AF_INET6
QUICK = 0.5  # seconds
MAC_F, MAC_W = FORWARDER_MAC, WORKLOAD_MAC
IP_RECVERR = 11


class Seen:
    """What left the host while a test went on, apart from the connection that ends it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def frames(self) -> list[bytes]:
        self.sock.setblocking(False)
        found = []
        while True:
            try:
                frame, address = self.sock.recvfrom(70_000)
            except BlockingIOError:
                return found
            if address[2] != socket.PACKET_OUTGOING:
                found.append(frame)


@contextmanager
def watched() -> Iterator[tuple[Graft, Network, Seen]]:
    """A graft that allows everything, its Internet, and what arrives there."""
    with internet() as inet, graft() as it:
        wire = inet.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        with wire:
            wire.bind(("i0", 3))
            yield it, inet, Seen(wire)


def assert_only_the_last(it: Graft, inet: Network, seen: Seen) -> None:
    """One connection to OTHER, and nothing else has left the host, but for its own multicast and neighbours."""
    with inet.listener(OTHER, 99) as listener, it.connect(OTHER, 99):
        listener.accept()[0].close()
    it.flow()
    targets = set()
    for frame in seen.frames():
        if frame[12:14] not in (b"\x08\0", b"\x86\xdd"):
            assert frame[12:14] == b"\x08\x06", f"a frame of kind {frame[12:14].hex()}"
            continue
        packet = take_apart(frame)
        if frame[0] & 1 or packet.protocol == 58:  # multicast, neighbour discovery: the host's own link
            assert packet.source not in (WORKLOAD_V4,)
            continue
        targets.add((packet.target, packet.protocol))
    assert targets == {(OTHER, socket.IPPROTO_TCP)}


@pytest.mark.parametrize("port", [9, 123, 443, 53535, 54])
@pytest.mark.parametrize("target", [WEB, WEB6], ids=["IPv4", "IPv6"])
@in_own_namespaces
def test_udp_is_refused_at_once(target: str, port: int) -> None:
    with watched() as (it, inet, seen):
        with it.socket(V6 if ":" in target else V4, socket.SOCK_DGRAM) as sock:
            sock.connect((target, port))
            begin = time.monotonic()
            sock.send(b"datagram")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(10)
            assert time.monotonic() - begin < QUICK
        assert_only_the_last(it, inet, seen)


@pytest.mark.parametrize("target", [WEB, WEB6], ids=["IPv4", "IPv6"])
@in_own_namespaces
def test_every_datagram_of_many_is_refused(target: str) -> None:
    """No limit on ICMP errors, per target or in all, makes a program wait."""
    with watched() as (it, _, _), it.socket(V6 if ":" in target else V4, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        for number in range(2000):
            sock.connect((target, 1000 + number))
            sock.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(10)


@in_own_namespaces
def test_quic_and_other_large_datagrams() -> None:
    with watched() as (it, inet, seen):
        for size in (1200, 9000, 65000):
            with it.socket(V4, socket.SOCK_DGRAM) as sock:
                sock.connect((WEB, 443))
                sock.send(bytes(size))
                with pytest.raises(ConnectionRefusedError):
                    sock.recv(10)
        assert_only_the_last(it, inet, seen)


@pytest.mark.parametrize("target", [WEB, WEB6], ids=["IPv4", "IPv6"])
@in_own_namespaces
def test_ping_is_forbidden_at_once(target: str) -> None:
    """By a raw socket, as root's ping has it."""
    family = V6 if ":" in target else V4
    with watched() as (it, inet, seen):
        with it.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if family == V6 else socket.IPPROTO_ICMP) as sock:
            sock.connect((target, 0))
            echo = struct.pack("!BBHHH", 128 if family == V6 else 8, 0, 0, 7, 1)
            begin = time.monotonic()
            sock.send(echo if family == V6 else echo[:2] + checksum(echo) + echo[4:])
            assert _error(sock, family) in (errno.EHOSTUNREACH, errno.EACCES)
            assert time.monotonic() - begin < QUICK
        assert_only_the_last(it, inet, seen)


def _error(sock: socket.socket, family: int) -> int:
    """The error that comes back for what was sent: raw sockets get theirs by the error queue."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        for _, events in poll.poll(1000):
            if events & select.POLLERR:
                return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            frame = sock.recv(2000)  # a raw ICMP socket also sees the message itself
            kind, code = (frame[20], frame[21]) if family == V4 else (frame[0], frame[1])
            if (family, kind, code) in ((V4, 3, 13), (V6, 1, 1)):
                return errno.EHOSTUNREACH if family == V4 else errno.EACCES
    raise AssertionError("no error came")


@pytest.mark.parametrize("protocol", [2, 41, 47, 50, 132, 200, 255 - 1], ids=lambda number: f"protocol-{number}")
@in_own_namespaces
def test_other_protocols_are_forbidden(protocol: int) -> None:
    """IGMP, IPv6 in IPv4, GRE, ESP, SCTP and what nobody knows: tunnels end here too."""
    with watched() as (it, inet, seen):
        with it.socket(V4, socket.SOCK_RAW, protocol) as sock:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            sock.connect((WEB, 0))
            sock.send(bytes(40))
            poll = select.poll()
            poll.register(sock, 0)
            assert poll.poll(3000)
        assert_only_the_last(it, inet, seen)


@in_own_namespaces
def test_frames_of_any_kind_go_nowhere() -> None:
    """ARP, VLANs, LLDP, garbage, and IP frames that pretend to be somebody else's."""
    with watched() as (it, inet, seen):
        with it.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            for kind in ("0806", "8100", "88cc", "88b5", "0000", "ffff", "8847"):
                wire.send(MAC_F + MAC_W + bytes.fromhex(kind) + os.urandom(60))
            for source in ("192.0.2.10", "127.0.0.1", "0.0.0.0", WEB, "255.255.255.255", "224.0.0.1", "10.0.0.1"):
                for target in (WEB, "192.0.2.1", "127.0.0.1", "255.255.255.255"):
                    for payload, protocol in ((b"\0\7\0\7\0\x0c\0\0abcd", 17), (b"\x08\0\0\0", 1), (bytes(20), 6)):
                        wire.send(ethernet(MAC_F, MAC_W, ipv4(packed(source), packed(target), protocol, payload)))
            syn = tcp(packed("192.0.2.10"), 4000, packed(WEB), 80, 1, 0, 0x10)  # an ACK out of nowhere
            wire.send(ethernet(MAC_F, MAC_W, ipv4(packed("192.0.2.10"), packed(WEB), 6, syn)))
        assert_only_the_last(it, inet, seen)


@in_own_namespaces
def test_fragments_go_nowhere() -> None:
    """A SYN in pieces is no SYN to the tap; nor may it be to the listener."""
    with watched() as (it, inet, seen):
        whole = tcp(packed(WORKLOAD_V4), 4000, packed(WEB), 80, 1, 0, 2, options=bytes(20))
        with it.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            for offset, more in ((0, 0x2000), (8, 0x2000), (16, 0x2000), (24, 0)):
                piece = whole[offset : offset + 8] if more else whole[offset:]
                flags = more | offset // 8
                wire.send(ethernet(MAC_F, MAC_W, ipv4(packed(WORKLOAD_V4), packed(WEB), 6, piece, flags=flags)))
        assert_only_the_last(it, inet, seen)


@in_own_namespaces
def test_root_in_w_finds_no_other_way() -> None:
    """With every capability in W: more addresses, other routes, another MAC. All of it still ends at the forwarder."""
    from ground.network import add_route, configure

    with watched() as (it, inet, seen):
        with it.workload.inside():
            configure("eth0", "192.0.2.77/24", "2001:db8:1::77/64")
            add_route("203.0.113.0/24", oif=socket.if_nametoindex("eth0"))
        with it.socket(V4, socket.SOCK_DGRAM) as sock:
            sock.bind(("192.0.2.77", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for target in (WEB, "192.0.2.255", "255.255.255.255", "224.0.0.251"):
                try:
                    sock.sendto(b"x", (target, 5353))
                except OSError:
                    pass  # refused by W itself, or the error for the one before
        assert_only_the_last(it, inet, seen)


@in_own_namespaces
def test_a_broken_syn_does_not_stop_the_forwarder() -> None:
    """SYNs with odd headers, in number: the next program is served all the same."""
    with watched() as (it, inet, seen):
        with it.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            own, target = packed(WORKLOAD_V4), packed("127.0.0.1")
            good = ipv4(own, target, 6, tcp(own, 1, target, 1, 1, 0, 2))
            for length in range(14, len(good)):
                wire.send(ethernet(MAC_F, MAC_W, good[:length]))
            for place in range(20):
                for value in (0, 0x4F, 0xFF):
                    wire.send(ethernet(MAC_F, MAC_W, good[:place] + bytes([value]) + good[place + 1 :]))
        with inet.listener(OTHER, 98) as listener, it.connect(OTHER, 98):
            listener.accept()[0].close()
        assert not any(take_apart(frame).source == WORKLOAD_V4 for frame in seen.frames() if frame[12:14] == b"\x08\0")

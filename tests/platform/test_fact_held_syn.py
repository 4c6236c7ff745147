"""How a connect() may be answered by somebody else's packets. Should these fall, flows are accepted before the verdict.

Two namespaces on a cable: the test's own, where the program is, and another, in which a packet socket stands for the
forwarder. It sees the SYN and answers by hand; the program's kernel believes it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground.child import in_own_namespaces
from ground.frames import ACK, RST, SYN, ethernet, icmp, packed, packet, take_apart, tcp
from ground.network import MAC, PEER_MAC, Network, add_route, configure, neighbour, ready, sysctl, veth
from pyroute2.nftables.expressions import genex
from pyroute2.nftables.expressions import verdict as nft_verdict
from pyroute2.nftables.main import NFTables

ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR = 263, 15
OWN = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
FAR = {socket.AF_INET: "192.0.2.2", socket.AF_INET6: "2001:db8::2"}
NOBODY = {socket.AF_INET: "192.0.2.3", socket.AF_INET6: "2001:db8::3"}
V4, V6 = socket.AF_INET, socket.AF_INET6
SYN_SENT, CLOSED = 2, 7  # linux/tcp_states.h
MARK = bytes.fromhex("020102030405")


@contextmanager
def cable() -> Iterator[Network]:
    with Network() as far:
        veth("near", "far", far)
        with far.inside():
            configure("far", f"{FAR[V4]}/24", f"{FAR[V6]}/64")
            for address in OWN.values():
                neighbour("far", address, MAC)
        configure("near", f"{OWN[V4]}/24", f"{OWN[V6]}/64")
        ready((None, "near"), (far, "far"))
        for address in (*FAR.values(), *NOBODY.values()):
            neighbour("near", address, PEER_MAC)
        yield far


def frames(network: Network | None, link: str, header: bool = False) -> socket.socket:
    """A packet socket on ``link``; with ``header``, each frame has a virtio_net_hdr before it."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW) if network is None else network.socket(
        socket.AF_PACKET, socket.SOCK_RAW
    )
    sock.settimeout(5)
    if header:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.bind((link, ETH_P_ALL))
    return sock


def syn_from(sock: socket.socket, header: int = 0) -> bytes:
    """The next TCP SYN that ``sock`` sees, without its virtio_net_hdr's ``header`` bytes."""
    while True:
        frame = sock.recv(70_000)
        if frame[header + 12 : header + 14] in (b"\x08\0", b"\x86\xdd"):
            seen = take_apart(frame[header:])
            if seen.protocol == 6 and seen.flags & (SYN | ACK) == SYN:
                return frame


@contextmanager
def attempt(family: int) -> Iterator[socket.socket]:
    """A connect() that waits for an answer, its SYN sent and the call over."""
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as program:
        assert program.connect_ex((NOBODY[family], 80)) == errno.EINPROGRESS
        yield program


def verdict(program: socket.socket) -> int:
    """What connect() gives, within half a second: before the SYN is sent again."""
    poll = select.poll()
    poll.register(program, select.POLLOUT)
    assert poll.poll(500), "no answer was believed"
    return program.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])
@in_own_namespaces
def test_a_reset_is_econnrefused(family: int) -> None:
    with cable() as far, frames(far, "far") as forwarder, attempt(family) as program:
        syn = take_apart(syn_from(forwarder))
        source, target = packed(syn.target), packed(syn.source)
        segment = tcp(source, 80, target, syn.ports[0], 0, syn.sequence[0] + 1 & 0xFFFFFFFF, RST | ACK)
        forwarder.send(ethernet(syn.source_mac, syn.target_mac, packet(source, target, 6, segment)))
        assert verdict(program) == errno.ECONNREFUSED


def state(program: socket.socket) -> int:
    return program.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


ICMP_ERRORS = [
    pytest.param(V4, 3, 0, errno.ENETUNREACH, id="IPv4-net"),
    pytest.param(V4, 3, 1, errno.EHOSTUNREACH, id="IPv4-host"),
    pytest.param(V4, 3, 3, errno.ECONNREFUSED, id="IPv4-port"),
    pytest.param(V4, 3, 6, errno.ENETUNREACH, id="IPv4-net-unknown"),
    pytest.param(V4, 3, 12, errno.EHOSTUNREACH, id="IPv4-host-for-tos"),
    pytest.param(V4, 3, 13, errno.EHOSTUNREACH, id="IPv4-prohibited"),  # there is none that gives EACCES
    pytest.param(V6, 1, 0, errno.ENETUNREACH, id="IPv6-net"),
    pytest.param(V6, 1, 1, errno.EACCES, id="IPv6-prohibited"),
    pytest.param(V6, 1, 3, errno.EHOSTUNREACH, id="IPv6-address"),
    pytest.param(V6, 1, 4, errno.ECONNREFUSED, id="IPv6-port"),
]


def icmp_answer(frame: bytes, kind: int, code: int) -> bytes:
    """The ICMP error for the packet in ``frame``, from the address that it was sent to."""
    seen = take_apart(frame)
    source, target = packed(seen.target), packed(seen.source)
    message = icmp(source, target, kind, code, frame[14:])
    return ethernet(seen.source_mac, seen.target_mac, packet(source, target, 1 if len(source) == 4 else 58, message))


@pytest.mark.parametrize(("family", "kind", "code", "number"), ICMP_ERRORS)
@in_own_namespaces
def test_an_icmp_error_is_final_for_a_socket_in_syn_sent(family: int, kind: int, code: int, number: int) -> None:
    """And which errno it gives: the table in wire/packet.py."""
    with cable() as far, frames(far, "far") as forwarder, attempt(family) as program:
        forwarder.send(icmp_answer(syn_from(forwarder), kind, code))
        assert verdict(program) == number
        assert state(program) == CLOSED


@in_own_namespaces
def test_an_icmp_error_inside_the_connect_call_is_only_a_hint() -> None:
    """tcp_v4_err spares a socket that a system call is holding. A reset would wait its turn; an ICMP error does not.

    So a refusal must come from elsewhere, later: as the forwarder's does, and as a rule of nft in W, which answers
    from within the call itself, would not. Falls (it became final): nothing, and W could refuse by itself.
    """
    with cable() as far:
        with far.inside():
            sysctl("net/ipv4/ip_forward", "1")  # the far end routes, knows no way to NOBODY and says so at once
            add_route(f"{NOBODY[V4]}/32", type="unreachable")
        with frames(None, "near") as wire, attempt(V4) as program:
            while (seen := wire.recvfrom(2000))[1][2] == socket.PACKET_OUTGOING:
                pass
            assert take_apart(seen[0]).protocol == 1  # the error is here already
            assert state(program) == SYN_SENT  # a connect() that blocks goes on, until the SYN is sent again
            assert program.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH


@pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])
@in_own_namespaces
def test_a_syn_that_was_dropped_and_is_put_back_completes_the_handshake(family: int) -> None:
    """Held by a rule of FAR's that drops SYNs unless they come from MARK; put back from the program's side with that
    source MAC, by a packet socket with PACKET_VNET_HDR, since over a veth its checksum is only partial.
    """
    with cable() as far:
        with far.inside():
            _drop_syns_unless_marked()
            listener = socket.create_server((FAR[family], 80), family=family)
        listener.settimeout(5)
        program = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        tap, injector = frames(far, "far", header=True), frames(None, "near", header=True)
        with listener, tap, injector, program:
            assert program.connect_ex((FAR[family], 80)) == errno.EINPROGRESS
            held = syn_from(tap, 10)
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()
            listener.settimeout(5)
            injector.send(held[:16] + MARK + held[22:])
            served, peer = listener.accept()
            with served:
                assert peer[:2] == program.getsockname()[:2]
                assert verdict(program) == 0
                served.sendall(b"in")
                assert program.recv(10) == b"in"


@in_own_namespaces
def test_without_the_virtio_header_the_checksum_is_only_partial() -> None:
    """Falls (it is complete): PACKET_VNET_HDR could go, and ten bytes of each frame with it."""
    with cable() as far, frames(far, "far", header=True) as tap, attempt(V4):
        held = syn_from(tap, 10)
        needs_checksum = held[0] & 1
        assert bool(needs_checksum) is (take_apart(held[10:]).checksums[1] is False)
        assert needs_checksum


def _drop_syns_unless_marked() -> None:
    def data(value: bytes) -> dict[str, object]:
        return {"attrs": [("NFTA_DATA_VALUE", value)]}

    with NFTables(nfgen_family=1) as nft:
        nft.table("add", name="t")
        nft.chain("add", table="t", name="c", hook="prerouting", type="filter", policy=1, priority=-150)
        nft.rule("add", table="t", chain="c", expressions=[[
            genex("meta", {"key": 16, "dreg": 1}), genex("cmp", {"sreg": 1, "op": 0, "data": data(b"\x06")}),
            genex("payload", {"dreg": 1, "base": 2, "offset": 13, "len": 1}),
            genex("bitwise", {"sreg": 1, "dreg": 1, "len": 1, "mask": data(b"\x12"), "xor": data(b"\0")}),
            genex("cmp", {"sreg": 1, "op": 0, "data": data(b"\x02")}),
            genex("payload", {"dreg": 1, "base": 0, "offset": 6, "len": 6}),
            genex("cmp", {"sreg": 1, "op": 1, "data": data(MARK)}),
        ], nft_verdict(0)])  # fmt: skip


@in_own_namespaces
def test_a_classic_filter_counts_from_the_ethernet_header() -> None:
    """Whatever PACKET_VNET_HDR puts before it. Falls: the tap's filter (linux/packet.py) reads the wrong bytes."""
    import ctypes

    steps = [(0x28, 0, 0, 12), (0x15, 0, 1, 0x88B5), (0x06, 0, 0, 0x40000), (0x06, 0, 0, 0)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    with cable() as far, frames(far, "far", header=True) as tap, frames(None, "near", header=True) as sender:
        tap.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", len(steps), ctypes.addressof(program)))
        head = bytes(10) + bytes.fromhex(PEER_MAC.replace(":", "")) + MARK
        for kind in (b"\x88\xb6", b"\x88\xb5"):  # IEEE's ethertypes for experiments
            sender.send(head + kind + os.urandom(50))
        while (frame := tap.recv(2000))[16:22] != MARK:
            pass  # what came before the filter did
        assert frame[22:24] == b"\x88\xb5"

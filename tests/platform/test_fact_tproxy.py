"""TPROXY, AnyIP and transparent sockets, by netlink alone. Should they fall, F needs NAT and conntrack, or a binary."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground.child import in_own_namespaces
from ground.network import MAC, PEER_MAC, Network, add_route, configure, neighbour, ready, veth
from pyroute2 import IPRoute
from pyroute2.nftables.expressions import genex
from pyroute2.nftables.main import NFTables

IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75
IP_PKTINFO = 8
TABLE = 100
PROGRAM = {socket.AF_INET: "198.18.0.1", socket.AF_INET6: "fd6e:6574:6772::1"}
ANYWHERE = {socket.AF_INET: "93.184.216.34", socket.AF_INET6: "2606:2800:220:1::1"}
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])


@contextmanager
def anyip() -> Iterator[Network]:
    """We are F; a program's namespace W, whose default route leads to us, is given. No address lies on our end."""
    with Network() as workload:
        veth("v0", "eth0", workload, mtu=65535)
        with workload.inside():
            configure("eth0", f"{PROGRAM[socket.AF_INET]}/32", f"{PROGRAM[socket.AF_INET6]}/128")
            link = socket.if_nametoindex("eth0")
            for gateway in ("198.18.0.2", "fd6e:6574:6772::2"):
                neighbour("eth0", gateway, MAC)
                add_route("default", gateway=gateway, oif=link, flags=["onlink"])
        link = configure("v0")
        ready((None, "v0"), (workload, "eth0"))
        with IPRoute() as route:
            for family, everything in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
                neighbour("v0", PROGRAM[family], PEER_MAC)
                length = 32 if family == socket.AF_INET else 128
                route.route("add", family=family, dst=f"{PROGRAM[family]}/{length}", oif=link, scope=253)
                route.rule("add", family=family, priority=100, table=TABLE, iifname="v0")
                route.route("add", family=family, dst=everything, type="local", scope=254, oif=1, table=TABLE)
        yield workload


def transparent(family: int, kind: int, port: int = 0) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.settimeout(5)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    return sock


def redirect_tcp(port: int) -> None:
    """nft: table inet; chain prerouting, filter, -150; meta l4proto tcp tproxy to :PORT."""
    with NFTables(nfgen_family=1) as nft:
        nft.table("add", name="t")
        nft.chain("add", table="t", name="c", hook="prerouting", type="filter", policy=1, priority=-150)
        tcp = {"attrs": [("NFTA_DATA_VALUE", b"\x06")]}
        where = {"attrs": [("NFTA_DATA_VALUE", struct.pack("!H", port))]}
        nft.rule("add", table="t", chain="c", expressions=[[
            genex("meta", {"key": 16, "dreg": 1}), genex("cmp", {"sreg": 1, "op": 0, "data": tcp}),
            genex("immediate", {"dreg": 1, "data": where}), genex("tproxy", {"family": 0, "reg_port": 1}),
        ]])  # fmt: skip


@in_own_namespaces
def test_one_rule_serves_both_families_each_with_its_listener_on_one_port() -> None:
    """And the destination that the program asked for is the accepted socket's own address."""
    with anyip() as workload, transparent(socket.AF_INET, socket.SOCK_STREAM) as v4:
        port = v4.getsockname()[1]
        with transparent(socket.AF_INET6, socket.SOCK_STREAM, port) as v6:
            redirect_tcp(port)
            for listener in (v4, v6):
                listener.listen()
                for asked in (80, 443, 65535):
                    with workload.socket(listener.family) as program:
                        program.connect((ANYWHERE[listener.family], asked))
                        served, peer = listener.accept()
                        with served:
                            assert served.getsockname()[:2] == (ANYWHERE[listener.family], asked)
                            assert peer[:2] == program.getsockname()[:2]
                            served.sendall(b"hello")
                            assert program.recv(10) == b"hello"


@in_own_namespaces
def test_an_accepted_socket_inherits_nodelay() -> None:
    """Falls: one system call more per connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as served:
            assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


@FAMILIES
@in_own_namespaces
def test_anyip_brings_datagrams_and_packet_info_sends_the_answer_from_there(family: int) -> None:
    """Falls: DNS by whatever resolver address the program asks. The program's socket is connected, so an answer from
    any other address would be thrown away.
    """
    level = socket.IPPROTO_IP if family == socket.AF_INET else socket.IPPROTO_IPV6
    wanted = IP_PKTINFO if family == socket.AF_INET else socket.IPV6_RECVPKTINFO
    with anyip() as workload, transparent(family, socket.SOCK_DGRAM, 53) as resolver:
        resolver.setsockopt(level, wanted, 1)
        with workload.socket(family, socket.SOCK_DGRAM) as program:
            program.connect((ANYWHERE[family], 53))
            program.send(b"?")
            _, ancillary, _, peer = resolver.recvmsg(100, socket.CMSG_SPACE(20))
            [(got_level, kind, info)] = ancillary
            asked = socket.inet_pton(family, ANYWHERE[family])
            if family == socket.AF_INET:
                assert (got_level, kind, info[8:12]) == (socket.IPPROTO_IP, IP_PKTINFO, asked)
                source = bytes(4) + asked + bytes(4)
            else:
                assert (got_level, kind, info[:16]) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, asked)
                source = asked + bytes(4)
            resolver.sendmsg([b"!"], [(got_level, kind, source)], 0, peer)
            assert program.recv(10) == b"!"


@in_own_namespaces
def test_without_transparency_no_answer_leaves_from_a_foreign_address() -> None:
    """IP_TRANSPARENT is what the resolver's socket needs: the kernel refuses the source otherwise."""
    with anyip() as workload, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind(("0.0.0.0", 53))
        with workload.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
            program.bind(("", 0))
            source = bytes(4) + socket.inet_aton(ANYWHERE[socket.AF_INET]) + bytes(4)
            to = (PROGRAM[socket.AF_INET], program.getsockname()[1])
            with pytest.raises(OSError):
                resolver.sendmsg([b"!"], [(socket.IPPROTO_IP, IP_PKTINFO, source)], 0, to)


@in_own_namespaces
def test_a_nexthop_may_lie_outside_every_prefix() -> None:
    """RTNH_F_ONLINK with a permanent neighbour. Falls: point-to-point addressing that shadows no destination."""
    with anyip() as workload, workload.inside():
        with open("/proc/self/net/route") as file:
            [_, default] = file.read().splitlines()
        gateway = int.from_bytes(socket.inet_aton("198.18.0.2"), "little")
        assert default.split()[:3] == ["eth0", "00000000", f"{gateway:08X}"]

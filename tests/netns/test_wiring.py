"""F and W as they are built: what is there, and above all what is not."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from ground.child import eventually, in_own_namespaces
from ground.frames import take_apart
from ground.network import Network, sysctl
from pyroute2 import IPRoute

from netns_graft.linux import syscalls, wiring
from netns_graft.linux.cable import GATEWAY_V4, GATEWAY_V6, WORKLOAD_V4, WORKLOAD_V6, Wiring

V4, V6 = socket.AF_INET, socket.AF_INET6
MAIN, LOCAL = 254, 255  # routing tables
ETH_P_ALL = 3


@contextmanager
def built(**how: Any) -> Iterator[tuple[Wiring, Network, Network]]:
    """A wiring, F and W. We are elsewhere, as the forwarder is."""
    here_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    it = wiring.build(**{"hold": True, "dns": True, **how})
    syscalls.setns(here_fd, syscalls.CLONE_NEWNET)
    os.close(here_fd)
    try:
        yield it, Network(it.forwarder_ns_fd), Network(it.workload_ns_fd)
    finally:
        for sock in it.sockets():
            sock.close()
        os.close(it.forwarder_ns_fd)
        os.close(it.workload_ns_fd)


def inside(network: Network, ask: Callable[[IPRoute], Any]) -> Any:
    with network.inside(), IPRoute() as route:
        return ask(route)


def addresses(network: Network) -> set[tuple[str, str, int]]:
    def ask(route: IPRoute) -> set[tuple[str, str, int]]:
        names = {link["index"]: link.get("ifname") for link in route.get_links()}
        return {(names[it["index"]], it.get("address"), it["prefixlen"]) for it in route.get_addr()}

    return inside(network, ask)


def routes(network: Network, table: int = MAIN) -> set[tuple[int, str | None, int, str | None]]:
    """(family, destination, prefix length, gateway); the destination of a default route is None."""
    return {
        (it["family"], it.get("dst"), it["dst_len"], it.get("gateway"))
        for it in inside(network, lambda route: list(route.get_routes()))
        if it.get("table") == table
    }


@in_own_namespaces
def test_the_forwarders_side_is_v0_and_lo_and_no_more() -> None:
    with built() as (_, forwarder, _workload):
        links = inside(forwarder, lambda route: {it.get("ifname"): it for it in route.get_links()})
        assert {name for name, it in links.items() if it["flags"] & 1} == {"lo", "v0"}  # what is up
        assert links["v0"].get("mtu") == 65535
        assert addresses(forwarder) == {
            ("lo", "127.0.0.1", 8), ("lo", "::1", 128),
            ("v0", GATEWAY_V4, 32), ("v0", GATEWAY_V6, 128),  # what ICMP errors come from
        }  # fmt: skip
        everywhere = {
            (V4, WORKLOAD_V4, 32, None), (V6, WORKLOAD_V6, 128, None),
            # W may have addresses that we know nothing of; there is nowhere else to go
            (V4, None, 0, WORKLOAD_V4), (V6, None, 0, WORKLOAD_V6),
        }  # fmt: skip
        assert {it for it in routes(forwarder) if it[1] not in (GATEWAY_V6, "ff00::")} == everywhere
        assert {(it[0], it[2]) for it in routes(forwarder, wiring.TABLE)} == {(V4, 0), (V6, 0)}


@in_own_namespaces
def test_the_workloads_side_has_one_default_route_a_family() -> None:
    with built() as (_, _forwarder, workload):
        up = inside(workload, lambda route: {it.get("ifname") for it in route.get_links() if it["flags"] & 1})
        assert up == {"lo", "eth0"}
        assert addresses(workload) == {
            ("lo", "127.0.0.1", 8), ("lo", "::1", 128),
            ("eth0", WORKLOAD_V4, 32), ("eth0", WORKLOAD_V6, 128),
        }  # fmt: skip
        default = {(V4, None, 0, GATEWAY_V4), (V6, None, 0, GATEWAY_V6)}
        found = routes(workload)
        assert {it for it in found if it[2] == 0} == default
        # its own address and multicast, nothing that shadows a destination
        assert {it[1] for it in found - default} <= {WORKLOAD_V6, "ff00::"}


@in_own_namespaces
def test_no_link_local_address_appears_later_either() -> None:
    with built() as (_, forwarder, workload):
        for network, name in ((forwarder, "v0"), (workload, "eth0")):
            assert eventually(partial(_carrier, network, name))
        for network in (forwarder, workload):
            assert not any(address.startswith("fe80") for _, address, _ in addresses(network))


def _carrier(network: Network, name: str) -> bool:
    links = inside(network, lambda route: route.get_links())
    return any(it.get("ifname") == name and it.get("operstate") == "UP" for it in links)


@in_own_namespaces
def test_the_cable_carries_packets_as_soon_as_it_is_built() -> None:
    """Or the first connection of one graft in forty would wait a second for its SYN to be sent again."""
    for _ in range(5):
        with built() as (_, forwarder, workload):
            for network, name in ((forwarder, "v0"), (workload, "eth0")):
                [link] = inside(network, lambda route, name=name: route.get_links(route.link_lookup(ifname=name)[0]))
                assert link.get("qdisc") != "noop"


@in_own_namespaces
def test_nothing_is_forwarded_and_neither_side_takes_advice() -> None:
    with built() as (_, forwarder, workload):
        for network in (forwarder, workload):
            with network.inside():
                assert sysctl("net/ipv4/ip_forward") == "0"
                assert sysctl("net/ipv6/conf/all/forwarding") == "0"
                assert sysctl("net/ipv4/conf/all/route_localnet") == "0"
                assert sysctl("net/ipv6/conf/all/accept_ra") == "0"
        with workload.inside():
            assert sysctl("net/ipv6/conf/eth0/accept_ra") == "0"
            assert sysctl("net/ipv4/conf/eth0/route_localnet") == "0"
        with forwarder.inside():
            assert sysctl("net/ipv4/conf/v0/rp_filter") == "0"
            assert sysctl("net/ipv4/conf/all/rp_filter") == "0"


@in_own_namespaces
def test_settings_of_the_host_do_not_leak_in() -> None:
    """A new namespace inherits IPv4 settings from the first one; a host that routes must not make F a router."""
    sysctl("net/ipv4/ip_forward", "1")
    sysctl("net/ipv4/conf/all/rp_filter", "1")
    with built() as (_, forwarder, workload):
        for network in (forwarder, workload):
            with network.inside():
                assert (sysctl("net/ipv4/ip_forward"), sysctl("net/ipv4/conf/all/rp_filter")) == ("0", "0")


@in_own_namespaces
def test_the_sockets_are_born_where_they_belong() -> None:
    with built(loopback_resolvers=["127.0.0.53", "::1", "127.0.0.53", "203.0.113.1"]) as (it, forwarder, workload):
        assert it.tap_sock is not None and it.inject_sock is not None
        home = {sock: _namespace_of(sock) for sock in it.sockets()}
        in_f = [*it.listeners, it.tap_sock, *it.resolvers[:2]]
        in_w = [it.inject_sock, *it.resolvers[2:]]
        assert {home[sock] for sock in in_f} == {forwarder.inode}
        assert {home[sock] for sock in in_w} == {workload.inode}
        # each loopback resolver twice, UDP and TCP; neither a repeated one nor one that W cannot have
        assert [(sock.type, sock.getsockname()[0]) for sock in it.resolvers[2:]] == [
            (socket.SOCK_DGRAM, "127.0.0.53"), (socket.SOCK_STREAM, "127.0.0.53"),
            (socket.SOCK_DGRAM, "::1"), (socket.SOCK_STREAM, "::1"),
        ]  # fmt: skip


def _namespace_of(sock: socket.socket) -> int:
    """SIOCGSKNS: the inode of a socket's network namespace. (For CAP_NET_ADMIN in it.)"""
    fd = fcntl.ioctl(sock, 0x894C)
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


@in_own_namespaces
def test_listeners_share_a_port_and_are_one_a_family() -> None:
    with built() as (it, _, _):
        assert [sock.family for sock in it.listeners] == [V4, V6]
        assert len({sock.getsockname()[1] for sock in it.listeners}) == 1


@in_own_namespaces
def test_without_dns_nobody_listens_on_53() -> None:
    with built(dns=False, loopback_resolvers=["127.0.0.53"]) as (it, _, workload):
        assert it.resolvers == []
        with workload.socket(V4, socket.SOCK_DGRAM) as program:
            program.connect(("9.9.9.9", 53))
            program.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                program.recv(10)


@in_own_namespaces
def test_without_holding_there_are_no_packet_sockets() -> None:
    with built(hold=False) as (it, _, workload):
        assert it.tap_sock is it.inject_sock is None
        with workload.socket() as program:  # accepted by the kernel at once
            program.connect(("93.184.216.34", 80))
            served, _ = it.listeners[0].accept()
            with served:
                assert served.getsockname() == ("93.184.216.34", 80)


@in_own_namespaces
def test_the_mark_is_another_one_each_time_and_a_local_unicast_address() -> None:
    marks = []
    for _ in range(2):
        with built() as (it, _, _):
            marks.append(it.mark)
    assert marks[0] != marks[1] and {len(mark) for mark in marks} == {6}
    assert {mark[0] for mark in marks} == {2}


@in_own_namespaces
def test_the_tap_sees_syns_and_nothing_else() -> None:
    """Both families; neither our own, marked, nor the rest of a connection, nor UDP."""
    with built() as (it, _, workload):
        assert it.tap_sock is not None and it.inject_sock is not None
        it.tap_sock.settimeout(5)
        seen = []
        for family, target in ((V4, "93.184.216.34"), (V6, "2606:2800:220:1::1")):
            with workload.socket(family, socket.SOCK_DGRAM) as program:
                program.sendto(b"not TCP", (target, 80))
            with workload.socket(family) as program:
                program.setblocking(False)
                program.connect_ex((target, 80))
                frame = b""  # a slow machine sends the other family's SYN again
                while not frame or take_apart(frame[10:]).ports[0] != program.getsockname()[1]:
                    frame = it.tap_sock.recv(2000)
                seen.append(take_apart(frame[10:]))
                it.inject_sock.send(frame[:16] + it.mark + frame[22:])  # now the connection comes about
                program.settimeout(5)
                assert eventually(partial(_accepted, it.listeners[0 if family == V4 else 1]))
                program.sendall(b"data")
        assert [(it.target, it.ports[1], it.flags & 0x12) for it in seen] == [
            ("93.184.216.34", 80, 2), ("2606:2800:220:1::1", 80, 2)
        ]  # fmt: skip
        it.tap_sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                again = take_apart(it.tap_sock.recv(2000)[10:])
                assert again.protocol == 6 and again.flags & 0x12 == 2


def _accepted(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@in_own_namespaces
def test_the_cable_is_silent_by_itself() -> None:
    """No ARP, no neighbour or router solicitation, for as long as nobody speaks. (Multicast reports are W's own.)"""
    with built() as (_, forwarder, workload):
        wire = forwarder.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        four, six = workload.socket(V4, socket.SOCK_DGRAM), workload.socket(V6, socket.SOCK_DGRAM)
        with wire, four, six:
            wire.bind(("v0", ETH_P_ALL))
            four.sendto(b"last", ("93.184.216.34", 9))
            six.sendto(b"last", ("2606:2800:220:1::1", 9))
            kinds, frame = set(), b""
            while not (frame.endswith(b"last") and frame[12:14] == b"\x86\xdd"):
                frame = wire.recv(2000)
                kinds.add(frame[12:14])
                if frame[12:14] == b"\x86\xdd" and frame[20] == 58:
                    assert frame[54] not in (133, 134, 135, 136), "a solicitation"
            assert kinds <= {b"\x08\0", b"\x86\xdd"}  # no ARP


@in_own_namespaces
def test_two_grafts_have_the_same_addresses_and_do_not_meet() -> None:
    with built() as (one, _, workload_one), built() as (two, _, workload_two):
        for it, workload in ((one, workload_one), (two, workload_two)):
            with workload.socket() as program:
                program.setblocking(False)
                program.connect_ex(("93.184.216.34", 80))
                assert it.tap_sock is not None
                assert it.tap_sock.recv(2000)
        for it in (one, two):
            assert it.tap_sock is not None
            with pytest.raises(BlockingIOError):
                it.tap_sock.recv(2000)


@in_own_namespaces
def test_closing_the_sockets_of_f_takes_the_cable_away() -> None:
    with built() as (it, _, workload):
        for sock in (*it.listeners, *it.resolvers, it.tap_sock):
            assert sock is not None
            sock.close()
        os.dup2(it.workload_ns_fd, it.forwarder_ns_fd)  # gives up F's descriptor
        assert eventually(lambda: not inside(workload, lambda route: route.link_lookup(ifname="eth0")))
        with workload.socket() as program:
            assert program.connect_ex(("93.184.216.34", 80)) == errno.ENETUNREACH

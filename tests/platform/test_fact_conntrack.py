"""What conntrack answers, and what it lets happen. Should one fall, attribution names nobody, or a stranger."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from ground.child import eventually, fork, in_own_namespaces, wait
from ground.network import PEER_MAC, Network, configure, neighbour, veth
from pyroute2 import Conntrack
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple
from truth.scene import keep_capabilities

from netns_graft.linux import conntrack, sock_diag
from netns_graft.linux.conntrack import Tuple
from netns_graft.linux.vantage import Vantage, within

OWN, OWN6, REMOTE, REMOTE6 = "192.0.2.1", "2001:db8::1", "192.0.2.77", "2001:db8::77"
TCP = socket.IPPROTO_TCP


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, preexec_fn=keep_capabilities)


@contextmanager
def network(text: str) -> Iterator[socket.socket]:
    """A cable whose other end says nothing, these NAT rules, and a packet socket that sees what is on the wire."""
    with Network() as other:
        veth("cable", "end", other)
        with other.inside():
            configure("end")
        configure("cable", f"{OWN}/24", f"{OWN6}/64")
        for address in (REMOTE, REMOTE6):
            neighbour("cable", address, PEER_MAC)
        nft(f"table inet fact {{ chain out {{ type nat hook postrouting priority 100;\n{text}\n}}\n}}\n")
        with other.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as wire:
            wire.bind(("end", 3))
            yield wire


def netfilter() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, conntrack.NETLINK_NETFILTER)
    sock.bind((0, 0))
    return sock


def attempt(address: str, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((OWN6 if ":" in address else OWN, port))
    sock.connect_ex((address, 80))
    return sock


def on_the_wire(wire: socket.socket) -> Tuple:
    """Of the next SYN."""
    while True:
        frame = wire.recv(2048)
        kind, ip = frame[12:14], frame[14:]
        if kind == b"\x08\0" and ip[9] == TCP:
            return Tuple(ip[12:16], *struct.unpack("!H", ip[20:22]), ip[16:20], *struct.unpack("!H", ip[22:24]))
        if kind == b"\x86\xdd" and ip[6] == TCP:
            return Tuple(ip[8:24], *struct.unpack("!H", ip[40:42]), ip[24:40], *struct.unpack("!H", ip[42:44]))


@pytest.mark.parametrize("remote", [REMOTE, REMOTE6])
@in_own_namespaces
def test_the_reply_tuple_leads_to_the_original_one(remote: str) -> None:
    """Falls: whoever was translated could not be found. pyroute2 finds the same entry."""
    target = "ip6 daddr 2001:db8::77 masquerade fully-random" if ":" in remote else "masquerade fully-random"
    with network(f"meta l4proto tcp {target}") as wire, attempt(remote) as sock, netfilter() as ours:
        seen = on_the_wire(wire)
        own = sock.getsockname()
        assert seen.source_port != own[1]
        entry = conntrack.find(ours, TCP, seen.turned())
        assert entry is not None
        assert entry.original == Tuple(packed(own[0]), own[1], packed(remote), 80)
        assert entry.reply == seen.turned()
        with Conntrack(nfgen_family=sock.family) as theirs:
            reply = NFCTAttrTuple(
                family=sock.family, proto=TCP, saddr=remote, sport=80,
                daddr=socket.inet_ntop(sock.family, seen.source), dport=seen.source_port,
            )  # fmt: skip
            found = theirs.entry("get", tuple_reply=reply)
        told = NFCTAttrTuple.from_netlink(sock.family, found.get_attr("CTA_TUPLE_ORIG"))
        assert (told.saddr, told.sport, told.daddr, told.dport) == (own[0], own[1], remote, 80)


@in_own_namespaces
def test_tuples_do_not_clash_but_sockets_do() -> None:
    """Two programs, each on the wire with the addresses of the other's socket: the exact look-up names the wrong one.

    Falls: we would ask conntrack first for nothing.
    """
    swap = "tcp sport 40001 snat ip to 192.0.2.1:40002\ntcp sport 40002 snat ip to 192.0.2.1:40001"
    with network(swap) as wire, netfilter() as ours, attempt(REMOTE, 40001) as one:
        first = on_the_wire(wire)
        with attempt(REMOTE, 40002) as two:
            second = on_the_wire(wire)
            assert (first.source_port, second.source_port) == (40002, 40001)
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as diag:
                diag.bind((0, 0))
                named = sock_diag.find(diag, TCP, *second)
            assert named is not None and named.inode == os.fstat(one.fileno()).st_ino
            entry = conntrack.find(ours, TCP, second.turned())
            assert entry is not None and entry.original.source_port == two.getsockname()[1]


@in_own_namespaces
def test_a_question_finds_an_entry_by_either_tuple() -> None:
    """Falls: the answer need not be compared with the question."""
    rule = "meta l4proto tcp snat ip to 192.0.2.1:50000-50010"
    with network(rule) as wire, netfilter() as ours, attempt(REMOTE) as sock:
        own = Tuple(packed(OWN), sock.getsockname()[1], packed(REMOTE), 80)
        seen = on_the_wire(wire)
        assert conntrack.find(ours, TCP, own) == conntrack.find(ours, TCP, seen.turned()) is not None
        assert conntrack.find(ours, TCP, own.turned()) is None


@in_own_namespaces
def test_another_zone_is_found_only_by_reading_the_table() -> None:
    """Falls: the dump is not needed."""
    zone = "table ip z { chain o { type filter hook output priority -300; meta l4proto tcp ct zone set 7\n}\n}\n"
    with network("meta l4proto tcp masquerade fully-random") as wire, netfilter() as ours:
        nft(zone)
        with attempt(REMOTE) as sock:
            seen = on_the_wire(wire)
            assert conntrack.find(ours, TCP, seen.turned()) is None
            entry = conntrack.find_in_dump(ours, TCP, seen.turned())
            assert entry is not None and entry.original.source_port == sock.getsockname()[1]


@in_own_namespaces
def test_the_number_of_entries_is_each_namespaces_own() -> None:
    """Falls: "nothing was translated here" is no longer to be had for a microsecond."""
    with network("meta l4proto tcp masquerade") as wire, Network() as elsewhere:
        here_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        here, there = Vantage(here_fd), Vantage(elsewhere.fd)
        os.close(here_fd)
        assert (here.tracked_entries(), there.tracked_entries()) == (0, 0)
        with attempt(REMOTE):
            on_the_wire(wire)
            assert (here.tracked_entries(), there.tracked_entries()) == (1, 0)
        here.close()
        there.close()


@in_own_namespaces
def test_only_families_with_rules_are_tracked() -> None:
    """Falls: a family without NAT would have entries, too, and a missing one always meant that it is gone."""
    nft("table ip four { chain o { type nat hook postrouting priority 100; oifname lo accept; masquerade\n}\n}\n")
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    here = Vantage(fd)
    os.close(fd)
    assert here.tracks(4) is True
    assert here.tracks(16) is False
    here.close()


def _is_refused(work: Callable[[], object]) -> bool:
    try:
        work()
    except PermissionError:
        return True
    return False


@in_own_namespaces
def test_without_the_capability_conntrack_does_not_answer() -> None:
    """Falls: "refused" need not be told from "no entry". What was born where we may ask keeps answering us alone."""
    if os.geteuid() == 0:
        return_code = wait(fork(lambda: (os.setuid(65534), _assert_refused())))
    else:
        return_code = wait(fork(_outside))
    assert return_code == 0


def _assert_refused() -> None:
    with netfilter() as sock:
        assert _is_refused(lambda: conntrack.find(sock, TCP, Tuple(packed(OWN), 1, packed(REMOTE), 2)))


def _outside() -> None:
    """A user namespace of its own has no power over the network namespace of the one above."""
    from netns_graft.linux import syscalls

    syscalls.unshare(syscalls.CLONE_NEWUSER)
    _assert_refused()


@in_own_namespaces
def test_a_thread_changes_its_namespace_alone() -> None:
    """Falls: a vantage point could not be had without another process."""
    before = os.stat("/proc/self/ns/net").st_ino
    seen: list[int] = []
    with Network() as other:
        within(other.fd, lambda: seen.append(os.stat("/proc/thread-self/ns/net").st_ino))
        assert seen == [other.inode]
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
    assert eventually(lambda: len(os.listdir("/proc/self/task")) == 1)

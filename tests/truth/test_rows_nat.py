"""Rows 1 to 6: what NAT and nested namespaces do to the addresses that the wire shows."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

import pytest
from ground.child import eventually, in_own_namespaces
from ground.network import OTHER, WEB, WEB6, sysctl

from truth.judging import METHODS, judge, nat_of
from truth.scene import Scene, report, scene

SNAT, SNAT6 = "172.31.5.9", "fd00:5::9"
LOOPBACK_RESOLVER = "127.0.0.53"
QUESTION = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\x07example\x03com\0" + struct.pack("!HH", 1, 1)


@METHODS
@in_own_namespaces
def test_no_nat(method: str) -> None:
    with scene(method) as it:
        for address in (WEB, WEB6, OTHER):
            it.program(it.once(address))
        judge("1", "no NAT, IPv4 and IPv6", method, it, 3)
        assert nat_of(it) == [[], [], []]


@METHODS
@in_own_namespaces
def test_snat(method: str) -> None:
    with scene(method) as it:
        it.nat(f"  oifname eth0 snat to {SNAT}")
        for address in (WEB, OTHER):
            it.program(it.once(address))
        judge("2", "snat to 172.31.5.9", method, it, 2)
        for record, steps in zip(it.records, nat_of(it), strict=True):
            port = record["source"]["port"]
            assert record["source"]["address"] == "198.18.0.1"
            assert steps == [(f"{SNAT}:{port}", f"198.18.0.1:{port}")]


@METHODS
@in_own_namespaces
def test_snat_ipv6(method: str) -> None:
    with scene(method) as it:
        it.nat(f"  oifname eth0 snat to {SNAT6}", family="ip6")
        for address in (WEB6, WEB):  # IPv4 is not tracked then, and must not suffer
            it.program(it.once(address))
        judge("2", "snat of IPv6, IPv4 beside it", method, it, 2)
        assert sorted(len(steps) for steps in nat_of(it)) == [0, 1]


@METHODS
@in_own_namespaces
def test_dns_through_snat(method: str) -> None:
    with scene(method, dns="synthetic") as it:
        it.nat(f"  oifname eth0 meta l4proto udp snat to {SNAT}:40000-40010")
        for server in ("8.8.8.8", "9.9.9.9"):
            it.program(lambda server=server: it.ask(QUESTION, (server, 53)))
        judge("2", "DNS over UDP, snat with port range", method, it, 2, protocol="dns")
        for steps in nat_of(it):
            assert steps[0][0].startswith(f"{SNAT}:400")


# The write-up's fault, rule for rule: a host where loopback traffic is translated, as on Amazon Linux.
LOOPBACK_RULES = {
    "snat": f"  ip saddr 127.0.0.1 snat to {SNAT}",
    "masquerade": "  ip saddr 127.0.0.1 masquerade",
}


@METHODS
@pytest.mark.parametrize("rule", LOOPBACK_RULES)
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
@in_own_namespaces
def test_snat_of_loopback_towards_the_loopback_resolver(protocol: str, rule: str, method: str) -> None:
    with scene(method, dns="synthetic", loopback_resolvers=[LOOPBACK_RESOLVER]) as it:
        it.address(f"{SNAT}/32")
        with it.workload.inside():
            assert sysctl("net/ipv4/conf/all/route_localnet") == "0"
        it.nat(LOOPBACK_RULES[rule])
        listener_seen = it.workload.socket(kind=socket.SOCK_DGRAM)
        listener_seen.bind((LOOPBACK_RESOLVER, 5353))

        def work() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("127.0.0.1", 0))
                sock.sendto(b"who am I?", (LOOPBACK_RESOLVER, 5353))
            if protocol == "udp":
                it.ask(QUESTION, (LOOPBACK_RESOLVER, 53), bound=("127.0.0.1", 0))
                return
            with socket.create_connection((LOOPBACK_RESOLVER, 53), 20, ("127.0.0.1", 0)) as sock:
                it.ledger.note(sock)
                sock.sendall(struct.pack("!H", len(QUESTION)) + QUESTION)
                assert len(sock.recv(4096)) > 2

        it.program(work)
        with listener_seen:
            seen = listener_seen.recvfrom(64)[1][0]
        assert seen != "127.0.0.1", "the listener's side sees the translated source: the fault is there"
        judge("2", f"{rule} of 127.0.0.1 to a loopback resolver, {protocol}", method, it, 1, protocol="dns")
        port = it.records[0]["source"]["port"]
        assert it.records[0]["source"]["address"] == "127.0.0.1"
        assert nat_of(it) == [[(f"{seen}:{port}", f"127.0.0.1:{port}")]]


PORT_RULES = {
    "snat with port range": f"  oifname eth0 meta l4proto tcp snat to {SNAT}:40000-40010",
    "masquerade random": "  oifname eth0 masquerade random",
    "masquerade fully-random": "  oifname eth0 masquerade fully-random",
}


@METHODS
@pytest.mark.parametrize("rule", PORT_RULES)
@in_own_namespaces
def test_translated_ports(rule: str, method: str) -> None:
    with scene(method) as it:
        it.nat(PORT_RULES[rule])
        for _ in range(4):
            it.program(it.once(WEB))
            it.program(it.once(OTHER))
        judge("3", rule, method, it, 8)
        for record, steps in zip(it.records, nat_of(it), strict=True):
            assert len(steps) == 1 and steps[0][0] != steps[0][1]
            assert record["source"]["address"] == "198.18.0.1"


def crossed(it: Scene) -> None:
    """Two programs, each on the wire with the addresses of the other's socket."""
    it.nat(
        "  tcp sport 40001 snat to 198.18.0.1:40002\n  tcp sport 40002 snat to 198.18.0.1:40001\n"
    )

    def work(port: int) -> Callable[[], None]:
        def hold() -> None:
            sock = it.connect(WEB, bound=("198.18.0.1", port))
            time.sleep(0.3)  # while the other one connects: both sockets must be there
            sock.close()

        return hold

    for port in (40001, 40002):
        it.program(work(port))


@METHODS
@in_own_namespaces
def test_translated_ports_are_each_others_real_ones(method: str) -> None:
    with scene(method) as it:
        crossed(it)
        judge("3", "two programs whose ports are exchanged", method, it, 2)
        assert sorted(nat_of(it)) == [
            [("198.18.0.1:40001", "198.18.0.1:40002")], [("198.18.0.1:40002", "198.18.0.1:40001")]
        ]  # fmt: skip


@METHODS
@in_own_namespaces
def test_dnat(method: str) -> None:
    with scene(method) as it:
        it.nat(f"  ip daddr 203.0.113.7 dnat to {OTHER}", hook="output")
        it.program(it.once("203.0.113.7", 80))
        it.program(it.once(WEB))
        judge("4", "DNAT in OUTPUT", method, it, 2)
        by_asked = {record["destination"]["asked"]: record for record in it.records}
        assert by_asked["203.0.113.7:80"]["destination"]["address"] == OTHER
        assert {"from": f"{OTHER}:80", "to": "203.0.113.7:80"} in by_asked["203.0.113.7:80"]["attribution"]["nat"]
        assert by_asked[None]["destination"]["address"] == WEB


@METHODS
@in_own_namespaces
def test_dnat_and_snat_with_ports(method: str) -> None:
    with scene(method) as it:
        it.nat(f"  tcp dport 8080 dnat to {WEB}:80", hook="output")
        it.inside(
            "nft", "-f", "-",
            text=f"table ip more {{ chain p {{ type nat hook postrouting priority 100;\n"
            f"meta l4proto tcp snat to {SNAT}:41000-41005\n}}\n}}\n",
        )  # fmt: skip
        for address in ("203.0.113.7", "203.0.113.8"):
            it.program(it.once(address, 8080))
        judge("4", "DNAT of the port and SNAT with ports", method, it, 2)
        assert all(len(steps) == 2 for steps in nat_of(it))


@METHODS
@in_own_namespaces
def test_redirect_to_the_loopback_resolver(method: str) -> None:
    with scene(method, dns="synthetic", loopback_resolvers=["127.0.0.1"]) as it:
        it.nat("  udp dport 5300 redirect to :53", hook="output")
        it.program(lambda: it.ask(QUESTION, ("192.0.2.200", 5300)))
        judge("4", "REDIRECT of a DNS question", method, it, 1, protocol="dns")
        assert it.records[0]["destination"]["asked"] == "192.0.2.200:5300"


@METHODS
@pytest.mark.parametrize("rules", ["", f"  oifname eth0 snat to {SNAT}"], ids=["plain", "snat"])
@in_own_namespaces
def test_bound_to_another_address(rules: str, method: str) -> None:
    with scene(method) as it:
        it.address("10.7.7.7/32")
        it.address("fd00:7::7/128")
        if rules:
            it.nat(rules)
        it.program(it.once(WEB, bound=("10.7.7.7", 0)))
        it.program(it.once(WEB, bound=("10.7.7.7", 33333)))
        it.program(it.once(WEB6, bound=("fd00:7::7", 0)))
        judge("5", "bound explicitly" + (", with SNAT" if rules else ""), method, it, 3)


def masquerade(it: Scene, *networks: object) -> None:
    for network in networks or (it.workload,):
        it.nat("  oifname eth0 masquerade", network=network)  # type: ignore[arg-type]


@METHODS
@pytest.mark.parametrize("rule", ["masquerade", "masquerade fully-random", None])
@in_own_namespaces
def test_nested_behind_a_veth(rule: str | None, method: str) -> None:
    with scene(method) as it, it.nested(it.workload, "in0", "10.88.0.1", "10.88.0.5") as inner:
        if rule:
            it.nat(f"  oifname eth0 {rule}")
        it.program(it.once(WEB), inner)
        it.program(it.once(OTHER), inner)
        it.program(it.once(WEB))
        judge("6", f"nested behind a veth, {rule or 'routed'}", method, it, 3)
        assert sorted(r["source"]["address"] for r in it.records) == ["10.88.0.5", "10.88.0.5", "198.18.0.1"]


@METHODS
@in_own_namespaces
def test_nested_behind_a_bridge(method: str) -> None:
    with scene(method) as it:
        it.inside("ip", "link", "add", "cni0", "type", "bridge")
        it.inside("ip", "addr", "add", "10.88.0.1/24", "dev", "cni0")
        it.inside("ip", "link", "set", "cni0", "up")
        masquerade(it)
        with (
            it.nested(it.workload, "v1", "10.88.0.1", "10.88.0.11", bridge="cni0") as one,
            it.nested(it.workload, "v2", "10.88.0.1", "10.88.0.12", bridge="cni0") as two,
        ):
            for network in (one, two, one, two):
                it.program(it.once(WEB, bound=("0.0.0.0", 0)), network)
            judge("6", "two behind a bridge", method, it, 4)


@METHODS
@in_own_namespaces
def test_nested_two_deep(method: str) -> None:
    with (
        scene(method) as it,
        it.nested(it.workload, "in0", "10.88.0.1", "10.88.0.5") as middle,
        it.nested(middle, "in1", "10.99.0.1", "10.99.0.5") as inner,
    ):
        it.nat("  oifname eth0 masquerade fully-random")
        it.nat("  oifname eth0 masquerade fully-random", network=middle)
        for network in (middle, inner, it.workload, inner):
            it.program(it.once(WEB), network)
        judge("6", "two levels deep", method, it, 4)
        assert sorted(len(steps) for steps in nat_of(it)) == [1, 2, 2, 2]  # the middle one's own flow, too


@METHODS
@in_own_namespaces
def test_nested_twice_with_the_same_addresses(method: str) -> None:
    """Two engines side by side: behind each a container with the very addresses of the other's."""
    with (
        scene(method) as it,
        it.nested(it.workload, "a", "10.1.0.1", "10.1.0.2") as left,
        it.nested(it.workload, "b", "10.2.0.1", "10.2.0.2") as right,
        it.nested(left, "in", "10.88.0.1", "10.88.0.5") as left_inner,
        it.nested(right, "in", "10.88.0.1", "10.88.0.5") as right_inner,
    ):
        for network in (it.workload, left, right):
            it.nat("  oifname eth0 masquerade", network=network)

        def told(connections: int) -> bool:
            return len(it.ledger.read()) == connections

        def first() -> None:
            sock = it.connect(WEB, bound=("10.88.0.5", 50001))
            eventually(lambda: told(2))
            sock.close()

        def second() -> None:
            sock = it.connect(WEB, bound=("10.88.0.5", 50001))
            time.sleep(0.5)  # ends after the first: all that tells their records from each other is their order
            sock.close()

        it.program(first, left_inner)
        assert eventually(lambda: told(1))
        it.program(second, right_inner)
        score = it.score(2)
        report("6", "two engines with the same inner addresses", method, score)
        assert score.wrong == 0 and score.right == 2, score

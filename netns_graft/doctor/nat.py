"""Which rules touch connections of this host with itself: a few packets are followed through them, as the kernel does.

Only the hooks output and postrouting matter: a loopback packet keeps its connection when it comes in again, so
prerouting and input are not asked about it. Of each condition we know that it holds, that it does not, or (ports,
marks, time, whatever is not modelled) that it may; a rule that *may* match is reported, and the packet goes on. A rule
that surely ends the walk ends it: so the cure that doctor prints, an accept for ``lo`` at the top, is seen to work.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from netns_graft.linux.nat_rules import Action, Chain, Condition, Field, Rule, Table

_DEPTH = 16  # the kernel's own limit of nested jumps
_BUDGET = 300_000  # rules looked at: a node of a large cluster has tens of thousands
_ADDRESSES = 8  # of the host's own, followed one by one
_OUTSIDE = {4: "192.0.2.1", 6: "2001:db8::1"}


@dataclass(slots=True, frozen=True)
class Packet:
    """The first packet of a connection that a program of this host opens."""

    version: int
    source: int
    destination: int
    loopback: bool  # leaves by lo; else by some interface that is not lo

    @classmethod
    def between(cls, source: str, destination: str, *, loopback: bool) -> Packet:
        first, second = ipaddress.ip_address(source), ipaddress.ip_address(destination)
        return cls(first.version, int(first), int(second), loopback)


@dataclass(slots=True, frozen=True)
class Touching:
    """A rule and where it stands."""

    family: str
    table: str
    chain: str
    text: str

    def line(self) -> str:
        return f"{self.family} {self.table} {self.chain}: {self.text}"


@dataclass(slots=True)
class Touched:
    """``loopback``: rules that may translate what goes over lo. ``local``: those that only meet other packets of
    this host. Each rule once, in the order met."""

    loopback: list[Touching] = field(default_factory=list)
    local: list[Touching] = field(default_factory=list)
    too_many: bool = False


def examine(tables: list[Table], own: list[str]) -> Touched:
    """Follow loopback's addresses and the host's ``own`` through every base chain."""
    touched = Touched()
    walk = _Walk()
    for packet in packets(own):
        for table in tables:
            if table.family != "inet" and (table.family == "ip6") != (packet.version == 6):
                continue
            for chain in table.chains.values():
                if chain.hook:
                    walk.follow(table, chain, packet, touched.loopback if packet.loopback else touched.local)
    touched.loopback = list(dict.fromkeys(touched.loopback))
    touched.local = [rule for rule in dict.fromkeys(touched.local) if rule not in touched.loopback]
    touched.too_many = walk.budget <= 0
    return touched


def packets(own: list[str]) -> Iterator[Packet]:
    """Loopback to itself, each address of ours to itself (by lo too), and from each to somewhere else."""
    yield Packet.between("127.0.0.1", "127.0.0.1", loopback=True)
    yield Packet.between("127.0.0.1", "127.0.0.53", loopback=True)  # a resolver
    yield Packet.between("127.0.0.53", "127.0.0.1", loopback=True)  # a program that bound another address
    yield Packet.between("::1", "::1", loopback=True)
    for address in own[:_ADDRESSES]:
        try:
            outside = _OUTSIDE[ipaddress.ip_address(address).version]
            yield Packet.between(address, address, loopback=True)
            yield Packet.between(address, outside, loopback=False)
        except ValueError:
            continue


class _Walk:
    def __init__(self) -> None:
        self.budget = _BUDGET

    def follow(self, table: Table, chain: Chain, packet: Packet, found: list[Touching], depth: int = 0) -> bool:
        """Whether a packet that enters this chain surely ends there, so that no later rule of the hook is asked."""
        for rule in chain.rules:
            self.budget -= 1
            if self.budget <= 0:
                return True
            holds = matches(rule, packet)
            if holds is False or rule.action is Action.NONE:
                continue
            if rule.action is Action.RETURN:
                if holds:
                    return False
                continue
            if rule.action is Action.TRANSLATE:
                found.append(Touching(table.family, table.name, chain.name, rule.text))
            ends = True
            if rule.action in (Action.JUMP, Action.GOTO):
                ends = self._into(table, rule, packet, found, depth)
                if rule.action is Action.GOTO and holds:
                    return ends  # whatever happened there, this chain is not taken up again
            if ends and holds:
                return True
        return False

    def _into(self, table: Table, rule: Rule, packet: Packet, found: list[Touching], depth: int) -> bool:
        if depth >= _DEPTH:
            return False
        ends = [
            self.follow(table, table.chains[name], packet, found, depth + 1)
            for name in rule.targets
            if name in table.chains
        ]
        return bool(ends) and all(ends)


def matches(rule: Rule, packet: Packet) -> bool | None:
    """True: surely; False: surely not; None: it may."""
    result: bool | None = True
    for condition in rule.conditions:
        one = _holds(condition, packet)
        if one is False:
            return False
        if one is None:
            result = None
    return result


def _holds(condition: Condition, packet: Packet) -> bool | None:
    answer = _answer(condition, packet)
    return answer if answer is None or not condition.negated else not answer


def _answer(condition: Condition, packet: Packet) -> bool | None:
    match condition.field:
        case Field.IP_VERSION:
            return condition.version == packet.version
        case Field.OUT_INTERFACE:
            return _leaves_by(condition, packet)
        case Field.IN_INTERFACE:
            return "*" in condition.interfaces  # it came in by none
        case Field.SOURCE:
            return _within(condition, packet.version, packet.source)
        case Field.DESTINATION:
            return _within(condition, packet.version, packet.destination)
        case Field.SOURCE_IS_LOCAL:
            return True
        case Field.DESTINATION_IS_LOCAL:
            return packet.loopback
        case _:
            return None


def _leaves_by(condition: Condition, packet: Packet) -> bool | None:
    is_lo = any(
        "lo".startswith(name[:-1]) if name.endswith("*") else name == "lo" for name in condition.interfaces
    )
    if packet.loopback:
        return is_lo
    # By which interface it leaves is not modelled: any that is named may be the one.
    return None if set(condition.interfaces) != {"lo"} else False


def _within(condition: Condition, version: int, address: int) -> bool:
    return any(one.version == version and one.first <= address <= one.last for one in condition.addresses)

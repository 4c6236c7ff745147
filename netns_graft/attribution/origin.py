"""Which socket sent this? From the addresses on the wire back to the program's own.

::

    wire ──► conntrack in W: what was it before NAT? ──► a socket of W with those addresses?  found
                                                           │ no, and the address is not W's own
                                                           ▼
             the namespace behind the route to that address: the same two questions there

Where conntrack never had entries (1 µs to know), nothing was translated and the socket look-up alone decides. Where
it has, it is asked *first*: NAT may put one program's flow on the wire with the addresses of another's socket
(linux/conntrack.py), and the exact look-up would then name the wrong one.

No entry although there are some can mean three things. The address family is not tracked at all (NAT is often IPv4
only): nothing was translated. The entry lies in another zone: it is looked for there. It is gone already: then nobody
can be named, for a socket with these addresses may be a stranger's.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field
from typing import Literal

from netns_graft.flow import Endpoint, NatStep
from netns_graft.linux import links, proc
from netns_graft.linux.conntrack import Tuple
from netns_graft.linux.sock_diag import SocketOwner
from netns_graft.linux.vantage import Vantage

Method = Literal["sock_diag", "proc"]

_DEPTH = 8  # namespaces below each other
_IDLE = 2.0  # seconds that a vantage point of a nested namespace is kept unused


@dataclass(slots=True)
class Origin:
    """``own``: the addresses as the socket has them, as far as they could be followed. ``owners``: the sockets that
    may have sent from there; more than one only for UDP. ``namespace``: the inode of the one they are in."""

    own: Tuple
    nat: list[NatStep] = field(default_factory=list)
    owners: list[SocketOwner] = field(default_factory=list)
    namespace: int = 0


@dataclass(slots=True)
class _Nested:
    vantage: Vantage
    used: float


class OriginFinder:
    """For one workload. ``vantage`` looks into W (owned)."""

    def __init__(self, vantage: Vantage, method: Method, *, may_change: bool) -> None:
        """``may_change``: when sock_diag refuses to answer, go on with the tables of /proc."""
        self._workload = vantage
        self.method: Method = method
        self._may_change = may_change
        # By the namespace that it was reached from and its number there.
        self._nested: dict[tuple[int, int], _Nested] = {}
        self._unreachable: dict[tuple[int, int], float] = {}  # when we looked for a way into it in vain

    def find(self, protocol: int, wire: Tuple, since: float) -> Origin:
        """Never raises. ``since``: the packet had been sent by then (monotonic seconds)."""
        return self._trace(self._workload, protocol, wire, since, ())

    def sweep(self) -> None:
        """Let go of nested namespaces that nothing came from lately: being looked at keeps them alive."""
        limit = time.monotonic() - _IDLE
        self._unreachable = {key: at for key, at in self._unreachable.items() if at >= limit}
        for key in [key for key, nested in self._nested.items() if nested.used < limit]:
            self._nested.pop(key).vantage.close()

    def close(self) -> None:
        for nested in self._nested.values():
            nested.vantage.close()
        self._nested.clear()
        self._workload.close()

    def _trace(
        self, vantage: Vantage, protocol: int, wire: Tuple, since: float, above: tuple[int, ...]
    ) -> Origin:
        try:
            own = _before_nat(vantage, protocol, wire) if vantage.has_tracked() else wire
        except OSError:
            own = None  # there is NAT, perhaps, and nobody tells us about it
        if own is None:
            return Origin(wire)
        origin = Origin(own, [] if own is wire else _steps(wire, own))
        origin.owners = self._senders(vantage, protocol, own, since)
        if origin.owners or len(above) == _DEPTH:
            origin.namespace = vantage.inode
            return origin
        path = (*above, vantage.inode)
        ways = [self._trace(below, protocol, own, since, path) for below in self._below(vantage, own.source, path)]
        answers = [way for way in ways if way.owners]
        if len(answers) == 1:  # two namespaces with the same addresses behind one interface: nobody can tell
            answers[0].nat = origin.nat + answers[0].nat
            return answers[0]
        return origin

    def _senders(self, vantage: Vantage, protocol: int, own: Tuple, since: float) -> list[SocketOwner]:
        try:
            return vantage.senders(protocol, own, self.method, since)
        except OSError:
            if self.method == "proc" or not self._may_change:
                return []
        self.method = "proc"
        return self._senders(vantage, protocol, own, since)

    def _below(self, vantage: Vantage, address: bytes, path: tuple[int, ...]) -> list[Vantage]:
        """The namespaces from which packets with the source ``address`` may have come to this one."""
        way = links.way_to(vantage.route_sock, address)
        if way is None or way.local:
            return []
        try:
            numbers = links.namespaces_behind(vantage.route_sock, way.interface)
        except OSError:
            return []
        now = time.monotonic()
        missing = {
            number for number in numbers
            if (vantage.inode, number) not in self._nested
            and now - self._unreachable.get((vantage.inode, number), -_IDLE) >= _IDLE
        }  # fmt: skip
        if missing:
            for number, found in _open(vantage, missing, path):
                self._nested[vantage.inode, number] = _Nested(found, now)
            for number in missing:
                if (vantage.inode, number) not in self._nested:
                    self._unreachable[vantage.inode, number] = now
        below = [self._nested[vantage.inode, number] for number in numbers if (vantage.inode, number) in self._nested]
        for nested in below:
            nested.used = now
        return [nested.vantage for nested in below if nested.vantage.inode not in path]


def _open(vantage: Vantage, numbers: set[int], path: tuple[int, ...]) -> list[tuple[int, Vantage]]:
    """Vantage points of the namespaces that ``vantage`` knows by these numbers."""
    opened: list[tuple[int, Vantage]] = []
    every = proc.network_namespaces({*path, proc.own_network_namespace()})
    for ns_fd in every:
        try:
            number = links.number_of(vantage.route_sock, ns_fd)
            if number in numbers:
                opened.append((number, Vantage(ns_fd)))
        except OSError:
            pass  # not ours to enter, hence not below us
        finally:
            os.close(ns_fd)
        if len(opened) == len(numbers):
            every.close()
            break
    return opened


def _before_nat(vantage: Vantage, protocol: int, wire: Tuple) -> Tuple | None:
    """``wire`` as it was before this namespace translated it (the same when it did not); None: nobody can know."""
    wanted = wire.turned()
    entry = vantage.entry(protocol, wanted)
    if entry is not None and entry.reply == wanted:
        return entry.original
    tracked = vantage.tracks(len(wire.source))
    if tracked is False:
        return wire
    entry = vantage.entry_of_any_zone(protocol, wanted) if tracked else None
    return entry.original if entry is not None else None


def _steps(wire: Tuple, own: Tuple) -> list[NatStep]:
    """What was undone between the two, in words."""
    ends = ((wire[:2], own[:2]), (wire[2:], own[2:]))
    return [NatStep(str(endpoint(*seen)), str(endpoint(*real))) for seen, real in ends if seen != real]


def endpoint(address: bytes, port: int) -> Endpoint:
    """As text. An IPv4-mapped address does not occur: what is on the wire is IPv4 then."""
    return Endpoint(socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address), port)

"""What policy says to a flow, and where it is then dialled.

A connection to a *synthetic* address carries a name: rules see the name, and a proxy that takes names gets it. When
we dial the name ourselves, each address it resolves to on the host is judged again, with what the host's own routing
says about it, so that no name leads to the host's loopback (DNS rebinding). A connection to any other address is
judged by that address alone; a name learnt from DNS for it is for the record only, since many names share an address.

Lists of addresses say by which way such a connection leaves. One that carries a name has no address to look up there,
so lists and synthetic names are not for the same workload (``settings``).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from netns_graft.dialling import Target, Upstreams, parse_upstreams
from netns_graft.flow import Flow, Process
from netns_graft.linux.routes import HostAddresses
from netns_graft.policy import HOST_NAME, Decision, NeedsAddress, Policy, Request, embedded_ipv4
from netns_graft.policy.address_lists import ProxyLists


@dataclass(slots=True)
class Ruling:
    """A flow that may pass: ``upstreams`` lead to ``target``. ``permits`` judges what its name resolves to."""

    target: Target
    upstreams: Upstreams
    permits: Callable[[str], bool]

    @property
    def literal(self) -> bool:
        """No name, no proxy: the forwarder can dial at once."""
        return self.upstreams.is_direct and self.target.address is not None


class Judge:
    """Rules on the flows of one workload, and writes verdict and rule into them.

    ``shares_host``: the workload has no network of its own, and the host's addresses are judged like any others.
    """

    def __init__(
        self,
        policy: Policy,
        upstreams: Upstreams,
        name_of: Callable[[str], tuple[str, str] | None],
        *,
        lists: ProxyLists | None = None,
        shares_host: bool = False,
    ) -> None:
        self._policy = policy
        self._upstreams = upstreams
        self._lists = lists or ProxyLists()
        self._shares_host = shares_host
        self._direct = parse_upstreams([])
        self._name_of = name_of
        self._host = HostAddresses()

    def close(self) -> None:
        self._direct.close()
        self._host.close()

    def rule(self, flow: Flow, address: bytes) -> Ruling | None:
        """None: denied. ``address`` is the flow's destination, packed."""
        known = self._name_of(flow.destination_address)
        if known is not None:
            flow.host, flow.host_source = known
        if flow.host_source == "synthetic":
            return self._rule_by_name(flow)
        if not _note(flow, self._decide(flow, None, address)):
            return None
        target = Target(port=flow.destination_port, address=flow.destination_address)
        upstreams = self._upstreams if self._lists.by_proxy(address) else self._direct
        return Ruling(target, upstreams, lambda _address: True)

    def _rule_by_name(self, flow: Flow) -> Ruling | None:
        # The host's own name means the machine we run on; no proxy could know that.
        upstreams = self._direct if flow.host == HOST_NAME else self._upstreams
        request = Request(flow.host, None, flow.destination_port, process=_process(flow))
        if upstreams.takes_names:
            decision = self._policy.decide_by_name(request)
        else:
            answer = self._policy.decide(request)
            decision = Decision(True, "default") if isinstance(answer, NeedsAddress) else answer
        if not _note(flow, decision):
            return None

        permitted = False

        def permits(address: str) -> bool:
            nonlocal permitted
            decision = self._decide(flow, flow.host, packed(address))
            # The record names the first rule that opened one of the addresses, or what closed the last of them.
            if not permitted:
                permitted = _note(flow, decision)
            return decision.allow

        return Ruling(Target(port=flow.destination_port, host=flow.host), upstreams, permits)

    def _decide(self, flow: Flow, host: str | None, address: bytes) -> Decision:
        # An IPv4 address in an IPv6 coat (mapped, NAT64, 6to4) may be the host's own as well.
        inner = embedded_ipv4(address)
        owned = self._host.owns(address) or (inner is not None and self._host.owns(inner))
        request = Request(
            host, address, flow.destination_port,
            host_owned=owned, process=_process(flow), shares_host=self._shares_host,
        )  # fmt: skip
        answer = self._policy.decide(request)
        assert isinstance(answer, Decision)  # it has the address
        return answer


def packed(address: str) -> bytes:
    """4 or 16 bytes; a zone ("%eth0") is dropped."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.partition("%")[0])


def _note(flow: Flow, decision: Decision) -> bool:
    flow.verdict, flow.rule = ("allow" if decision.allow else "deny"), decision.rule
    return decision.allow


def _process(flow: Flow) -> Process | None:
    return flow.attribution.process if flow.attribution else None

"""The ordered rules. First match wins; then what is protected; then the default.

``decide`` runs once for each new connection, so everything that can be prepared is: rules are tuples of
integers, sorted out by address family, and every possible answer exists already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from netns_graft.errors import ConfigError
from netns_graft.policy.addresses import (
    LOOPBACK,
    SYNTHETIC,
    Network,
    canonical,
    inside,
    is_loopback,
    protection,
)
from netns_graft.policy.names import HOST_NAME, is_host_name, means_loopback, normal
from netns_graft.policy.patterns import Pattern, PatternError, parse_pattern
from netns_graft.policy.request import NEEDS_ADDRESS, Decision, NeedsAddress, Request

_HOST_OWNED = "host"
_PROTECTED = {
    kind: Decision(False, f"protected:{kind}")
    for kind in (
        "loopback",
        "host",
        "link-local",
        "multicast",
        "broadcast",
        "unspecified",
        "metadata",
        "synthetic",
        "not-a-name",
    )
}


@dataclass(slots=True, frozen=True)
class Rule:
    """A pattern and the answer to whatever matches it."""

    pattern: Pattern
    decision: Decision

    def names_host(self) -> bool:
        """This rule is the one that may open the host's own addresses by name."""
        return self.decision.allow and self.pattern.host == HOST_NAME


class _Row(NamedTuple):
    """A rule as one address family sees it; with mask 0 every address matches."""

    first_port: int
    last_port: int
    mask: int
    base: int
    host: str | None
    rule: Rule


class _Closed(NamedTuple):
    """Why an address is protected: the range a rule must lie inside, the host's own, or both."""

    decision: Decision
    network: Network | None
    host_owned: bool
    by_host_name: bool  # the workload asked for host.containers.internal, and that may open it


class Policy:
    """Rules in order and a default. ``names_hosts``: some rule names a host, so flows should carry names."""

    def __init__(self, rules: Sequence[Rule], default_allow: bool) -> None:
        self._rules = tuple(rules)
        self._default = Decision(default_allow, "default")
        self._rows = {4: self._rows_of(4), 6: self._rows_of(6)}
        self.names_hosts = any(rule.pattern.host is not None for rule in self._rules)

    def decide(self, request: Request) -> Decision | NeedsAddress:
        """The verdict, or ``NEEDS_ADDRESS`` for a bare name that could be allowed for some address.

        ``ValueError`` if there is neither a name nor an address.
        """
        host = normal(request.host) if request.host is not None else None
        if request.address is None:
            if host is None:
                raise ValueError("a request has a host, an address, or both")
            return self._decide_unresolved(host, request.port)
        if host is not None and not is_host_name(host):
            host = None  # "Host: 127.0.0.1" is no name: a bare address, judged as such
        address = canonical(request.address)
        number = int.from_bytes(address)
        version = 4 if len(address) == 4 else 6
        closed = _closed(version, number, host, request.host_owned, shared=request.shares_host)
        rows = self._rows[version]
        if version == 6 and (carried := inside(number)) is not None:
            rows = self._rows_carrying(carried)
        port = request.port
        for first, last, mask, base, name, rule in rows:
            if first <= port <= last and number & mask == base and (name is None or _matches(name, host)):
                decision = rule.decision
                if closed is None or not decision.allow or _opens(rule, closed):
                    return decision
        return self._default if closed is None else closed.decision

    def decide_by_name(self, request: Request) -> Decision:
        """The verdict for a name that a proxy will resolve for itself: CIDR rules do not match at all.

        Where the name leads is known to the proxy alone, so a network that is denied here can still be
        reached by a name there. What can be judged by the name is: ``localhost`` and address-like names
        stay closed.
        """
        if request.host is None:
            raise ValueError("no host to decide by")
        host = normal(request.host)
        if not is_host_name(host):
            return _PROTECTED["not-a-name"]
        closed = None
        if host == HOST_NAME:
            closed = _PROTECTED[_HOST_OWNED]
        elif means_loopback(host):
            closed = _PROTECTED[LOOPBACK]
        for rule in self._rules:
            pattern = rule.pattern
            if pattern.network is not None or not pattern.first_port <= request.port <= pattern.last_port:
                continue
            if pattern.host is not None and not _matches(pattern.host, host):
                continue
            if closed is None or not rule.decision.allow or (host == HOST_NAME and rule.names_host()):
                return rule.decision
        return closed or self._default

    def may_ask(self, name: str) -> Decision:
        """May a DNS question for this name leave the host? Only if a flow to it could be allowed on some
        port.

        An allow rule for a network or a port counts as "could": the answer is needed to know.
        """
        host = normal(name)
        for rule in self._rules:
            pattern = rule.pattern
            if pattern.host is not None and not _matches(pattern.host, host):
                continue
            if rule.decision.allow:
                if host != HOST_NAME or rule.names_host():
                    return rule.decision
            elif pattern.network is None and pattern.any_port:
                return rule.decision
        return _PROTECTED[_HOST_OWNED] if host == HOST_NAME else self._default

    def _decide_unresolved(self, host: str, port: int) -> Decision | NeedsAddress:
        """Only the name is known: final if every address gives the same, else ask again with one."""
        if not is_host_name(host):
            return _PROTECTED["not-a-name"]
        final = _PROTECTED[_HOST_OWNED] if host == HOST_NAME else self._default
        hangs = could_allow = False  # on a network rule met on the way, and on one that allows
        for rule in self._rules:
            pattern = rule.pattern
            if not pattern.first_port <= port <= pattern.last_port:
                continue
            if (network := pattern.network) is not None:
                hangs = True
                # A network that is no single address opens the host only within the loopback.
                may_name = host != HOST_NAME or network.single or is_loopback(network)
                could_allow = could_allow or (rule.decision.allow and may_name)
            elif pattern.host is None or _matches(pattern.host, host):
                if host == HOST_NAME and rule.decision.allow and not rule.names_host():
                    continue
                final = rule.decision
                break
        if host == HOST_NAME and final.allow and not hangs:
            return final  # named outright: whatever address stands for the host is meant
        # Any other name that is allowed may yet resolve to something protected.
        return NEEDS_ADDRESS if could_allow or final.allow else final

    def _rows_carrying(self, carried: int) -> list[_Row]:
        """The rows for an IPv6 address with an IPv4 one inside: IPv4 networks deny it too, never allow it."""
        rows = []
        for rule in self._rules:
            pattern, network = rule.pattern, rule.pattern.network
            if network is None or network.version == 6:
                mask, base = (network.mask, network.base) if network else (0, 0)
            elif not rule.decision.allow and carried & network.mask == network.base:
                mask, base = 0, 0
            else:
                continue
            rows.append(_Row(pattern.first_port, pattern.last_port, mask, base, pattern.host, rule))
        return rows

    def _rows_of(self, version: int) -> list[_Row]:
        rows = []
        for rule in self._rules:
            pattern, network = rule.pattern, rule.pattern.network
            if network is not None and network.version != version:
                continue
            mask, base = (network.mask, network.base) if network else (0, 0)
            rows.append(_Row(pattern.first_port, pattern.last_port, mask, base, pattern.host, rule))
        return rows


def parse_quick_rules(ordered: Sequence[tuple[str, str]], default: str) -> Policy:
    """``--allow`` and ``--deny`` as given, in the order of the command line: ("allow" | "deny", pattern)
    pairs.

    ``ConfigError`` with status 2, ``where`` the option's name, when a pattern or the default is none.
    """
    if default not in ("allow", "deny"):
        raise _wrong(f"{default!r} is neither allow nor deny", "--default")
    rules = []
    for action, text in ordered:
        option = f"--{action}"
        try:
            pattern = parse_pattern(text)
        except PatternError as error:
            raise _wrong(str(error), option, error.hint) from None
        if action == "allow" and pattern.host is not None and means_loopback(pattern.host.removeprefix(".")):
            port = f":{pattern.first_port}" if pattern.first_port == pattern.last_port else ""
            hint = f"write 127.0.0.1{port}, or {HOST_NAME}{port}"
            raise _wrong(f"{text!r} can never match: a name does not open the host's loopback", option, hint)
        rules.append(Rule(pattern, Decision(action == "allow", f"{option} {text}")))
    return Policy(rules, default == "allow")


def _wrong(message: str, where: str, hint: str | None = None) -> ConfigError:
    error = ConfigError(message, where=where, hint=hint)
    error.status = 2  # what is wrong stands on the command line
    return error


def _matches(name: str, host: str | None) -> bool:
    """A rule's name (a leading dot: whatever is under it) against a normal name."""
    return host is not None and (name == host or (name[0] == "." and host.endswith(name)))


def _closed(version: int, number: int, host: str | None, host_owned: bool, *, shared: bool) -> _Closed | None:
    """Why this address is protected, or None. ``host.containers.internal`` always means the host.

    ``shared``: the host's own addresses are not; but what is no address of a host at all stays closed.
    """
    entry = protection(version, number)
    if shared and host != HOST_NAME:
        # Linux connects to the unspecified address on the loopback.
        if entry is not None and (entry.kind == LOOPBACK or number == 0):
            return None
        host_owned = False
    if entry is not None and entry.kind == SYNTHETIC and host is not None:
        entry = None  # behind another tool of our kind the host's resolver gives such addresses too
    if host == HOST_NAME:
        by_name = entry is None or entry.kind == LOOPBACK or host_owned
        network = entry.network if entry else None
        return _Closed(_PROTECTED[_HOST_OWNED], network, entry is None or entry.kind != LOOPBACK, by_name)
    if entry is not None:
        # All of 127.0.0.0/8 is the host's own: there the range says enough.
        return _Closed(_PROTECTED[entry.kind], entry.network, host_owned and entry.kind != LOOPBACK, False)
    if host_owned:
        return _Closed(_PROTECTED[_HOST_OWNED], None, True, False)
    return None


def _opens(rule: Rule, closed: _Closed) -> bool:
    """Whether an allow rule that matches a protected address also names it."""
    if closed.by_host_name and rule.names_host():
        return True
    network = rule.pattern.network
    if network is None:
        return False
    if closed.host_owned and not network.single:
        return False
    # Both hold the address, so the longer prefix lies inside the shorter.
    return closed.network is None or network.prefix >= closed.network.prefix

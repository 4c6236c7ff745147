"""resolv.conf: the host's, read as libc reads it, and the one that a workload gets.

libc's rules (resolv.conf(5), glibc's res_init.c): a keyword starts its line; the first three nameservers
count; the last of ``search`` and ``domain`` wins; what cannot be read is skipped without a word. No error is
ever raised: a host whose resolv.conf is odd still resolves names, and so must we.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import NamedTuple

DNS_PORT = 53
_MAX_NAMESERVERS = 3
_MAX_TIMEOUT = 30
_MAX_ATTEMPTS = 5
_MAX_NDOTS = 15

# What is kept for a workload in forward mode. "timeout" and "attempts" are written anew, see below. Left out:
# "rotate" (there is one server to ask: us; we rotate among the host's), "inet6" and the likes that libc has
# forgotten, "no-reload" (a graft's file never changes), and whatever we do not know. "trust-ad" stays:
# whether the path to the resolver can be trusted is the host's word, replies come to us over that very path,
# and we pass their AD bit on as it is.
_KEPT_OPTIONS = frozenset(
    {"edns0", "trust-ad", "no-aaaa", "no-tld-query", "use-vc", "single-request", "single-request-reopen"}
)


class Nameserver(NamedTuple):
    """A resolver of the host's. ``address`` is numeric and may end in ``%scope``."""

    address: str
    port: int = DNS_PORT

    @property
    def label(self) -> str:
        """``"10.0.0.53:53"``, ``"[::1]:53"``."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(slots=True, frozen=True)
class ResolvConf:
    """What a resolv.conf says. ``timeout`` is in seconds, for the first try of one server."""

    nameservers: tuple[Nameserver, ...]
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    timeout: float = 5
    attempts: int = 2
    ndots: int = 1
    rotate: bool = False


def parse_resolv_conf(text: str) -> ResolvConf:
    """``text`` as libc reads it; never an error. ``nameservers`` is empty when it names none: see
    ``asked_servers``."""
    nameservers: list[Nameserver] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.splitlines():
        keyword, _, rest = line.replace("\t", " ").partition(" ")
        if keyword == "nameserver":
            address = _numeric_address(re.split(r"[;# ]", rest.lstrip(), maxsplit=1)[0])
            if address and len(nameservers) < _MAX_NAMESERVERS:
                nameservers.append(Nameserver(address))
        elif keyword == "search":
            search = _plain(rest.split()) or search
        elif keyword == "domain":
            search = _plain(rest.split()[:1]) or search
        elif keyword == "options":
            options += rest.split()
    return ResolvConf(
        nameservers=tuple(nameservers),
        search=search,
        options=tuple(options),
        timeout=max(1, _number(options, "timeout", 5, _MAX_TIMEOUT)),
        attempts=max(1, _number(options, "attempts", 2, _MAX_ATTEMPTS)),
        ndots=_number(options, "ndots", 1, _MAX_NDOTS),
        rotate="rotate" in options,
    )


def asked_servers(conf: ResolvConf) -> tuple[Nameserver, ...]:
    """The servers to ask: libc takes this machine's own when the file names none."""
    return conf.nameservers or (Nameserver("127.0.0.1"),)


def loopback_resolvers(host_text: str) -> list[str]:
    """The servers that libc asks by ``host_text`` and that are loopback addresses (127.0.0.53 of
    systemd-resolved, dnsmasq, …, 127.0.0.1 when it names none): inside a workload these would be the workload
    itself, and where the host has no resolv.conf at all, the workload has none either."""
    servers = [server.address for server in asked_servers(parse_resolv_conf(host_text))]
    return [server for server in servers if ipaddress.ip_address(server).is_loopback]


def resolv_conf_for_workload(
    host_text: str, mode: str, nameserver: str = "198.18.0.2", nameserver6: str | None = None
) -> str:
    """The resolv.conf that a workload gets. ``mode`` is "synthetic" or "forward", ``host_text`` the host's
    file.

    One nameserver line by default. A second, IPv6 one would lead to the same forwarder: musl asks all servers
    at once, so every question would come (and be recorded) twice, and glibc would ask again for each refusal.
    """
    lines = ["# by netns-graft: every question goes to this graft's forwarder"]
    if mode == "synthetic":
        # No search list: every name has an address here, so with one "db" would always become "db.suffix", and
        # the name that the program meant would never be asked for. Leaving the list out is not enough: libc then
        # makes one up from the host name when that is a full one ("build.corp.example": "db.corp.example").
        # "." is the empty list, as systemd-resolved writes it, and with ndots:0 a name is tried as it stands
        # first even without a dot in it (musl before 1.2.3 needs that: it gives up on ".").
        lines.append("search .")
        options = ["ndots:0"]
    else:
        conf = parse_resolv_conf(host_text)
        if conf.search:
            lines.append(f"search {' '.join(conf.search)}")
        options = [f"ndots:{conf.ndots}"] if conf.ndots != 1 else []
        options += [option for option in dict.fromkeys(conf.options) if option in _KEPT_OPTIONS]
        # The workload sees one server, behind which we try all of the host's in turn, each for the host's
        # timeout. Its patience with us must cover that, or it would give up just before the second server
        # answered.
        timeout = min(_MAX_TIMEOUT, int(conf.timeout) * len(asked_servers(conf)))
        options += [f"timeout:{timeout}"] if timeout != 5 else []
        options += [f"attempts:{conf.attempts}"] if conf.attempts != 2 else []
    lines.append(f"nameserver {nameserver}")
    if nameserver6:
        lines.append(f"nameserver {nameserver6}")
    if options:
        lines.append(f"options {' '.join(options)}")
    return "\n".join(lines) + "\n"


def is_near(address: str) -> bool:
    """Is it no other machine's, but what each network namespace has of its own? ``ValueError`` for no address."""
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified


def _plain(words: list[str]) -> tuple[str, ...]:
    """Those of ``words`` that can be part of a name or an address: what we write must be fit for any reader."""
    return tuple(word for word in words if word.isascii() and word.isprintable())


def _numeric_address(text: str) -> str | None:
    if not _plain([text]):
        return None
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(text))  # "127.1", "0x7f000001": libc takes these
    except OSError:
        return None


def _number(options: list[str], key: str, default: int, most: int) -> int:
    """The last ``key:N`` of ``options``, at most ``most``; what is no number counts as 0, as for atoi(3)."""
    value = default
    for option in options:
        name, colon, digits = option.partition(":")
        if name == key and colon:
            leading = re.match(r"[0-9]{1,9}", digits)
            value = int(leading[0]) if leading else 0
    return min(value, most)

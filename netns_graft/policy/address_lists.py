"""Lists of addresses by which flows go directly or through the proxies: ``--direct-file`` and ``--proxy-file``.

The format is graftcp's: an address or a CIDR on each line, IPv4 or IPv6, white space at the end of a line and empty
lines mean nothing; bits set after the prefix are cut off. Over graftcp: a line that begins with ``#`` is a comment,
and a line that is neither is an error rather than a warning, for a list that is read in part sends flows a way that
nobody meant.

A list says by which *way* an allowed flow leaves, never whether it may.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from netns_graft.errors import ConfigError
from netns_graft.policy.addresses import Network, canonical, parse_network

_SHOWN = 60  # characters of a wrong line


class AddressList:
    """Networks, asked whether one of them holds an address. A set per prefix length: 1 µs, however many they are."""

    def __init__(self, networks: list[Network]) -> None:
        self._by_mask: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for network in networks:
            self._by_mask[network.version].setdefault(network.mask, set()).add(network.base)

    def __contains__(self, address: bytes) -> bool:
        """``address`` is packed; an IPv4-mapped one is the IPv4 address that it stands for."""
        address = canonical(address)
        number = int.from_bytes(address)
        by_mask = self._by_mask[4 if len(address) == 4 else 6]
        return any(number & mask in bases for mask, bases in by_mask.items())

    def __len__(self) -> int:
        return sum(len(bases) for by_mask in self._by_mask.values() for bases in by_mask.values())


@dataclass(slots=True, frozen=True)
class ProxyLists:
    """Which addresses go by the proxies. None: no such list. An address on both lists goes directly."""

    direct: AddressList | None = None
    proxied: AddressList | None = None

    def __bool__(self) -> bool:
        return self.direct is not None or self.proxied is not None

    def by_proxy(self, address: bytes) -> bool:
        """``address``: packed."""
        if self.direct is not None and address in self.direct:
            return False
        return self.proxied is None or address in self.proxied


def parse_address_list(text: str, file: str) -> AddressList:
    """``ConfigError`` with "FILE:LINE" for a line that is no address, and for a list of none."""
    networks = []
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.rstrip()
        if entry and not entry.startswith("#"):
            networks.append(_parse_entry(entry, f"{file}:{number}"))
    if not networks:
        raise ConfigError("there are no addresses in it", where=file, hint="write an address or a CIDR on each line")
    return AddressList(networks)


def _parse_entry(entry: str, where: str) -> Network:
    address, slash, prefix = entry.partition("/")
    # ip_network would take a mask for a prefix, and a zone.
    if not (slash and not re.fullmatch("[0-9]{1,3}", prefix)) and "%" not in address:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            pass
        else:
            return parse_network(str(network))
    shown = entry if len(entry) <= _SHOWN else f"{entry[:_SHOWN]}…"
    raise ConfigError(
        f"{shown!r} is neither an address nor a CIDR", where=where, hint="as in 192.0.2.7, 10.0.0.0/8 or 2001:db8::/32"
    )

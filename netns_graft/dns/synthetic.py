"""Synthetic addresses: one of its own for each name a workload asks for.

A connection to such an address carries the name, so rules and proxies see the name, no two names share an
address, and nothing has to be asked of anybody before the connection is made. The ranges are the contract's:
198.18.0.0/15 (RFC 2544, never routed on the Internet) and fd6e:6574:6772::/48 (a ULA; "netgr" in its bytes).
A name has the same index in both; indexes are given out in the order in which names are first asked for.

Invariant: within one pool a name keeps its addresses, and an address its name, for the pool's life. A hostile
workload that asks for ever runs out of addresses, not us of memory: 130,815 names of 253 bytes are about 55
MB.
"""

from __future__ import annotations

import ipaddress
import re

V4_RANGE = ipaddress.IPv4Network("198.18.0.0/15")
V6_RANGE = ipaddress.IPv6Network("fd6e:6574:6772::/48")
RESERVED = 256  # the first addresses of both ranges wire the workload itself and are never handed out

_V4_FIRST = int(V4_RANGE.network_address)
_V4_LAST = int(V4_RANGE.broadcast_address)
_V6_FIRST = int(V6_RANGE.network_address)
_V6_LAST = int(V6_RANGE.broadcast_address)
CAPACITY = V4_RANGE.num_addresses - RESERVED - 1  # nor the last: it looks like a broadcast address

_HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class PoolExhausted(Exception):
    """The workload has asked for more names than there are addresses."""


def is_host_name(name: str) -> bool:
    """Whether ``name`` (lower case, no last dot) may stand for a host: letters, digits, "-" and "_" in each
    label.

    Names whose last label is a number are not host names (RFC 3696, 2; no such top-level domain can exist),
    and here that matters: "169.254.169.254" or "0x7f.1" *as a name* would reach a proxy as text, and the
    proxy would read it as the address that no rule had looked at.
    """
    return _HOST_NAME.fullmatch(name) is not None and _NUMBER.fullmatch(name.rpartition(".")[2]) is None


class SyntheticPool:
    """The names and synthetic addresses of one workload."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = min(capacity, CAPACITY)
        self._names: list[str] = []  # by index - RESERVED
        self._indexes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def addresses_for(self, name: str) -> tuple[str, str]:
        """(IPv4, IPv6) of ``name``; ``PoolExhausted`` when there is none left for a new one."""
        name = name.lower().removesuffix(".")
        index = self._indexes.get(name)
        if index is None:
            if len(self._names) >= self._capacity:
                raise PoolExhausted(f"all {self._capacity} synthetic addresses are in use")
            index = RESERVED + len(self._names)
            self._names.append(name)
            self._indexes[name] = index
        return str(ipaddress.IPv4Address(_V4_FIRST + index)), str(ipaddress.IPv6Address(_V6_FIRST + index))

    def name_of(self, address: str) -> str | None:
        """The name that ``address`` was given to; None for any other address and for what is no address."""
        index = _index_of(address)
        if index is None or not RESERVED <= index < RESERVED + len(self._names):
            return None
        return self._names[index - RESERVED]

    @staticmethod
    def contains(address: str) -> bool:
        """Whether ``address`` lies in the synthetic ranges at all, handed out or not."""
        return _index_of(address) is not None


def _index_of(address: str) -> int | None:
    """How far ``address`` is into its synthetic range; None outside both. IPv4 mapped into IPv6 counts as
    IPv4."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    number = int(parsed)
    if isinstance(parsed, ipaddress.IPv4Address):
        return number - _V4_FIRST if _V4_FIRST <= number <= _V4_LAST else None
    return number - _V6_FIRST if _V6_FIRST <= number <= _V6_LAST else None

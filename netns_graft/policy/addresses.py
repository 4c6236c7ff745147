"""Addresses as integers, the IPv4 address inside an IPv6 one, and the ranges that are closed until named.

Invariant: every address has one canonical form. ``::ffff:a.b.c.d`` is IPv4 (a socket that connects to it
sends IPv4 packets), so it is judged as IPv4 by every rule.

Three other IPv6 forms carry an IPv4 address that a translator or tunnel would take out again: NAT64
(``64:ff9b::/96``, RFC 6052), 6to4 (``2002::/16``, RFC 3056) and the retired IPv4-compatible ``::/96`` (RFC
4291). On the wire they are IPv6, so allow rules see them as such. But ``64:ff9b::169.254.169.254`` reaches
the metadata service of a cloud host whose network has a NAT64, so protection and deny rules look at the
address inside as well.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

_NAT64 = 0x0064_FF9B << 96
_MAPPED_PREFIX = b"\0" * 10 + b"\xff\xff"


class Network(NamedTuple):
    """A range of addresses. ``base`` and ``mask`` have 32 or 128 bits, as ``version`` is 4 or 6."""

    version: int
    base: int
    mask: int
    prefix: int

    @property
    def single(self) -> bool:
        """One address and no more."""
        return self.prefix == (32 if self.version == 4 else 128)


class Protection(NamedTuple):
    """Why an address is closed, and the range that a rule must lie inside to open it."""

    kind: str
    network: Network


def canonical(address: bytes) -> bytes:
    """The packed address with an IPv4-mapped IPv6 address turned into the 4 bytes it stands for."""
    if len(address) == 16 and address.startswith(_MAPPED_PREFIX):
        return address[12:]
    if len(address) not in (4, 16):
        raise ValueError(f"an address has 4 or 16 bytes, not {len(address)}")
    return address


def embedded_ipv4(address: bytes) -> bytes | None:
    """The 4 bytes that a translator or tunnel would take out of an IPv6 address, None if it carries none.

    Whoever asks the kernel whether an address is the host's own should ask about this one too.
    """
    if len(address) != 16:
        return None
    found = _inside(int.from_bytes(address))
    return found[0].to_bytes(4) if found else None


def parse_network(text: str) -> Network:
    """``10.0.0.0/8``, ``::1``; canonical, so ``::ffff:0:0/96`` is IPv4. ``ValueError`` if none."""
    network = ipaddress.ip_network(text)
    base, prefix = int(network.network_address), network.prefixlen
    if network.version == 6 and prefix >= 96 and base >> 32 == 0xFFFF:
        return _network(4, base & 0xFFFF_FFFF, prefix - 96)
    return _network(network.version, base, prefix)


def inside(number: int) -> int | None:
    """``embedded_ipv4`` on integers: the IPv4 address in a 128-bit one."""
    found = _inside(number)
    return found[0] if found else None


def protection(version: int, number: int) -> Protection | None:
    """Why this canonical address is closed by itself, or None."""
    if version == 4:
        for entry in _PROTECTED_4:
            if number & entry.network.mask == entry.network.base:
                return entry
        return None
    for entry in _PROTECTED_6:
        if number & entry.network.mask == entry.network.base:
            return entry
    carried = _inside(number)
    if carried is None:
        return None
    four, prefix_base, before = carried
    entry_4 = protection(4, four)
    if entry_4 is None:
        return None
    # The image of the IPv4 range in IPv6: that is what a rule for this address can lie inside.
    image = _network(6, prefix_base | entry_4.network.base << (96 - before), before + entry_4.network.prefix)
    return Protection(entry_4.kind, image)


def is_loopback(network: Network) -> bool:
    """Whether a network lies wholly inside the loopback range."""
    found = protection(network.version, network.base)
    return found is not None and found.kind == LOOPBACK and network.prefix >= found.network.prefix


def _inside(number: int) -> tuple[int, int, int] | None:
    """(IPv4 address, the bits before it as an integer, how many they are)."""
    if number >> 32 == 0 and number > 1:
        return number, 0, 96
    if number >> 32 == _NAT64 >> 32:
        return number & 0xFFFF_FFFF, _NAT64, 96
    if number >> 112 == 0x2002:
        return number >> 80 & 0xFFFF_FFFF, 0x2002 << 112, 16
    return None


def _network(version: int, base: int, prefix: int) -> Network:
    bits = 32 if version == 4 else 128
    return Network(version, base, (1 << bits) - (1 << (bits - prefix)), prefix)


def _protected(*entries: tuple[str, str]) -> tuple[Protection, ...]:
    return tuple(Protection(kind, parse_network(text)) for kind, text in entries)


SYNTHETIC = "synthetic"
LOOPBACK = "loopback"

_PROTECTED_4 = _protected(
    (LOOPBACK, "127.0.0.0/8"),
    ("link-local", "169.254.0.0/16"),  # the clouds' metadata service is 169.254.169.254
    ("broadcast", "255.255.255.255"),
    ("multicast", "224.0.0.0/4"),
    ("unspecified", "0.0.0.0/8"),  # Linux connects 0.0.0.0 to the loopback
    (SYNTHETIC, "198.18.0.0/15"),  # our own names' addresses: they exist nowhere else
)
_PROTECTED_6 = _protected(
    (LOOPBACK, "::1"),
    ("unspecified", "::"),  # as 0.0.0.0
    ("link-local", "fe80::/10"),
    ("multicast", "ff00::/8"),
    ("metadata", "fd00:ec2::254"),  # Amazon's metadata service by IPv6
    ("metadata", "fd20:ce::254"),  # Google's
    (SYNTHETIC, "fd6e:6574:6772::/48"),
)

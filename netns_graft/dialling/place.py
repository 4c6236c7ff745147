"""Hosts as text: literal addresses and names, brought to one spelling each.

Policy looks at addresses and at names. A name that a C library would read as an address ("127.1",
"0x7f000001") must therefore never travel as a name; ``literal`` finds those.
"""

from __future__ import annotations

import ipaddress
import re
import socket

# What glibc's resolver lets through as a host name. Also what keeps a name from ending a SOCKS4a string early
# or from starting a new header line in a CONNECT request.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*", re.ASCII)
NAME_LIMIT = 253


def literal(host: str) -> str | None:
    """The canonical text of the address that ``host`` spells, as inet_aton(3) reads it; None for a name.

    An IPv4 address mapped into IPv6 is that IPv4 address, for the kernel connects to it as such.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id is not None:
                return literal(host.partition("%")[0])
            if address.ipv4_mapped is not None:
                return str(address.ipv4_mapped)
        return str(address)
    if not _NAME.fullmatch(host):  # inet_aton ignores whatever follows a space
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def is_name(host: str) -> bool:
    """True for a name that may be put before a resolver or a proxy."""
    return len(host) <= NAME_LIMIT and _NAME.fullmatch(host) is not None


def canonical_host(host: str) -> str:
    """One spelling for a host that the user wrote: a canonical address without brackets, or an A-label.

    Raises ``ValueError`` for what is neither.
    """
    if host.startswith("[") and host.endswith("]"):
        if "%" in host:
            raise ipaddress.AddressValueError("an address with a zone")
        return str(ipaddress.IPv6Address(host[1:-1]))
    address = literal(host)
    if address is not None:
        return address
    name = host.removesuffix(".").encode("idna").decode("ascii").lower()
    if not is_name(name):
        raise ValueError("not a host name")
    return name


def host_port(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

"""The wiring of a small host and a small Internet: two network namespaces joined by one veth.

::

    host   lo, eth0 192.0.2.10 ───── eth0 192.0.2.1   inet   lo with every address that the Internet has
           default route → 192.0.2.1

Documentation addresses (RFC 5737, RFC 3849). IPv6 is left out where the kernel has none. Like ``wiring`` this imports
pyroute2, so only a short-lived process imports it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

from pyroute2 import IPRoute

from netns_graft.linux import syscalls

HOST_V4, ROUTER_V4 = "192.0.2.10", "192.0.2.1"
HOST_V6, ROUTER_V6 = "2001:db8:1::10", "2001:db8:1::1"
_VETH = "eth0"
_LOOPBACK = 1  # index of lo in every namespace
_NO_DAD = 0x02  # IFA_F_NODAD: usable at once
_NO_IPV6 = frozenset(
    {errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.ENETUNREACH, errno.EHOSTUNREACH}
)


def wire(host_ns_fd: int, inet_ns_fd: int, internet: Sequence[str]) -> None:
    """Join both namespaces; ``internet`` are the addresses of the second one. Raises OSError, or pyroute2's
    NetlinkError. Leaves the calling process in one of the two."""
    syscalls.setns(host_ns_fd, syscalls.CLONE_NEWNET)
    with IPRoute() as route:
        route.link("add", ifname=_VETH, kind="veth", peer={"ifname": _VETH, "net_ns_fd": inet_ns_fd})
        index = route.link_lookup(ifname=_VETH)[0]
        _bring_up(route, index, [(HOST_V4, 24), (HOST_V6, 64)], [])
        route.route("add", family=socket.AF_INET, dst="default", gateway=ROUTER_V4, oif=index)
        _if_ipv6(route.route, "add", family=socket.AF_INET6, dst="default", gateway=ROUTER_V6, oif=index)
    syscalls.setns(inet_ns_fd, syscalls.CLONE_NEWNET)
    with IPRoute() as route:
        index = route.link_lookup(ifname=_VETH)[0]
        _bring_up(route, index, [(ROUTER_V4, 24), (ROUTER_V6, 64)], internet)


def _bring_up(route: Any, index: int, own: Sequence[tuple[str, int]], loopback: Sequence[str]) -> None:
    route.link("set", index=_LOOPBACK, state="up")
    route.link("set", index=index, state="up")
    addresses = [(index, address, length) for address, length in own]
    addresses += [(_LOOPBACK, address, 128 if ":" in address else 32) for address in loopback]
    for link, address, length in addresses:
        if ":" in address:
            _if_ipv6(
                route.addr, "add", family=socket.AF_INET6, index=link, address=address, prefixlen=length, flags=_NO_DAD
            )
        else:
            route.addr("add", family=socket.AF_INET, index=link, address=address, prefixlen=length)


def _if_ipv6(request: Any, *words: str, **what: Any) -> None:
    """A request that may be refused where IPv6 is missing or switched off (``disable_ipv6``)."""
    try:
        request(*words, **what)
    except Exception as error:
        if getattr(error, "code", getattr(error, "errno", None)) not in _NO_IPV6:
            raise

"""Which destinations are ours to carry, and which a program reaches by itself."""

from __future__ import annotations

from collections.abc import Callable

from netns_graft.tracing.sockets import has_host, is_broadcast, is_multicast

DNS_PORT = 53
LOOPBACK6 = bytes(15) + b"\1"


class Reach:
    """``dns``: questions to port 53 are ours, wherever they go. ``ignore_local``: what the host itself has, as ``owns``
    tells, is left to the program.
    """

    def __init__(self, *, dns: bool, ignore_local: bool, owns: Callable[[bytes], bool]) -> None:
        self._dns, self._ignore_local, self._owns = dns, ignore_local, owns

    def is_dns(self, port: int) -> bool:
        return self._dns and port == DNS_PORT

    def is_local(self, host: bytes, port: int, *, datagram: bool = False) -> bool:
        """May a connection (or a ``datagram``) to ``host`` be left to the kernel?"""
        if self.is_dns(port) or not self._ignore_local:
            return False
        if is_loopback(host):
            return True
        if datagram and is_multicast(host):
            return False  # "ours" for the routing table, and yet it leaves the host
        return self._owns(host) and not (datagram and is_broadcast(host))


def is_loopback(host: bytes) -> bool:
    """Or no address at all, which the kernel takes for loopback."""
    return not has_host(host) or (host[0] == 127 if len(host) == 4 else host == LOOPBACK6)

"""Is an address the host's own? The kernel's routing decides, not a list that grows stale.

One RTM_GETROUTE question (some 10 µs) on a netlink socket of the host's network namespace: "local" covers loopback,
every address of every interface and AnyIP routes; "broadcast" the broadcast addresses of its networks.
"""

from __future__ import annotations

import socket
import struct
import time

_NETLINK_ROUTE = 0
_RTM_GETROUTE = 26
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_RTA_DST = 1
_RTN_LOCAL, _RTN_BROADCAST, _RTN_ANYCAST, _RTN_MULTICAST = 2, 3, 4, 5
_FRESH = 1.0  # seconds
_KNOWN_LIMIT = 4096
_OWN = frozenset((_RTN_LOCAL, _RTN_BROADCAST, _RTN_ANYCAST, _RTN_MULTICAST))


class HostAddresses:
    """Asks about addresses in the network namespace in which it was made."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[float, bool]] = {}
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self._sock.bind((0, 0))

    def owns(self, address: bytes) -> bool:
        """Would a packet to ``address`` (packed) be delivered to the host itself, or broadcast by it?

        An answer is good for ``_FRESH`` seconds: many connections go to one address.
        """
        now = time.monotonic()
        known = self._known.get(address)
        if known is not None and now - known[0] < _FRESH:
            return known[1]
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        owned = self._ask(address)
        self._known[address] = (now, owned)
        return owned

    def _ask(self, address: bytes) -> bool:
        if len(address) == 4:
            family, bits = socket.AF_INET, 32
        else:
            family, bits = socket.AF_INET6, 128
        # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags; then one attribute
        body = struct.pack("=BBBBBBBBI", family, bits, 0, 0, 0, 0, 0, 0, 0)
        body += struct.pack("=HH", 4 + len(address), _RTA_DST) + address
        self._sock.send(struct.pack("=IHHII", 16 + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
        reply = self._sock.recv(8192)
        if len(reply) < 28 or struct.unpack_from("=H", reply, 4)[0] == _NLMSG_ERROR:
            return False  # unreachable from here: dialling it will say so
        return reply[16 + 7] in _OWN

    def close(self) -> None:
        self._sock.close()

"""What is remembered of the program's sockets, by their cookies: what each asked for, beside what it was given.

A socket's close is nobody's business but the program's, so it is not told here: what is no longer of use goes when
there is too much of it, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netns_graft.tracing.call import Call
    from netns_graft.tracing.connecting import Connecting

PEERS_LIMIT = 1 << 17  # more than a process may have sockets of one address
DONE_LIMIT = 4096


@dataclass(slots=True, eq=False)
class Peer:
    """One socket's conversation. ``host`` is packed (4 bytes for IPv4-mapped), as everywhere here.

    ``bound``: the program chose the socket's own address, which then is told as it is. ``number``: the errno that its
    next SO_ERROR or connect() gives. ``torn``: it was disconnected on the way to being ``connected``. ``waiting``:
    calls that are in the kernel's connect() for this socket.
    """

    host: bytes
    port: int
    scope: int
    bound: bool
    attempt: Connecting | None = None
    number: int = 0
    connected: bool = False
    torn: bool = False
    source: tuple[bytes, int] | None = None  # (host, scope) of a direct connection, once asked for
    waiting: list[Call] = field(default_factory=list)

    def waiters(self) -> list[Call]:
        """Those in connect() whose thread lives."""
        self.waiting = [call for call in self.waiting if not call.over]
        return self.waiting


class Peers:
    """cookie → Peer."""

    def __init__(self) -> None:
        self._live: OrderedDict[int, Peer] = OrderedDict()
        self._done: OrderedDict[int, Peer] = OrderedDict()
        self.failures = 0  # how many have a number to give: none, and SO_ERROR is nobody's business
        self.pending = 0  # attempts under way

    def __len__(self) -> int:
        return len(self._live) + len(self._done)

    def get(self, cookie: int) -> Peer | None:
        return self._live.get(cookie) or self._done.get(cookie)

    def put(self, cookie: int, peer: Peer) -> Peer | None:
        """Returns the one that had to go for it, if any: neither pending nor in use for long."""
        self.pop(cookie)
        self._live[cookie] = peer
        if len(self._live) <= PEERS_LIMIT:
            return None
        return self.pop(next(iter(self._live)))

    def pop(self, cookie: int) -> Peer | None:
        peer = self._live.pop(cookie, None) or self._done.pop(cookie, None)
        if peer is not None:
            self.taken(peer)
        return peer

    def failed(self, peer: Peer, number: int) -> None:
        self.taken(peer)
        peer.number = number
        self.failures += 1

    def taken(self, peer: Peer) -> int:
        """The errno to give, which is given once; 0: none."""
        number, peer.number = peer.number, 0
        if number:
            self.failures -= 1
        return number

    def ended(self, cookie: int) -> None:
        """Its conversation is over; the program may ask for names a little longer."""
        peer = self._live.pop(cookie, None)
        if peer is not None:
            self._done[cookie] = peer
            if len(self._done) > DONE_LIMIT:
                self.pop(next(iter(self._done)))

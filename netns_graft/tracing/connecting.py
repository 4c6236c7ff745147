"""One connect() of the program from its first stop to its outcome."""

from __future__ import annotations

import socket
from errno import ECONNABORTED

from netns_graft.linux import proc
from netns_graft.tracing import crossing
from netns_graft.tracing.peers import Peer, Peers
from netns_graft.tracing.sockets import TCP_SYN_SENT, fresh, own_name, tcp_state


class Connecting:
    """``target`` (packed, 4 bytes for IPv4 and IPv4-mapped), ``port`` and ``scope`` are what was asked for; ``source``
    is the name of the program's socket, which ``succeed`` may change.

    Owns the program's socket, open here too, until it is ``over``: so long the program's close() is not the last one.
    """

    __slots__ = (
        "_entering", "_peer", "_peers", "_room", "_rooms", "_sock",
        "cookie", "pid", "port", "scope", "source", "target",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, cookie: int, pid: int, peer: Peer, peers: Peers, rooms: crossing.Rooms
    ) -> None:
        """Takes over ``sock``. OSError: it cannot be made to wait, and stays the caller's."""
        self._peer, self._peers, self._rooms = peer, peers, rooms
        self.pid, self.cookie = pid, cookie
        self.target, self.port, self.scope = peer.host, peer.port, peer.scope
        self._room = rooms.hold(sock, peer.host)
        self.source = own_name(sock)
        self._sock: socket.socket | None = sock
        self._entering = True
        peer.attempt = self
        peers.pending += 1

    @property
    def over(self) -> bool:
        return self._peer.attempt is not self

    def entered(self) -> socket.socket | None:
        """The call is about to be let go. If it is ``over`` before that, the socket, which becomes the caller's."""
        self._entering = False
        if not self.over:
            return None
        sock, self._sock = self._sock, None
        return sock

    def succeed(self) -> socket.socket | None:
        """The upstream answered. Our end of the connection, non-blocking; None: the program's end is no more."""
        if self.over or self._sock is None:
            return None
        sock, peer = self._sock, self._peer
        ours_sock = None
        if tcp_state(sock) == TCP_SYN_SENT:
            ours_sock = self._joined(sock)
            if ours_sock is None:
                self._fail(sock, ECONNABORTED)
        peer.connected = ours_sock is not None
        self._done()
        return ours_sock

    def _joined(self, sock: socket.socket) -> socket.socket | None:
        try:
            ours_sock = crossing.cross(sock, self._room)
            if ours_sock is None:
                ours_sock = crossing.by_listener(sock, self.target, self._asleep)
                if ours_sock is not None:
                    self._peer.torn = True
                    self.source = own_name(sock)
        except OSError:
            return None  # no descriptor or no port is left
        return ours_sock

    def fail(self, number: int) -> None:
        """The program's connect() fails with errno ``number``, or SO_ERROR tells it."""
        if self.over or self._sock is None:
            return
        if tcp_state(self._sock) == TCP_SYN_SENT:
            self._fail(self._sock, number)
        self._done()

    def _fail(self, sock: socket.socket, number: int) -> None:
        self._peers.failed(self._peer, number)
        try:
            self._make_fail(sock)
        except OSError:
            pass  # neither descriptor nor port: its own time limit ends it, and the errno is told then

    def _make_fail(self, sock: socket.socket) -> None:
        if self._entering:
            fresh(sock)
            return
        try:
            if crossing.refuse(sock, self._room):
                return
        except OSError:
            pass  # no descriptor is left
        if not self._peer.waiters():
            self._rooms.refuse_afar(sock, self.target)
        elif crossing.seen(self._asleep):
            fresh(sock)

    def abandon(self) -> None:
        """The program's socket went on without us: it timed out, or was disconnected."""
        if not self.over:
            self._done()

    def _asleep(self) -> bool:
        return all(proc.asleep(call.tid) for call in self._peer.waiters())

    def _done(self) -> None:
        self._peer.attempt = None
        self._peers.pending -= 1
        if not self._entering and self._sock is not None:
            self._sock.close()
            self._sock = None

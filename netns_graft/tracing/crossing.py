"""How a program's own TCP socket is kept waiting in connect(), and comes to be connected with us or to fail.

**Kept waiting.** A listener of ours, the *waiting room*, has its accept queue full for good with one connection of our
own, and so leaves every SYN without an answer. (A socket filter that drops everything would do the same, but Linux 6.18
keeps those on TCP sockets for CAP_NET_ADMIN.) The program's socket, open here too, is connected to it and stays in
SYN_SENT: a true connect() under way, with the kernel's own ways of being waited for, polled, interrupted and timed out.

**Connected.** A socket of ours with the waiting room's address (SO_REUSEPORT) connects to the program's socket: TCP's
simultaneous open (RFC 9293, 3.5). Both are established within our call. The waiting room never accepts anybody, so no
stranger comes in this way.

**Connected where loopback is translated (SNAT).** The crossing SYN gets another source on its way and pairs with
nothing. Then the program's socket is disconnected and connects to a listener that exists for this one connection.

**Failed.** A crossing of which our side keeps back the last ACK (TCP_DEFER_ACCEPT), and resets instead: the program's
socket goes from SYN_SENT by SYN_RECV to closed with an error, so that nobody ever sees it writable without one. Where
loopback is translated: disconnected, and connected to a port where nobody listens.

Between "disconnected" and "connecting again" a thread that comes natively into connect() would start a connection of
its own, past us; so that is done only while every such thread is seen asleep in its call.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable
from errno import EADDRNOTAVAIL, ECONNABORTED, EINPROGRESS, ENETUNREACH

from netns_graft.tracing.sockets import (
    LOOPBACK,
    TCP_CLOSE,
    TCP_ESTABLISHED,
    TCP_SYN_RECV,
    bound_elsewhere,
    family_of,
    fresh,
    in_form,
    own_name,
    packed,
    ready,
    tcp_state,
    text,
    without_waiting,
)

ROOMS_LIMIT = 16  # waiting rooms of one IP version; each holds as many connections as there are ephemeral ports
_TCP_FASTOPEN_CONNECT = 30
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
_STREAM = socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
_ASLEEP_SECONDS = 0.05


class Rooms:
    """The waiting rooms, and a port where nobody listens, for IPv4 and for IPv6 where the host has ``::1``."""

    def __init__(self) -> None:
        """OSError when not even 127.0.0.1 can be bound."""
        self._rooms: dict[int, list[_Room]] = {4: [], 16: []}
        self._deaf: dict[int, socket.socket] = {}
        try:
            for size in (4, 16):
                try:
                    self._rooms[size].append(_Room(size))
                    self._deaf[size] = _bound(size)
                except OSError:
                    if size == 4:
                        raise
        except OSError:
            self.close()
            raise

    def hold(self, sock: socket.socket, host: bytes) -> tuple[str, int]:
        """Have ``sock`` (closed, the program's) wait in a connect() that is meant for ``host``. Returns the room.

        OSError, the socket being as it was before: what the kernel says, ENETUNREACH where ``sock`` cannot come here.
        """
        if bound_elsewhere(sock):
            raise OSError(ENETUNREACH, "tied to an interface other than lo")
        if sock.getsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT):
            # It would defer the SYN to the first write, and there would be nothing to hold.
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 0)
        rooms, tried = self._rooms[len(host)], 0
        if not rooms:
            raise OSError(ENETUNREACH, "this host has no IPv6")
        while True:
            if tried == len(rooms):
                if tried == ROOMS_LIMIT:
                    raise OSError(EADDRNOTAVAIL, "no port is free")
                rooms.append(self._one_more(len(host)))
            name: tuple[str, int] = rooms[-1].name
            with without_waiting(sock):
                code = sock.connect_ex(in_form(sock, packed(name[0]), name[1]))
            if code == EINPROGRESS:
                return name
            if code == 0:
                fresh(sock)  # the room is no longer full: loopback is not what it was
                code = ECONNABORTED
            if code != EADDRNOTAVAIL:
                raise OSError(code, "cannot wait")
            rooms.insert(0, rooms.pop())  # its ports are used up: the next to try last
            tried += 1

    def _one_more(self, size: int) -> _Room:
        try:
            return _Room(size)
        except OSError as error:
            raise OSError(EADDRNOTAVAIL, f"no further waiting room: {error.strerror}") from None

    def refuse_afar(self, sock: socket.socket, host: bytes) -> None:
        """``sock`` leaves its room and fails elsewhere: a pollable error, ECONNREFUSED for the kernel. OSError."""
        fresh(sock)
        name = self._deaf[len(host)].getsockname()
        with without_waiting(sock):
            sock.connect_ex(in_form(sock, packed(name[0]), name[1]))

    def close(self) -> None:
        for rooms in self._rooms.values():
            for room in rooms:
                room.close()
        for sock in self._deaf.values():
            sock.close()


def cross(sock: socket.socket, room: tuple[str, int]) -> socket.socket | None:
    """Our end of a connection with ``sock``, which waits in ``room``; None where its packets do not find back here."""
    ours_sock = _opposite(sock, room)
    try:
        ours_sock.connect_ex(_to(sock))
        if _established(ours_sock) and _established(sock):
            ours_sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return ours_sock
    except OSError:
        pass
    reset(ours_sock)
    return None


def refuse(sock: socket.socket, room: tuple[str, int]) -> bool:
    """``sock``, which waits in ``room``, fails: pollable, and with an error (ECONNRESET) for who asks the kernel.

    False where our packets do not reach it; it waits on. OSError.
    """
    ours_sock = _opposite(sock, room)
    try:
        ours_sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        ours_sock.connect_ex(_to(sock))
        _established(ours_sock)
    finally:
        reset(ours_sock)
    if tcp_state(sock) == TCP_SYN_RECV:
        ready(sock, 0)  # our RST is on its way
    return tcp_state(sock) == TCP_CLOSE


def _opposite(sock: socket.socket, room: tuple[str, int]) -> socket.socket:
    """A socket with the name that ``sock`` connects to. OSError."""
    ours_sock = socket.socket(family_of(packed(room[0])), _STREAM)
    try:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            ours_sock.setsockopt(socket.SOL_SOCKET, option, 1)
        ours_sock.bind(room)
    except OSError:
        ours_sock.close()
        raise
    return ours_sock


def _to(sock: socket.socket) -> tuple[str, int]:
    host, port = own_name(sock)
    return text(host), port


def by_listener(sock: socket.socket, host: bytes, asleep: Callable[[], bool]) -> socket.socket | None:
    """Our end of a new connection of ``sock``, by a listener for it alone; its port changes unless it was bound.

    None when that failed, or somebody else came too: then nobody is let in. ``asleep``: is every thread that is in
    connect() for ``sock`` waiting there?
    """
    if not seen(asleep):
        return None
    with _bound(len(host)) as listen_sock:
        listen_sock.listen(16)  # room for a stranger beside the one we wait for, or the latter would not be told
        name = listen_sock.getsockname()
        fresh(sock)
        with without_waiting(sock):
            sock.connect_ex(in_form(sock, packed(name[0]), name[1]))
        if not ready(listen_sock, select.POLLIN):
            return None
        ours_sock, _ = listen_sock.accept()
        try:
            listen_sock.accept()[0].close()
            alone = False
        except BlockingIOError:
            alone = True
        if alone and _established(sock):
            ours_sock.setblocking(False)
            ours_sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return ours_sock
        reset(ours_sock)
        return None


def finish(sock: socket.socket) -> None:
    """After a connection that a waiting thread was torn from: connect() on ``sock`` says EISCONN from now on."""
    try:
        name = sock.getpeername()[:2]
    except OSError:
        return  # reset already
    with without_waiting(sock):
        sock.connect_ex(name)


def seen(asleep: Callable[[], bool]) -> bool:
    """``asleep()`` within the moment that a thread needs to get where it waits."""
    deadline = time.monotonic() + _ASLEEP_SECONDS
    while not asleep():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    return True


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass
    sock.close()


def _established(sock: socket.socket) -> bool:
    state = tcp_state(sock)
    if state not in (TCP_ESTABLISHED, TCP_CLOSE):
        ready(sock, select.POLLOUT)
        state = tcp_state(sock)
    return state == TCP_ESTABLISHED


def _bound(size: int) -> socket.socket:
    """A TCP socket at a free port of loopback."""
    sock = socket.socket(socket.AF_INET if size == 4 else socket.AF_INET6, _STREAM)
    try:
        sock.bind((LOOPBACK[size], 0))
    except OSError:
        sock.close()
        raise
    return sock


class _Room:
    """A listener that answers nobody. OSError."""

    def __init__(self, size: int) -> None:
        self._sock = socket.socket(socket.AF_INET if size == 4 else socket.AF_INET6, _STREAM)
        self._guest_sock = socket.socket(self._sock.family, _STREAM)
        try:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                self._sock.setsockopt(socket.SOL_SOCKET, option, 1)
            self._sock.bind((LOOPBACK[size], 0))
            self.name: tuple[str, int] = self._sock.getsockname()[:2]
            self._sock.listen(0)  # room for one, who is never let in
            self._guest_sock.connect_ex(self.name)
            if not ready(self._sock, select.POLLIN):  # a stranger in our guest's place would do as well
                raise OSError(EADDRNOTAVAIL, "loopback does not carry TCP")
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        self._sock.close()
        self._guest_sock.close()

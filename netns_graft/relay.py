"""Carries bytes between the program's connection and the upstream's, without looking at them.

Theory of operation. Each direction moves data with splice(2), socket to pipe to socket, so bytes never become Python
objects. Both sockets are registered once, edge-triggered, for reading and writing; an event runs both directions
until the kernel says EAGAIN, which is what arms the next edge. A direction holds a pipe only while bytes are under
way in it, so ten thousand idle flows need no pipe at all.

Faithfulness: end of data is passed on as a half-close once the pipe is empty, in each direction by itself; a reset on
one side becomes a reset on the other (``SO_LINGER`` 0), after as much of what came before it as the other side takes
at once. Urgent data goes on in its place, as any other byte: splice(2) stops before it, so it is read by hand.

Backpressure is the kernel's: while the receiver does not take what the pipe holds, nothing more is read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable

from netns_graft.flow import Flow, Outcome

PIPE_SIZE = 256 * 1024  # bytes; 1 MiB pipes meet the per-user page limit with a few dozen busy flows
_CHUNK = 1 << 20
_ROUNDS = 16  # at most so many pipe fillings per event, then other flows have their turn
_F_SETPIPE_SZ = 1031
_SPLICE_F_MOVE, _SPLICE_F_NONBLOCK = 1, 2
_SPLICE_FLAGS = _SPLICE_F_MOVE | _SPLICE_F_NONBLOCK
_LINGER_RESET = struct.pack("ii", 1, 0)
_READABLE = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
EVENTS = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

_PROGRAM, _DESTINATION = "the program", "the destination"

Pipe = tuple[int, int]


class _Broken(Exception):
    """One side is broken, and which. A program that exits with data unread resets its connection, too."""

    def __init__(self, error: OSError, side: str) -> None:
        reset = error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN)
        super().__init__(f"reset by {side}" if reset else f"{side}: {error.strerror}")


class Pipes:
    """A stock of empty non-blocking pipes."""

    def __init__(self, keep: int = 64) -> None:
        self._stock: list[Pipe] = []
        self._keep = keep

    def take(self) -> Pipe:
        """An empty pipe, of ``PIPE_SIZE`` where the user's page limit allows, else the kernel's default. OSError."""
        if self._stock:
            return self._stock.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            pass  # pipe-user-pages-soft: smaller pipes are slower, not wrong
        return pipe

    def give_back(self, pipe: Pipe, *, empty: bool) -> None:
        if empty and len(self._stock) < self._keep:
            self._stock.append(pipe)
        else:
            os.close(pipe[0])
            os.close(pipe[1])

    def close(self) -> None:
        while self._stock:
            self.give_back(self._stock.pop(), empty=False)


class _Direction:
    """One way of a flow: ``source_fd`` → pipe → ``target_sock``."""

    __slots__ = (
        "done", "ended", "held", "pipe", "source_fd", "source_name", "source_sock", "target_fd", "target_sock",
        "total", "urgent",
    )  # fmt: skip

    def __init__(self, source_sock: socket.socket, target_sock: socket.socket, source_name: str) -> None:
        self.source_name = source_name
        self.source_sock = source_sock
        self.source_fd = source_sock.fileno()
        self.target_fd = target_sock.fileno()
        self.target_sock = target_sock
        self.pipe: Pipe | None = None
        self.held = 0  # bytes in the pipe
        self.total = 0  # bytes delivered
        self.ended = False  # the source has said all
        self.done = False  # and the target was told
        self.urgent = False  # the source has urgent data ahead


class Relay:
    """One flow being carried. Owns both sockets and closes them; calls ``finished(relay)`` once, when it has ended and
    before it closes them.

    ``client_sock`` leads to the program, ``upstream_sock`` to its destination; both non-blocking and connected.
    """

    __slots__ = ("_broken", "_closed", "_down", "_finished", "_pipes", "_up", "client_sock", "flow", "upstream_sock")

    def __init__(
        self,
        flow: Flow,
        client_sock: socket.socket,
        upstream_sock: socket.socket,
        pipes: Pipes,
        finished: Callable[[Relay], None],
    ) -> None:
        self.flow = flow
        self.client_sock = client_sock
        self.upstream_sock = upstream_sock
        self._pipes = pipes
        self._finished = finished
        self._up = _Direction(client_sock, upstream_sock, _PROGRAM)
        self._down = _Direction(upstream_sock, client_sock, _DESTINATION)
        self._broken = False  # what is there is still delivered, but no end of file is passed on
        self._closed = False

    def preload(self, early: bytes) -> None:
        """Bytes of the destination that came with the proxy's last reply: they go to the program first.

        Before anything else was carried. Some 16 KiB at most: less than the send buffer of a new connection, while a
        pipe may be as small as a page.
        """
        try:
            self._down.total += self.client_sock.send(early)
        except OSError as error:
            self._end(Outcome.RESET, str(_Broken(error, _PROGRAM)))
            return
        if self._down.total < len(early):
            self._end(Outcome.RESET, "the proxy's reply brought more than the program's connection takes")

    def on_client(self, events: int) -> bool:
        """An event of ``client_sock``; 0: look at everything. True: there is more to do, call again with 0."""
        return self._on_event(self._up, self._down, events)

    def on_upstream(self, events: int) -> bool:
        """An event of ``upstream_sock``; else as ``on_client``."""
        return self._on_event(self._down, self._up, events)

    def _on_event(self, outward: _Direction, inward: _Direction, events: int) -> bool:
        """``outward`` reads from the socket that has the event, ``inward`` writes to it."""
        if self._closed:
            return False
        more = False
        if events & select.EPOLLPRI:
            outward.urgent = True
        try:
            if not events or events & _READABLE:
                more = self._pump(outward)
            # Every edge says "writable" too; it is news only to a direction that waits for it.
            if not events or inward.held:
                more |= self._pump(inward)
            if events & select.EPOLLERR and not more:
                self._check()
        except _Broken as broken:
            self._deliver_rest()
            self._end(Outcome.RESET, str(broken))
            return False
        if outward.done and inward.done:
            self._end(Outcome.OK, None)
            return False
        return more

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes delivered so far: (from the program, to the program)."""
        return self._up.total, self._down.total

    def stop(self) -> None:
        """The workload is gone: end now. What the program had finished saying counts as an ordinary end."""
        if self._closed:
            return
        if self._up.ended or self._down.ended:
            self._end(Outcome.OK, None)
        else:
            self._end(Outcome.WORKLOAD_GONE, None)

    def _deliver_rest(self) -> None:
        """One side is broken: what it said before, and is not told yet, goes out if it can go at once."""
        self._broken = True
        for way in (self._up, self._down):
            try:
                while self._pump(way):
                    pass  # one of the two ends is dead, so this has an end
            except _Broken:
                pass

    def _pump(self, way: _Direction) -> bool:
        """Run one direction until EAGAIN or its end. True: stopped for fairness only. _Broken: a side is."""
        if way.done:
            return False
        for _ in range(_ROUNDS):
            if not way.held:
                if way.ended:
                    if not self._broken:
                        self._finish(way)
                    return False
                if not self._fill(way):
                    return False
                continue
            assert way.pipe is not None
            try:
                moved = os.splice(way.pipe[0], way.target_fd, way.held, flags=_SPLICE_FLAGS)
            except BlockingIOError:
                return False
            except OSError as error:
                raise _Broken(error, _DESTINATION if way.source_name is _PROGRAM else _PROGRAM) from None
            way.held -= moved
            way.total += moved
            if not way.held:
                self._pipes.give_back(way.pipe, empty=True)
                way.pipe = None
        return True

    def _fill(self, way: _Direction) -> bool:
        """Read once into a pipe. False: the source has nothing now. _Broken."""
        try:
            pipe = self._pipes.take()
        except OSError as error:  # no descriptor left: the end of this flow, not of all
            raise _Broken(error, "netns-graft") from None
        try:
            got = _splice_in(way, pipe[1])
        except BlockingIOError:
            self._pipes.give_back(pipe, empty=True)
            return False
        except OSError as error:
            self._pipes.give_back(pipe, empty=True)
            raise _Broken(error, way.source_name) from None
        if got == 0:
            self._pipes.give_back(pipe, empty=True)
            way.ended = True
        else:
            way.pipe = pipe
            way.held = got
        return True

    def _finish(self, way: _Direction) -> None:
        way.done = True
        try:
            way.target_sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # ENOTCONN: it has reset the connection meanwhile
            raise _Broken(error, _DESTINATION if way.source_name is _PROGRAM else _PROGRAM) from None

    def _check(self) -> None:
        """An error event that no read or write has met yet, as on a half-closed side."""
        for sock, name in ((self.client_sock, _PROGRAM), (self.upstream_sock, _DESTINATION)):
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise _Broken(OSError(number, os.strerror(number)), name)

    def _end(self, outcome: Outcome, error: str | None) -> None:
        self._closed = True
        for way in (self._up, self._down):
            if way.pipe is not None:
                self._pipes.give_back(way.pipe, empty=False)
                way.pipe = None
        if outcome is not Outcome.OK:
            for sock in (self.client_sock, self.upstream_sock):
                reset_on_close(sock)
        flow = self.flow
        flow.bytes_sent += self._up.total
        flow.bytes_received += self._down.total
        flow.outcome = outcome
        flow.error = error
        self._finished(self)
        self.client_sock.close()
        self.upstream_sock.close()


def _splice_in(way: _Direction, pipe_fd: int) -> int:
    """Move bytes from the source into an empty pipe; 0 at their end. BlockingIOError when there are none now."""
    if not way.urgent:
        return os.splice(way.source_fd, pipe_fd, _CHUNK, flags=_SPLICE_FLAGS)
    try:
        got = os.splice(way.source_fd, pipe_fd, _CHUNK, flags=_SPLICE_FLAGS)
        if got:
            return got
    except BlockingIOError:
        pass
    # At urgent data splice says "end" or "nothing now", whatever follows. One byte further it goes on.
    way.source_sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    byte = way.source_sock.recv(1)
    way.urgent = False
    return os.write(pipe_fd, byte) if byte else 0


def reset_on_close(sock: socket.socket) -> None:
    """Have ``close`` send RST instead of FIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    except OSError:
        pass  # already disconnected: there is nobody to tell

"""The fast half of the event loop: an epoll of its own, itself watched by asyncio.

An asyncio callback costs some 15 µs a turn and a registration as much again; a connection needs half a dozen of each.
Here a turn is one ``epoll_wait`` for many events and a dict look-up for each. Handlers must not block and must leave
slow work (handshakes with proxies, DNS questions to the outside) to asyncio tasks.

Registration is edge-triggered by the caller's choice; closing a socket removes it from epoll, so only ``handlers``
must be told. A stale event for a number that was closed and taken again within one turn is possible: handlers take
an event as "have a look", never as a fact.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable

Handler = Callable[[int], bool | None]
_TURNS = 8  # turns before asyncio has its chance
_BATCH = 256


class Reactor:
    """``handlers[fd](events)``; a handler that returns True is called again after the others."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._loop = loop
        self._again: deque[Handler] = deque()
        self._scheduled = False
        self.handlers: dict[int, Handler] = {}
        loop.add_reader(self._epoll.fileno(), self.turn)

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        self.handlers[fd] = handler
        self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        """Before the socket is closed. Closing it takes it out of epoll."""
        self.handlers.pop(fd, None)

    def again(self, handler: Handler) -> None:
        """Call ``handler(0)`` soon, and as long as it returns True."""
        self._again.append(handler)
        self._schedule()

    def turn(self) -> None:
        handlers, again = self.handlers, self._again
        for _ in range(_TURNS):
            events = self._epoll.poll(0, _BATCH)
            for fd, what in events:
                handler = handlers.get(fd)
                if handler is not None and handler(what):
                    again.append(handler)
            for _ in range(len(again)):
                handler = again.popleft()
                if handler(0):
                    again.append(handler)
            if not events and not again:
                return
        if again:
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._scheduled_turn)

    def _scheduled_turn(self) -> None:
        self._scheduled = False
        self.turn()

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

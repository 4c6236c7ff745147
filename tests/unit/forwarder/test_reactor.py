"""The fast half of the event loop: what is called when, and that stale events and busy handlers do no harm."""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest

from netns_graft.forwarder.reactor import Reactor

EDGE = select.EPOLLIN | select.EPOLLET
Pair = tuple[socket.socket, socket.socket]


def run(scene: Callable[[Reactor, asyncio.AbstractEventLoop], Awaitable[None]]) -> None:
    """A scene in a loop of its own; an exception in a callback is the scene's."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reactor = Reactor(loop)
        failed: list[BaseException] = []
        loop.set_exception_handler(lambda _loop, context: failed.append(context.get("exception") or Exception()))
        try:
            async with asyncio.timeout(5):
                await scene(reactor, loop)
        finally:
            reactor.close()
        if failed:
            raise failed[0]

    asyncio.run(main())


@pytest.fixture
def pairs() -> Iterator[Callable[[], Pair]]:
    made: list[socket.socket] = []

    def pair() -> Pair:
        one, two = socket.socketpair()
        one.setblocking(False)
        made.extend((one, two))
        return one, two

    yield pair
    for sock in made:
        sock.close()


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_an_event_reaches_its_handler(pairs: Callable[[], Pair]) -> None:
    async def scene(reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        one, two = pairs()
        came: asyncio.Future[int] = loop.create_future()
        reactor.watch(one.fileno(), EDGE, lambda events: came.set_result(events))
        two.send(b"x")
        assert await came & select.EPOLLIN

    run(scene)


def test_a_handler_that_wants_more_is_called_again_with_no_event(pairs: Callable[[], Pair]) -> None:
    async def scene(reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        one, two = pairs()
        calls: list[int] = []
        enough = asyncio.Event()

        def handler(events: int) -> bool:
            calls.append(events)
            if len(calls) == 100:  # more than the turns of one go
                enough.set()
            return not enough.is_set()

        reactor.watch(one.fileno(), EDGE, handler)
        two.send(b"x")
        await enough.wait()
        await turns()
        assert len(calls) == 100
        assert calls[0] & select.EPOLLIN and set(calls[1:]) == {0}

    run(scene)


def test_a_busy_handler_does_not_starve_asyncio_nor_the_others(pairs: Callable[[], Pair]) -> None:
    """One flow that always has more: tasks of the loop and another flow's event still have their turn."""

    async def scene(reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        busy, kick = pairs()
        other, poke = pairs()
        calls, met = 0, asyncio.Event()

        def for_ever(_events: int) -> bool:
            nonlocal calls
            calls += 1
            return not met.is_set()

        reactor.watch(busy.fileno(), EDGE, for_ever)
        reactor.watch(other.fileno(), EDGE, lambda _events: met.set())
        kick.send(b"x")
        for _ in range(5):
            await asyncio.sleep(0)
        assert calls > 0 and not met.is_set()
        poke.send(b"x")
        await met.wait()

    run(scene)


def test_again(pairs: Callable[[], Pair]) -> None:
    """From outside of a turn: as soon as the loop comes round, until it says no."""

    async def scene(reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        calls: list[int] = []
        enough = asyncio.Event()

        def handler(events: int) -> bool:
            calls.append(events)
            if len(calls) == 20:
                enough.set()
            return not enough.is_set()

        reactor.again(handler)
        assert calls == []
        await enough.wait()
        await turns()
        assert calls == [0] * 20

    run(scene)


def test_again_from_within_a_handler(pairs: Callable[[], Pair]) -> None:
    async def scene(reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        one, two = pairs()
        done = asyncio.Event()
        reactor.watch(one.fileno(), EDGE, lambda _events: reactor.again(lambda _events: done.set()))
        two.send(b"x")
        await done.wait()

    run(scene)


def test_a_forgotten_descriptor_has_no_handler(pairs: Callable[[], Pair]) -> None:
    async def scene(reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        one, two = pairs()
        called: list[int] = []
        reactor.watch(one.fileno(), EDGE, called.append)
        await turns()
        reactor.forget(one.fileno())
        reactor.forget(one.fileno())
        two.send(b"x")
        await turns()
        assert called == []

    run(scene)


def test_a_handler_that_closes_another_in_the_same_turn(pairs: Callable[[], Pair]) -> None:
    """Both have an event in one batch. Whoever comes first closes the other, whose event is then stale."""

    async def scene(reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        one, poke_one = pairs()
        two, poke_two = pairs()
        called: list[str] = []

        def closes(name: str, other: socket.socket) -> Callable[[int], None]:
            def handler(_events: int) -> None:
                called.append(name)
                reactor.forget(other.fileno())
                other.close()

            return handler

        reactor.watch(one.fileno(), EDGE, closes("one", two))
        reactor.watch(two.fileno(), EDGE, closes("two", one))
        poke_one.send(b"x")
        poke_two.send(b"x")
        reactor.turn()
        assert len(called) == 1

    run(scene)


def test_a_number_that_was_closed_and_taken_again_within_one_turn(pairs: Callable[[], Pair]) -> None:
    """The stale event of the old socket may reach the new one's handler: as "have a look", and no more."""

    async def scene(reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        first, poke_first = pairs()
        old, poke_old = pairs()
        number = old.fileno()
        looks: list[int] = []
        new: list[socket.socket] = []

        def swaps(_events: int) -> None:
            if not new:
                reactor.forget(number)
                old.close()
                new.extend(socket.socketpair())
                assert number in (new[0].fileno(), new[1].fileno())
                reactor.watch(number, EDGE, looks.append)

        reactor.watch(first.fileno(), EDGE, swaps)
        reactor.watch(number, EDGE, lambda events: None)
        poke_first.send(b"x")
        poke_old.send(b"x")
        reactor.turn()
        looks.clear()
        fresh, other = (new[0], new[1]) if new[0].fileno() == number else (new[1], new[0])
        other.send(b"news")
        reactor.turn()
        assert len(looks) == 1 and fresh.recv(10) == b"news"
        for sock in new:
            sock.close()

    run(scene)


def test_many_events_in_one_turn(pairs: Callable[[], Pair]) -> None:
    """More than one batch of epoll_wait, and none is lost."""

    async def scene(reactor: Reactor, loop: asyncio.AbstractEventLoop) -> None:
        heard: set[int] = set()
        ends = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(300)]
        for read_fd, write_fd in ends:
            reactor.watch(read_fd, EDGE, lambda _events, fd=read_fd: heard.add(fd))
            os.write(write_fd, b"x")
        reactor.turn()
        assert heard == {read_fd for read_fd, _ in ends}
        for fd in (fd for both in ends for fd in both):
            os.close(fd)

    run(scene)


def test_after_close_nothing_is_watched(pairs: Callable[[], Pair]) -> None:
    async def main() -> None:
        reactor = Reactor(asyncio.get_running_loop())
        one, two = pairs()
        called: list[int] = []
        reactor.watch(one.fileno(), EDGE, called.append)
        reactor.close()
        two.send(b"x")
        await turns()
        assert called == []

    asyncio.run(main())

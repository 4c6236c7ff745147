"""What is left for later: in portions, never after the end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from ground.child import end, fork

from netns_graft.attribution.holders import Holder, HolderFinder
from netns_graft.attribution.portrait import Portraits
from netns_graft.attribution.sharing import Sharing
from netns_graft.flow import Attribution
from netns_graft.linux import proc


class Clock:
    """asyncio's call_later, turned by hand."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        self.waiting.append((seconds, work))

    def turn(self) -> int:
        """Until nothing waits; how many calls that took."""
        calls = 0
        while self.waiting:
            _, work = self.waiting.pop(0)
            work()
            calls += 1
        return calls


@pytest.fixture
def finder() -> Iterator[HolderFinder]:
    it = HolderFinder({proc.own_network_namespace()})
    yield it
    it.close()


@pytest.fixture
def child() -> Iterator[tuple[int, socket.socket]]:
    """A child that holds a socket of ours."""
    with socket.socket() as sock:
        pid = fork(signal.pause)
        yield pid, sock
        end(pid)


def of(sock: socket.socket) -> tuple[Attribution, int, Holder]:
    process = Portraits().take(os.getpid(), os.getuid())
    inode = os.fstat(sock.fileno()).st_ino
    return Attribution(process, "sock_diag", 1), inode, Holder(os.getpid(), sock.fileno())


def test_the_others_are_told_later(finder: HolderFinder, child: tuple[int, socket.socket]) -> None:
    pid, sock = child
    clock = Clock()
    sharing = Sharing(finder, Portraits(), clock.later, careful=False)
    attribution, inode, holder = of(sock)
    sharing.complete(attribution, inode, holder, certain=True)
    assert attribution.process is not None and attribution.process.shared_with == ()
    assert clock.turn() >= 1
    assert attribution.process.pid == os.getpid()
    assert pid in [other.pid for other in attribution.process.shared_with]


def test_at_once_when_there_is_no_later(finder: HolderFinder, child: tuple[int, socket.socket]) -> None:
    pid, sock = child
    sharing = Sharing(finder, Portraits(), None, careful=True)
    attribution, inode, holder = of(sock)
    sharing.complete(attribution, inode, holder, certain=False)
    assert attribution.process is not None
    assert attribution.process.pid == os.getpid()  # the elder of the two
    assert pid in [other.pid for other in attribution.process.shared_with]


def test_one_look_for_all_that_wait(finder: HolderFinder, child: tuple[int, socket.socket]) -> None:
    _, sock = child
    clock = Clock()
    looks: list[None] = []
    sharing = Sharing(finder, Portraits(), clock.later, careful=False)
    listed = finder.list_holders
    finder.list_holders = lambda found: (looks.append(None), listed(found))[1]  # type: ignore[method-assign]
    flows = [of(sock) for _ in range(20)]
    for attribution, inode, holder in flows:
        sharing.complete(attribution, inode, holder, certain=True)
    clock.turn()
    assert len(looks) == 1
    assert all(flow[0].process is not None and flow[0].process.shared_with for flow in flows)


def test_looking_rests_in_proportion(finder: HolderFinder, child: tuple[int, socket.socket]) -> None:
    """The next look begins so much later that looking takes a twentieth of the time at most."""
    _, sock = child
    clock = Clock()
    sharing = Sharing(finder, Portraits(), clock.later, careful=False)
    sharing.complete(*of(sock), certain=True)
    begin = time.monotonic()
    clock.turn()
    took = time.monotonic() - begin
    sharing.complete(*of(sock), certain=True)
    ((seconds, _),) = clock.waiting
    assert 0 < seconds <= 20 * took


def test_nothing_happens_after_the_end(finder: HolderFinder, child: tuple[int, socket.socket]) -> None:
    _, sock = child
    clock = Clock()
    sharing = Sharing(finder, Portraits(), clock.later, careful=False)
    attribution, inode, holder = of(sock)
    sharing.complete(attribution, inode, holder, certain=True)
    sharing.close()
    assert clock.turn() == 1
    assert attribution.process is not None and attribution.process.shared_with == ()

"""The processes that are known: their order, who has to go, who has run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from ground.child import end, eventually, fork

from netns_graft.attribution import roll
from netns_graft.attribution.roll import Known, Roll
from netns_graft.linux.proc import Descriptors


@pytest.fixture
def pids() -> Iterator[list[int]]:
    made = [fork(signal.pause) for _ in range(4)]
    yield made
    for pid in made:
        end(pid)


@pytest.fixture
def it() -> Iterator[Roll]:
    made = Roll(4)
    yield made
    made.clear()


def in_order(it: Roll) -> list[int]:
    return [known.pid for known in it]


def test_the_latest_comes_first(it: Roll, pids: list[int]) -> None:
    known = [it.add(Descriptors(pid)) for pid in pids]
    it.is_latest(known[1])
    assert in_order(it) == [pids[1], pids[3], pids[2], pids[0]]
    assert pids[2] in it and len(it) == 4 and it.get(pids[2]) is known[2]


def test_the_least_lately_found_has_to_go(pids: list[int]) -> None:
    it = Roll(3)
    known = [it.add(Descriptors(pid)) for pid in pids[:3]]
    it.is_latest(known[0])
    it.add(Descriptors(pids[3]))
    assert in_order(it) == [pids[3], pids[0], pids[2]]
    with pytest.raises(OSError):
        known[1].descriptors.count()  # closed
    it.clear()
    assert len(it) == 0


def test_the_same_pid_again_takes_the_place(it: Roll, pids: list[int]) -> None:
    first = it.add(Descriptors(pids[0]))
    second = it.add(Descriptors(pids[0]))
    assert it.get(pids[0]) is second and first.descriptors.numbers() == []
    it.forget(first)  # nothing of the second's
    it.is_latest(first)
    assert it.get(pids[0]) is second and second.descriptors.numbers()


def test_some_may_be_forgotten_while_it_is_gone_through(it: Roll, pids: list[int]) -> None:
    for pid in pids:
        it.add(Descriptors(pid))
    seen = []
    for known in it.awake():
        seen.append(known.pid)
        it.forget(known)
    assert seen == pids[::-1] and len(it) == 0


def test_who_ran_is_awake(it: Roll) -> None:
    """The others are asleep. Whoever was never asked counts as awake, and so does whoever has ended."""
    ours, theirs = os.pipe()
    sleeper, ended = fork(signal.pause), fork(signal.pause)
    runner = fork(lambda: os.read(ours, 1) and signal.pause())
    pids = [sleeper, ended, runner]
    for pid in pids:
        it.add(Descriptors(pid))
    assert [known.pid for known in it.awake()] == pids[::-1] and it.asleep() == []
    assert eventually(lambda: not list(it.awake()))  # all have gone to sleep
    assert [known.pid for known in it.asleep()] == pids[::-1]
    os.write(theirs, b"x")
    assert eventually(lambda: [known.pid for known in it.awake()]) == [runner]
    end(ended)
    assert ended in [known.pid for known in it.awake()]
    end(sleeper)
    end(runner)
    os.close(ours)
    os.close(theirs)


class TestKnown:
    def known(self, *history: int, count: int = 0, free: int = -1) -> Known:
        known = Known(Descriptors(os.getpid()))
        known.open, known.free = count, free
        for fd in history:
            known.found_at(fd)
        known.close()
        return known

    def test_likely_numbers(self) -> None:
        assert self.known().likely() == []
        assert self.known(count=5, free=3).likely() == [4, 3]
        assert self.known(7, 8, 9, count=5, free=3).likely() == [9, 8, 4, 3, 7]
        assert self.known(*range(10, 30), count=12).likely() == [29, 28, 11, 10, 12, 13, 14, 15]

    def test_the_latest(self) -> None:
        assert self.known().latest() == -1
        assert self.known(free=6).latest() == 6
        assert self.known(7, 8, 7, free=6).latest() == 7

    def test_history_has_an_end(self) -> None:
        assert list(self.known(*range(100)).history) == list(range(36, 100))


@pytest.mark.parametrize(
    ("numbers", "free"), [([], 0), ([2, 1, 0], 3), ([7, 2, 1, 0], 3), ([5, 4], 0), ([9, 8, 3, 1, 0], 2)]
)
def test_the_lowest_free_number(numbers: list[int], free: int) -> None:
    assert roll.lowest_free(numbers) == free

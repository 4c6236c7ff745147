"""The processes of a workload that are known: what is remembered of each, and who of them has run lately.

CPU time tells who ran since we last asked, in a third of what it costs to look at a process. It is told late for one
that is running at this moment, and belongs to whoever has the pid now: a hint where to begin, and proof of nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from netns_graft.linux import proc
from netns_graft.linux.proc import Descriptors
from netns_graft.linux.sitter import Sitter

_HISTORY = 64  # descriptors remembered of one process
_OLDEST, _LATEST = 6, 2  # of these, how many are tried from either end


class Known:
    """A process met before. Owns ``descriptors`` and, once asked for, its sitter.

    ``history``: descriptors that its sockets had, the latest last. A client that keeps many connections up closes
    the oldest and gets its number again, so both ends are likely. ``free``: the lowest number that was free when we
    last saw them all. ``open``: how many there were when we last looked. ``vain``: how many there were when nothing was
    found at the likely ones. ``ran``: ns, when the ``clock`` of its CPU time was last asked.
    """

    __slots__ = ("_sitter", "clock", "descriptors", "free", "history", "open", "pid", "ran", "vain")

    def __init__(self, descriptors: Descriptors) -> None:
        self.descriptors = descriptors
        self.pid = descriptors.pid
        self.clock = proc.cpu_clock(descriptors.pid)
        self.ran = -1
        self._sitter: Sitter | None = None
        self.history: dict[int, None] = {}
        self.free = -1
        self.open = 0
        self.vain = -1

    def close(self) -> None:
        self.descriptors.close()
        if self._sitter is not None:
            self._sitter.close()

    def sitter(self) -> Sitter | None:
        """None when it has ended."""
        if self._sitter is None:
            try:
                self._sitter = Sitter(self.descriptors)
            except OSError:
                pass
        return self._sitter

    def numbers(self) -> list[int]:
        """All descriptors, highest first."""
        numbers = self.descriptors.numbers()
        if numbers:
            self.free = lowest_free(numbers)
        return numbers

    def likely(self) -> list[int]:
        """Where a new socket would be."""
        history = list(self.history)
        likely = history[: -_LATEST - 1 : -1]
        if self.open and self.open - 1 not in likely:
            likely.append(self.open - 1)
        if self.free >= 0 and self.free not in likely:
            likely.append(self.free)
        likely += [fd for fd in history[:_OLDEST] if fd not in likely]
        return likely

    def latest(self) -> int:
        return next(reversed(self.history), self.free)

    def found_at(self, fd: int) -> None:
        self.history.pop(fd, None)
        self.history[fd] = None
        if len(self.history) > _HISTORY:
            del self.history[next(iter(self.history))]


def lowest_free(numbers: list[int]) -> int:
    """The lowest number that is not among ``numbers`` (highest first)."""
    expected = 0
    for number in reversed(numbers):
        if number != expected:
            break
        expected += 1
    return expected


class Roll:
    """In the order in which something was last found with them. Owns those who are in it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: dict[int, Known] = {}  # the latest last
        self._asleep: list[Known] = []

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, pid: int) -> bool:
        return pid in self._known

    def __iter__(self) -> Iterator[Known]:
        """The latest first, of those who are there now. Some may be forgotten meanwhile."""
        return reversed(self._known.copy().values())

    def get(self, pid: int) -> Known | None:
        return self._known.get(pid)

    def pids(self) -> list[int]:
        return list(self._known)

    def add(self, descriptors: Descriptors) -> Known:
        """``descriptors`` are owned from now on. Who was found least lately may have to go."""
        former = self._known.get(descriptors.pid)
        if former is not None:
            self.forget(former)
        if len(self._known) >= self.limit:
            self.forget(next(iter(self._known.values())))
        known = self._known[descriptors.pid] = Known(descriptors)
        return known

    def forget(self, known: Known) -> None:
        """Not in it any more: that is all the same."""
        if self._known.get(known.pid) is known:
            del self._known[known.pid]
            known.close()

    def is_latest(self, known: Known) -> None:
        """Something was found with it."""
        if self._known.get(known.pid) is known:
            self._known[known.pid] = self._known.pop(known.pid)

    def awake(self) -> Iterator[Known]:
        """Those who ran since they were last asked, the latest first."""
        self._asleep = asleep = []
        ask = time.clock_gettime_ns  # this loop is where the time of a flow goes
        for known in self:
            try:
                ran = ask(known.clock)
            except OSError:
                ran = 0  # it has ended
            if ran == known.ran and ran:
                asleep.append(known)
            else:
                known.ran = ran
                yield known

    def asleep(self) -> list[Known]:
        """The others, once that was gone through."""
        return self._asleep

    def clear(self) -> None:
        for known in self._known.values():
            known.close()
        self._known.clear()

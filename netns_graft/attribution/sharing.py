"""Several processes can hold one socket: by fork, or because one was handed it. Which of them opened the flow?

The one that is in connect(2) with it, which /proc/PID/syscall shows as long as the SYN is held. Where nobody is
(a connect that does not wait, UDP), the eldest of the holders; the record lists the others beside it, so that
nobody takes a rule for a fact.

Whoever was found first is usually the only holder, and to know that for sure means to look at every descriptor of
the workload. So it is asked at once whether the process found is in connect(); if not, whether another one is, while
the workload is small. The other holders are looked for a little later, for all flows that wait for it together, in
small portions and in a twentieth of the time at most. ``Attribution.process`` is then completed in place.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from netns_graft.attribution.holders import Holder, HolderFinder
from netns_graft.attribution.portrait import Portraits
from netns_graft.flow import Attribution, Sharer
from netns_graft.linux import proc

Later = Callable[[float, Callable[[], None]], Any]  # seconds, what to call: asyncio's call_later

_ASKING = 1.0  # seconds between such questions for one process that does not wait in connect()
_AT_ONCE = 16  # other processes that are asked while a SYN is held
_PORTION = 0.0005  # seconds at a time
_REST = 19  # for each second of looking, seconds without
_WAITING = 1024


@dataclass(slots=True)
class _Open:
    """A flow whose other holders are not known yet. ``certain``: its holder was seen in connect()."""

    attribution: Attribution
    inode: int
    holder: Holder
    certain: bool


class Sharing:
    """``later`` None: everything at once. ``careful``: nothing is left for later that could change *who* it was."""

    def __init__(self, holders: HolderFinder, portraits: Portraits, later: Later | None, *, careful: bool) -> None:
        self._holders = holders
        self._portraits = portraits
        self._later = later
        self._careful = careful
        self._waiting: list[_Open] = []
        self._work: Iterator[None] | None = None
        self._not_before = 0.0
        self._asked: dict[int, float] = {}

    def opener(self, inode: int, found: Holder, protocol: int) -> tuple[Holder, bool]:
        """The holder that opened the flow, and whether that is certain; ``found`` unless another is in connect()."""
        if protocol != socket.IPPROTO_TCP:
            return found, False
        sitter = self._holders.sitter(found.pid)
        if sitter is not None and sitter.connecting() == found.fd:
            return found, True
        if not self._careful and self._holders.count() > _AT_ONCE + 1:
            return found, False
        self._holders.meet()
        others = self._holders.others(found.pid)
        if others and not self._careful:
            others = self._worth_asking(others, found, inode)
        if not others:
            return found, False
        for pid in (found.pid, *others):
            for thread in proc.threads(pid):
                fd = proc.connecting(thread)
                if fd is not None and self._holders.holds(Holder(pid, fd), inode):
                    return Holder(pid, fd), True
        return found, False

    def _worth_asking(self, others: list[int], found: Holder, inode: int) -> list[int]:
        """Who else may be in connect() with this socket. To ask a thread costs 10 µs, to look at one number 3.

        A child has its parent's sockets under the same numbers: looked at each time. A socket that was handed over
        may have any: a process that is found with sockets but not in connect() is asked about once in a while, for
        if it always connects without waiting, every flow of it would pay.
        """
        if len(others) > _AT_ONCE:
            return []
        now = time.monotonic()
        if now - self._asked.get(found.pid, -_ASKING) >= _ASKING:
            if len(self._asked) >= _WAITING:
                self._asked.clear()
            self._asked[found.pid] = now
            return others
        return [pid for pid in others if self._holders.holds(Holder(pid, found.fd), inode)]

    def complete(self, attribution: Attribution, inode: int, holder: Holder, *, certain: bool) -> None:
        """Fill in the other holders, now or later."""
        self._waiting.append(_Open(attribution, inode, holder, certain))
        del self._waiting[:-_WAITING]
        if self._later is None:
            for _ in self._look():
                pass
        elif self._work is None:
            self._work = self._look()
            self._later(max(0.0, self._not_before - time.monotonic()), self._portion)

    def close(self) -> None:
        """What still waits stays as it is."""
        self._work = self._later = None
        self._waiting.clear()

    def _portion(self) -> None:
        if self._work is None or self._later is None:
            return
        end = time.monotonic() + _PORTION
        for _ in self._work:
            if time.monotonic() >= end:
                self._later(0.0, self._portion)
                return
        self._work = self._look() if self._waiting else None
        if self._work is not None:
            self._later(max(0.0, self._not_before - time.monotonic()), self._portion)

    def _look(self) -> Iterator[None]:
        """One look at everybody, for all that wait when it begins."""
        waiting, self._waiting = self._waiting, []
        spent, begin = 0.0, time.monotonic()
        found: dict[int, list[Holder]] = {flow.inode: [] for flow in waiting}
        for _ in self._holders.list_holders(found):
            spent += time.monotonic() - begin
            yield
            begin = time.monotonic()
        for flow in waiting:
            self._settle(flow, found[flow.inode])
        spent += time.monotonic() - begin
        self._not_before = time.monotonic() + _REST * spent

    def _settle(self, flow: _Open, holders: list[Holder]) -> None:
        process = flow.attribution.process
        if process is None or all(holder.pid == process.pid for holder in holders):
            return
        opener = flow.holder if flow.certain else self._choose(holders, flow.holder)
        if opener.pid != process.pid:
            process = self._portraits.take(opener.pid, process.uid)
        others = sorted(holder.pid for holder in holders if holder.pid != opener.pid)
        sharers = tuple(Sharer(pid, proc.exe(pid)) for pid in others)
        flow.attribution.process = replace(process, shared_with=sharers)

    @staticmethod
    def _choose(holders: list[Holder], found: Holder) -> Holder:
        """Of several holders the one in connect(), else the eldest."""
        for holder in holders:
            if any(proc.connecting(thread) == holder.fd for thread in proc.threads(holder.pid)):
                return holder
        ages = [(stat.start, holder.pid, holder) for holder in holders if (stat := proc.stat(holder.pid))]
        return min(ages)[2] if ages else found

"""Who holds a socket? From its inode to a process and a descriptor, with as few looks as possible.

A look is ``readlink(/proc/PID/fd/N)``, some 2 to 4 µs. A workload of 100 processes with 50 descriptors has 5,000 of
them, so the order is everything:

1. what a full scan has already seen;
2. processes that are known, the latest first. How many descriptors each has costs 1 µs (Linux 6.2); only where that
   number is not what it was when we last looked in vain is there something to look at: the descriptor that its sockets
   had lately, and the one that a new socket would get;
3. processes younger than the last look: whoever forks, connects and ends is found here;
4. processes of the workload that we had not met yet;
5. every descriptor of every process of the workload, remembered for (1);
6. everybody whom we may look at: one that joined the workload's namespace after we had seen it elsewhere, or that
   lives somewhere else and was handed a socket.

Each answer is checked by its link, so that a wrong expectation costs time and nothing else. A process is remembered by
its /proc/PID/fd kept open, which cannot become another's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from netns_graft.linux import proc
from netns_graft.linux.proc import Descriptors

_KEPT = 1024  # processes whose /proc/PID/fd is kept open
_WINDOW = 64  # young processes that are tried by number
_SMALL = 12  # descriptors of a process that is searched at once
_SCANS = 3  # before a socket that exists counts as held by nobody
_PATIENCE = 1.0  # seconds after such a search in which the next is content with one
# Before Linux 6.2 the number of descriptors is not told; this process has some.
_COUNTS = os.stat("/proc/self/fd").st_size > 0


class Holder(NamedTuple):
    pid: int
    fd: int


class _Known:
    """A process met before. ``hint``: the descriptor that its sockets had lately. ``vain``: how many descriptors it
    had when nothing was found at ``hint`` and at the end."""

    __slots__ = ("descriptors", "hint", "vain")

    def __init__(self, descriptors: Descriptors) -> None:
        self.descriptors = descriptors
        self.hint = -1
        self.vain = -1


class HolderFinder:
    """For one workload. ``namespaces``: the inodes of the network namespaces it is in; more may be added."""

    def __init__(self, namespaces: Iterable[int]) -> None:
        self._namespaces = set(namespaces)
        self._known: dict[int, _Known] = {}  # the latest hit last
        self._strangers: set[int] = set()
        self._newest = proc.newest_pid()
        self._met_until = 0  # the newest pid when we last looked who is there
        self._seen: dict[int, Holder] = {}
        self._barren = -_PATIENCE  # monotonic seconds before the last full search that found nobody

    def close(self) -> None:
        for known in self._known.values():
            known.descriptors.close()
        self._known.clear()

    def find(self, inode: int, namespace: int, since: float) -> Holder | None:
        """A process that holds the socket with ``inode``, which belongs to the network namespace ``namespace``.

        ``since``: the socket was there by then (monotonic seconds), so a scan that began later has seen it.
        """
        if namespace not in self._namespaces:
            self._namespaces.add(namespace)
            self._strangers.clear()
            self._met_until = 0
        link = f"socket:[{inode}]"
        return (
            self._find_seen(inode, link)
            or self._find_known(link)
            or self._find_young(link)
            or self._find_unmet(link)
            or self._find_anywhere(inode, since)
        )

    def others(self, pid: int) -> list[int]:
        """The workload's processes without ``pid``, as far as we know them; ``meet`` makes that everybody."""
        return [other for other in self._known if other != pid]

    def holds(self, holder: Holder, inode: int) -> bool:
        known = self._known.get(holder.pid)
        return known is not None and known.descriptors.target(holder.fd) == f"socket:[{inode}]"

    def list_holders(self, found: dict[int, list[Holder]]) -> Iterator[None]:
        """Fill in, for each inode, every process of the workload that holds that socket, with one descriptor.

        Stops after each process, so that the caller may do other things between.
        """
        self.meet()
        links = {f"socket:[{inode}]": holders for inode, holders in found.items()}
        for pid, known in list(self._known.items()):
            if self._known.get(pid) is not known:
                continue  # forgotten meanwhile
            for fd in known.descriptors.numbers():
                holders = links.get(known.descriptors.target(fd))
                if holders is not None and all(holder.pid != pid for holder in holders):
                    holders.append(Holder(pid, fd))
            yield

    def sweep(self) -> None:
        """Forget those that have ended."""
        for known in list(self._known.values()):
            try:
                known.descriptors.count()
            except OSError:
                self._forget(known)

    # 1. to 4.

    def _find_seen(self, inode: int, link: str) -> Holder | None:
        holder = self._seen.get(inode)
        known = self._known.get(holder.pid) if holder else None
        if holder and known and known.descriptors.target(holder.fd) == link:
            return self._hit(known, holder.fd)
        return None

    def _find_known(self, link: str) -> Holder | None:
        for known in reversed(list(self._known.values())):
            descriptors = known.descriptors
            try:
                count = descriptors.count()
            except OSError:
                self._forget(known)
                continue
            if _COUNTS and count == known.vain:
                continue
            for fd in _likely(known.hint, count):
                if descriptors.target(fd) == link:
                    return self._hit(known, fd)
            known.vain = count
        return None

    def _find_young(self, link: str) -> Holder | None:
        newest, last = proc.newest_pid(), self._newest
        if newest == last:
            return None
        self._newest = newest
        # Numbers wrap around; then, or when there were many, the list of all processes is the shorter way.
        if not 0 < newest - last <= _WINDOW:
            return None
        for pid in range(newest, last, -1):
            if pid in self._known:
                continue
            holder = self._search_young(pid, link)
            if holder:
                return holder
        return None

    def _search_young(self, pid: int, link: str) -> Holder | None:
        try:
            descriptors = Descriptors(pid)
        except OSError:
            return None
        try:
            count = descriptors.count()
        except OSError:
            count = -1
        for fd in _likely(-1, count) if count > _SMALL else descriptors.numbers():
            if descriptors.target(fd) == link:
                process = proc.process_of_thread(pid)
                if process != pid:
                    descriptors.close()
                    return self._meet_thread(process, fd, link)
                return self._hit(self._remember(descriptors), fd)
        descriptors.close()
        return None

    def _meet_thread(self, process: int | None, fd: int, link: str) -> Holder | None:
        """A young thread of an old process: that is the holder."""
        known = self._known.get(process) if process is not None else None
        if process is not None and known is None:
            try:
                known = self._remember(Descriptors(process))
            except OSError:
                return None
        if known is not None and known.descriptors.target(fd) == link:
            return self._hit(known, fd)
        return None

    def _find_unmet(self, link: str) -> Holder | None:
        for known in self.meet():
            for fd in known.descriptors.numbers()[:_SMALL]:
                if known.descriptors.target(fd) == link:
                    return self._hit(known, fd)
        return None

    def meet(self) -> list[_Known]:
        """Get to know the processes of the workload that are new since the last time; these."""
        newest = proc.newest_pid()
        if newest == self._met_until:
            return []
        met = []
        every = proc.pids()
        self._strangers.intersection_update(every)
        for pid in every:
            if pid in self._known or pid in self._strangers:
                continue
            if proc.network_namespace(pid) in self._namespaces:
                try:
                    met.append(self._remember(Descriptors(pid)))
                except OSError:
                    pass
            else:
                self._strangers.add(pid)
        self._met_until = newest
        return met

    # 5. and 6.

    def _find_anywhere(self, inode: int, since: float) -> Holder | None:
        if self._barren > since:
            return None  # a search that began later has looked at everything, in vain
        link = f"socket:[{inode}]"
        began = time.monotonic()
        # A socket that changes hands while we look may be missed; where searches fail anyway, once is enough.
        for _ in range(1 if began - self._barren < _PATIENCE else _SCANS):
            began = time.monotonic()
            self._seen = {}
            for known in reversed(list(self._known.values())):
                self._scan(known)
            holder = self._find_seen(inode, link) or self._find_among_strangers(link)
            if holder is not None:
                return holder
        self._barren = began
        return None

    def _scan(self, known: _Known) -> None:
        descriptors = known.descriptors
        for fd in descriptors.numbers():
            target = descriptors.target(fd)
            if target.startswith("socket:["):
                self._seen.setdefault(int(target[8:-1]), Holder(descriptors.pid, fd))

    def _find_among_strangers(self, link: str) -> Holder | None:
        for pid in proc.pids():
            if pid in self._known:
                continue
            try:
                descriptors = Descriptors(pid)
            except OSError:
                continue
            for fd in descriptors.numbers():
                if descriptors.target(fd) == link:
                    return self._hit(self._remember(descriptors), fd)
            descriptors.close()
        return None

    # Memory

    def _hit(self, known: _Known, fd: int) -> Holder:
        known.hint = fd
        pid = known.descriptors.pid
        self._known[pid] = self._known.pop(pid)  # now the latest
        return Holder(pid, fd)

    def _remember(self, descriptors: Descriptors) -> _Known:
        former = self._known.get(descriptors.pid)
        if former is not None:
            self._forget(former)
        if len(self._known) >= _KEPT:
            self._forget(next(iter(self._known.values())))
        known = self._known[descriptors.pid] = _Known(descriptors)
        self._strangers.discard(descriptors.pid)
        return known

    def _forget(self, known: _Known) -> None:
        del self._known[known.descriptors.pid]
        known.descriptors.close()


def _likely(hint: int, count: int) -> tuple[int, ...]:
    """Where a socket would be: where the last one was, and where the next of so many descriptors goes."""
    last = count - 1
    return (hint, last) if hint >= 0 and hint != last else (last,) if last >= 0 else ()

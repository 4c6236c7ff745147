"""Who holds a socket? From its inode to a process and a descriptor, with as few looks as possible.

A look is ``readlink(/proc/PID/fd/N)``, some 2 to 4 µs. A workload of 100 processes with 50 descriptors has 5,000 of
them, so the order is everything:

1. what a scan has already seen;
2. processes that are known, the latest first. How many descriptors each has costs 1 µs (Linux 6.2); only where that
   number is not what it was when we last looked in vain is there something to look at: the descriptors that its
   sockets had lately, and those that a new one would get;
3. processes younger than the last look: whoever forks, connects and ends is found here;
4. processes of the workload that we had not met yet, and in those passed over in (2) their latest descriptor: one
   socket closed and another opened leaves the number as it was;
5. every descriptor of every process of the workload, the latest first, remembered for (1);
6. everybody whom we may look at: one that joined the workload's namespace after we had seen it elsewhere, or that
   lives somewhere else and was handed a socket.

Each answer is checked by its link, so that a wrong expectation costs time and nothing else. A process is remembered by
its /proc/PID/fd kept open, which cannot become another's.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from netns_graft.linux import proc
from netns_graft.linux.proc import Descriptors

_KEPT = 1024  # processes whose /proc/PID/fd is kept open
_WINDOW = 64  # young processes that are tried by number
_TOP = 12  # descriptors, from the highest, that are tried in a process that we know nothing of
_HISTORY = 64  # descriptors remembered of one process
_OLDEST, _LATEST = 6, 2  # of these, how many are tried from either end
_SCANS = 3  # before a socket that exists counts as held by nobody
_PATIENCE = 1.0  # seconds after such a search in which the next is content with one


class Holder(NamedTuple):
    pid: int
    fd: int


class _Known:
    """A process met before.

    ``history``: descriptors that its sockets had, the latest last. A client that keeps many connections up closes
    the oldest and gets its number again, so both ends are likely. ``free``: the lowest number that was free when we
    last saw them all. ``vain``: how many there were when nothing was found at the likely ones.
    """

    __slots__ = ("descriptors", "directory_fd", "free", "history", "vain")

    def __init__(self, descriptors: Descriptors) -> None:
        self.descriptors = descriptors
        self.directory_fd = descriptors.fd
        self.history: dict[int, None] = {}
        self.free = -1
        self.vain = -1

    def numbers(self) -> list[int]:
        """All descriptors, highest first."""
        numbers = self.descriptors.numbers()
        if numbers:
            self.free = _lowest_free(numbers)
        return numbers

    def likely(self, count: int) -> list[int]:
        """Where a new socket would be, ``count`` descriptors being open (0: unknown)."""
        history = list(self.history)
        likely = history[: -_LATEST - 1 : -1]
        if count - 1 not in likely and count:
            likely.append(count - 1)
        if self.free >= 0 and self.free not in likely:
            likely.append(self.free)
        likely += [fd for fd in history[:_OLDEST] if fd not in likely]
        return likely

    def latest(self) -> int:
        return next(reversed(self.history), self.free)


def _lowest_free(numbers: list[int]) -> int:
    """The lowest number that is not among ``numbers`` (highest first)."""
    expected = 0
    for number in reversed(numbers):
        if number != expected:
            break
        expected += 1
    return expected


class HolderFinder:
    """For one workload. ``namespaces``: the inodes of the network namespaces it is in; more may be added."""

    def __init__(self, namespaces: Iterable[int]) -> None:
        self._namespaces = set(namespaces)
        self._kept = min(_KEPT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._known: dict[int, _Known] = {}  # the latest hit last
        self._strangers: dict[int, None] = {}  # the latest last
        self._newest_pid = proc.NewestPid()
        self._newest = self._newest_pid.read()
        self._met_until = 0  # the newest pid when we last looked who is there
        self._seen: dict[int, Holder] = {}
        self._passed_over: list[_Known] = []
        self._barren = -_PATIENCE  # monotonic seconds before the last full search that found nobody

    def close(self) -> None:
        for known in self._known.values():
            known.descriptors.close()
        self._known.clear()
        self._newest_pid.close()

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

    def are_others(self, pid: int) -> bool:
        return len(self._known) > 1 or pid not in self._known

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
            for fd in known.numbers():
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
        self._passed_over = passed_over = []
        fstat = os.fstat  # this loop is where the time goes
        for known in reversed(self._known.copy().values()):
            try:
                count = fstat(known.directory_fd).st_size
            except OSError:
                self._forget(known)
                continue
            if count == known.vain:
                passed_over.append(known)
                continue
            descriptors = known.descriptors
            for fd in known.likely(count):
                if descriptors.target(fd) == link:
                    return self._hit(known, fd)
            if count:  # before Linux 6.2 it is not told
                known.vain = count
        return None

    def _find_young(self, link: str) -> Holder | None:
        newest, last = self._newest_pid.read(), self._newest
        self._newest = newest
        # Numbers wrap around; then, or when there were many, the list of all processes is the shorter way.
        if not 0 < newest - last <= _WINDOW:
            return None
        for pid in range(newest, last, -1):
            if proc.network_namespace(pid) in self._namespaces and (holder := self._search_young(pid, link)):
                return holder
        return None

    def _search_young(self, pid: int, link: str) -> Holder | None:
        known = self._known.get(pid)
        try:
            descriptors = known.descriptors if known else Descriptors(pid)
        except OSError:
            return None
        fd = _search(descriptors, link)
        if fd is not None:
            process = pid if known else proc.process_of_thread(pid)
            if process == pid:
                return self._hit(known or self._remember(descriptors), fd)
        if known is None:
            descriptors.close()
        return self._meet_thread(process, fd, link) if fd is not None else None

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
            fd = _search(known.descriptors, link)
            if fd is not None:
                return self._hit(known, fd)
        for known in self._passed_over:
            fd = known.latest()
            if fd >= 0 and known.descriptors.target(fd) == link:
                return self._hit(known, fd)
        # A young stranger may have been on its way in.
        for pid in list(self._strangers)[:-_WINDOW - 1 : -1]:
            if proc.network_namespace(pid) in self._namespaces and (holder := self._search_young(pid, link)):
                return holder
        return None

    def meet(self) -> list[_Known]:
        """Get to know the processes of the workload that are new since the last time; these."""
        newest, last = self._newest_pid.read(), self._met_until
        if newest == last:
            return []
        self._met_until = newest
        if last and 0 < newest - last <= _WINDOW:
            young = range(last + 1, newest + 1)
            new = [pid for pid in young if self._is_ours(pid) and proc.process_of_thread(pid) == pid]
        else:
            every = proc.pids()
            alive = set(every)
            self._strangers = {pid: None for pid in self._strangers if pid in alive}
            new = [pid for pid in reversed(every) if self._is_ours(pid)][::-1]
        met = []
        for pid in new:
            try:
                met.append(self._remember(Descriptors(pid)))
            except OSError:
                pass
        return met

    def _is_ours(self, pid: int) -> bool:
        """Is ``pid`` in a namespace of the workload, and not known yet?"""
        if pid in self._known or pid in self._strangers:
            return False
        if proc.network_namespace(pid) in self._namespaces:
            return True
        self._strangers[pid] = None
        return False

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
                if inode in self._seen and (holder := self._find_seen(inode, link)):
                    return holder
            holder = self._find_among_strangers(link)
            if holder is not None:
                return holder
        self._barren = began
        return None

    def _scan(self, known: _Known) -> None:
        descriptors = known.descriptors
        for fd in known.numbers():
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
        history, pid = known.history, known.descriptors.pid
        history.pop(fd, None)
        history[fd] = None
        if len(history) > _HISTORY:
            del history[next(iter(history))]
        if self._known.get(pid) is known:
            self._known[pid] = self._known.pop(pid)  # now the latest
        return Holder(pid, fd)

    def _remember(self, descriptors: Descriptors) -> _Known:
        former = self._known.get(descriptors.pid)
        if former is not None:
            self._forget(former)
        if len(self._known) >= self._kept:
            self._forget(next(iter(self._known.values())))
        known = self._known[descriptors.pid] = _Known(descriptors)
        self._strangers.pop(descriptors.pid, None)
        return known

    def _forget(self, known: _Known) -> None:
        del self._known[known.descriptors.pid]
        known.descriptors.close()


def _search(descriptors: Descriptors, link: str) -> int | None:
    """``link`` among the highest descriptors."""
    for fd in descriptors.numbers()[:_TOP]:
        if descriptors.target(fd) == link:
            return fd
    return None

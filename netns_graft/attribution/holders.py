"""Who holds a socket? From its inode to a process and a descriptor, with as few looks as possible.

A look is ``readlink(/proc/PID/fd/N)``, some 2 to 4 µs. A workload of 100 processes with 50 descriptors has 5,000 of
them, so the order is everything:

1. what a scan has already seen;
2. processes that are known, the latest first: those that ran since we last asked, which their CPU time tells in a third
   of 1 µs. It is told late for a process that is running at this moment, so that it is a hint where to begin. Of these,
   how many descriptors each has costs 1 µs (Linux 6.2); only where that number is not what it was when we last looked
   in vain is there something to look at: the descriptors that its sockets had lately, and those that a new one would
   get;
3. processes younger than the last look: whoever forks, connects and ends is found here; and the known processes whose
   CPU time is what it was. If there are many young ones, which may all be somebody else's, they come last;
4. processes of the workload that we had not met yet, and in those passed over in (2) their latest descriptor: one
   socket closed and another opened leaves the number as it was;
5. every descriptor of every process of the workload, the latest first, remembered for (1);
6. everybody whom we may look at: one that joined the workload's namespace after we had seen it elsewhere, or that
   lives somewhere else and was handed a socket.

Each answer is checked by its link, so that a wrong expectation costs time and nothing else. A process is remembered by
its /proc/PID/fd kept open, which cannot become another's; its CPU time has the pid alone, and so proves nothing.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from netns_graft.attribution.roll import Known, Roll
from netns_graft.linux import proc
from netns_graft.linux.proc import Descriptors
from netns_graft.linux.sitter import Sitter

_KEPT = 1024  # processes whose /proc/PID/fd is kept open
_FOR_EACH = 4  # descriptors of ours, of that and of its sitter
_FEW = 8  # young processes that are tried before the known ones that do not seem to have run
_WINDOW = 64  # young processes that are tried by number
_TOP = 12  # descriptors, from the highest, that are tried in a process that we know nothing of
_SCANS = 3  # before a socket that exists counts as held by nobody
_PATIENCE = 1.0  # seconds after such a search in which the next is content with one


class Holder(NamedTuple):
    pid: int
    fd: int


class HolderFinder:
    """For one workload. ``namespaces``: the inodes of the network namespaces it is in; more may be added."""

    def __init__(self, namespaces: Iterable[int]) -> None:
        self._namespaces = set(namespaces)
        limit = min(_KEPT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // (2 * _FOR_EACH))
        self._roll = Roll(limit)
        self._strangers: dict[int, None] = {}  # the latest last
        self._newest_pid = proc.NewestPid()
        self._newest = self._newest_pid.read()
        self._met_until = 0  # the newest pid when we last looked who is there
        self._seen: dict[int, Holder] = {}
        self._passed_over: list[Known] = []  # in this search: as many descriptors as when we looked in vain
        self._shrunk: list[Known] = []  # in this search: fewer descriptors than when we last looked
        self._barren = -_PATIENCE  # monotonic seconds before the last full search that found nobody

    def close(self) -> None:
        self._roll.clear()
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
        if holder := self._find_seen(inode, link) or self._find_awake(link):
            return holder
        young = self._young()
        if len(young) <= _FEW:
            holder = self._find_young(young, link) or self._find_asleep(link)
        else:
            holder = self._find_asleep(link) or self._find_young(young, link)
        return holder or self._find_unmet(link) or self._find_anywhere(inode, since)

    def sitter(self, pid: int) -> Sitter | None:
        """To take the picture of this holder. None when it has ended, or is not known any more."""
        known = self._roll.get(pid)
        return known.sitter() if known is not None else None

    def count(self) -> int:
        """How many processes of the workload are known, ``meet`` makes that all."""
        return len(self._roll)

    def others(self, pid: int) -> list[int]:
        """The workload's processes without ``pid``, as far as we know them; ``meet`` makes that everybody."""
        return [other for other in self._roll.pids() if other != pid]

    def holds(self, holder: Holder, inode: int) -> bool:
        known = self._roll.get(holder.pid)
        return known is not None and known.descriptors.target(holder.fd) == f"socket:[{inode}]"

    def list_holders(self, found: dict[int, list[Holder]]) -> Iterator[None]:
        """Fill in, for each inode, every process of the workload that holds that socket, with one descriptor.

        Stops after each process, so that the caller may do other things between.
        """
        self.meet()
        links = {f"socket:[{inode}]": holders for inode, holders in found.items()}
        for known in self._roll:
            pid = known.pid  # of one that was forgotten meanwhile there is nothing to see
            for fd in known.numbers():
                holders = links.get(known.descriptors.target(fd))
                if holders is not None and all(holder.pid != pid for holder in holders):
                    holders.append(Holder(pid, fd))
            yield

    def sweep(self) -> None:
        """Forget those that have ended."""
        for known in self._roll:
            try:
                known.descriptors.count()
            except OSError:
                self._roll.forget(known)

    # 1. to 4.

    def _find_seen(self, inode: int, link: str) -> Holder | None:
        holder = self._seen.get(inode)
        known = self._roll.get(holder.pid) if holder else None
        if holder and known and known.descriptors.target(holder.fd) == link:
            return self._hit(known, holder.fd)
        return None

    def _find_awake(self, link: str) -> Holder | None:
        self._passed_over, self._shrunk = [], []
        for known in self._roll.awake():
            if (holder := self._look_at(known, link)) is not None:
                return holder
        return self._find_shrunk(link) or self._find_latest(self._passed_over[:_FEW], link)

    def _find_asleep(self, link: str) -> Holder | None:
        for known in self._roll.asleep():
            if (holder := self._look_at(known, link)) is not None:
                return holder
        return self._find_shrunk(link)

    def _look_at(self, known: Known, link: str) -> Holder | None:
        try:
            count = known.descriptors.count()
        except OSError:
            self._roll.forget(known)
            return None
        before, known.open = known.open, count
        if count == known.vain:
            self._passed_over.append(known)
        elif count < before:
            self._shrunk.append(known)  # what was found lately is closed by now
        else:
            return self._try(known, link)
        return None

    def _try(self, known: Known, link: str) -> Holder | None:
        for fd in known.likely():
            if known.descriptors.target(fd) == link:
                return self._hit(known, fd)
        if known.open:  # before Linux 6.2 it is not told
            known.vain = known.open
        return None

    def _find_shrunk(self, link: str) -> Holder | None:
        while self._shrunk:
            if (holder := self._try(self._shrunk.pop(0), link)) is not None:
                return holder
        return None

    def _find_latest(self, passed_over: list[Known], link: str) -> Holder | None:
        for known in passed_over:
            fd = known.latest()
            if fd >= 0 and known.descriptors.target(fd) == link:
                return self._hit(known, fd)
        return None

    def _young(self) -> range:
        """Pids that processes may have got since we last asked, the latest first."""
        newest, last = self._newest_pid.read(), self._newest
        self._newest = newest
        # Numbers wrap around; then, or when there were many, the list of all processes is the shorter way.
        return range(newest, last, -1) if 0 < newest - last <= _WINDOW else range(0)

    def _find_young(self, young: range, link: str) -> Holder | None:
        for pid in young:
            if proc.network_namespace(pid) in self._namespaces and (holder := self._search_young(pid, link)):
                return holder
        return None

    def _search_young(self, pid: int, link: str) -> Holder | None:
        known = self._roll.get(pid)
        try:
            descriptors = known.descriptors if known else Descriptors(pid)
        except OSError:
            return None
        fd = _search(descriptors, link)
        if fd is not None:
            process = pid if known or proc.is_process(pid) else proc.process_of_thread(pid)
            if process == pid:
                return self._hit(known or self._remember(descriptors), fd)
        if known is None:
            descriptors.close()
        return self._meet_thread(process, fd, link) if fd is not None else None

    def _meet_thread(self, process: int | None, fd: int, link: str) -> Holder | None:
        """A young thread of an old process: that is the holder."""
        known = self._roll.get(process) if process is not None else None
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
        if holder := self._find_latest(self._passed_over, link):
            return holder
        # A young stranger may have been on its way in.
        for pid in list(self._strangers)[:-_WINDOW - 1 : -1]:
            if proc.network_namespace(pid) in self._namespaces and (holder := self._search_young(pid, link)):
                return holder
        return None

    def meet(self) -> list[Known]:
        """Get to know the processes of the workload that are new since the last time; these."""
        newest, last = self._newest_pid.read(), self._met_until
        if newest == last:
            return []
        self._met_until = newest
        if last and 0 < newest - last <= _WINDOW:
            young = range(last + 1, newest + 1)
            new = [pid for pid in young if proc.is_process(pid) and self._is_ours(pid)]
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
        if pid in self._roll or pid in self._strangers:
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
            for known in self._roll:
                self._scan(known)
                if inode in self._seen and (holder := self._find_seen(inode, link)):
                    return holder
            holder = self._find_among_strangers(link)
            if holder is not None:
                return holder
        self._barren = began
        return None

    def _scan(self, known: Known) -> None:
        descriptors = known.descriptors
        for fd in known.numbers():
            target = descriptors.target(fd)
            if target.startswith("socket:["):
                self._seen.setdefault(int(target[8:-1]), Holder(descriptors.pid, fd))

    def _find_among_strangers(self, link: str) -> Holder | None:
        for pid in proc.pids():
            if pid in self._roll:
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

    def _hit(self, known: Known, fd: int) -> Holder:
        known.found_at(fd)
        self._roll.is_latest(known)
        return Holder(known.pid, fd)

    def _remember(self, descriptors: Descriptors) -> Known:
        self._strangers.pop(descriptors.pid, None)
        return self._roll.add(descriptors)


def _search(descriptors: Descriptors, link: str) -> int | None:
    """``link`` among the highest descriptors."""
    for fd in descriptors.numbers()[:_TOP]:
        if descriptors.target(fd) == link:
            return fd
    return None

"""What a process is: its program, its arguments, its ancestors. A record's picture of it, taken while it connects."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from netns_graft.flow import Parent, Process
from netns_graft.linux import proc, userns

_ANCESTORS = 8  # in a record
_KEPT = 256


class _Family(NamedTuple):
    parents: tuple[Parent, ...]
    container_pid: int | None


class Portraits:
    """Remembers what does not change: a process's ancestors, as long as its parent lives, and its other number."""

    def __init__(self) -> None:
        self.root_pid: int | None = None  # the workload's first process: there the line of ancestors ends
        self._families: OrderedDict[tuple[int, int], _Family] = OrderedDict()

    def take(self, pid: int, uid: int) -> Process:
        """``uid`` is the socket's owner's. exe and argv change with every exec and are read each time."""
        family = self._family(pid)
        return Process(pid, proc.exe(pid), proc.argv(pid), userns.outside(uid), family.parents, family.container_pid)

    def _family(self, pid: int) -> _Family:
        stat = proc.stat(pid)
        if stat is None:
            return _Family((), None)
        key = (pid, stat.start)
        known = self._families.get(key)
        first = stat.parent if pid != self.root_pid and stat.parent > 1 else None
        if known is not None and (known.parents[0].pid if known.parents else None) == first:
            return known
        family = self._families[key] = _Family(self._ancestors(pid, stat.parent), proc.innermost_pid(pid))
        if len(self._families) > _KEPT:
            self._families.popitem(last=False)
        return family

    def _ancestors(self, pid: int, parent: int) -> tuple[Parent, ...]:
        found: list[Parent] = []
        while pid != self.root_pid and parent > 1 and len(found) < _ANCESTORS:
            found.append(Parent(parent, proc.exe(parent)))
            above = proc.stat(parent)
            if above is None:
                break
            pid, parent = parent, above.parent
        return tuple(found)

"""What a process is: its program, its arguments, its ancestors. A record's picture of it, taken while it connects."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from netns_graft.flow import Parent, Process
from netns_graft.linux import proc, userns
from netns_graft.linux.sitter import Pulse, Sitter

_ANCESTORS = 8  # in a record
_KEPT = 256


class _Family(NamedTuple):
    """``pulse``: the direct parent's, as long as it lives the family stays as it is; None where there is no parent
    that counts. ``root_pid``: what it was when we looked."""

    parents: tuple[Parent, ...]
    container_pid: int | None
    pulse: Pulse | None = None
    root_pid: int | None = None


class Portraits:
    """Remembers what does not change: a process's ancestors, as long as its parent lives, and its other number."""

    def __init__(self) -> None:
        self.root_pid: int | None = None  # the workload's first process: there the line of ancestors ends
        self._families: OrderedDict[Sitter | tuple[int, int], _Family] = OrderedDict()
        self._pulses: OrderedDict[int, Pulse] = OrderedDict()

    def close(self) -> None:
        self._families.clear()
        while self._pulses:
            self._pulses.popitem()[1].close()

    def take(self, pid: int, uid: int, sitter: Sitter | None = None) -> Process:
        """``uid`` is the socket's owner's. exe and argv change with every exec and are read each time. With the
        ``sitter`` of this process it takes half the time."""
        if sitter is None:
            family = self._family(pid)
            exe, argv = proc.exe(pid), proc.argv(pid)
        else:
            family = self._family_of(sitter)
            exe, argv = sitter.exe(), sitter.argv()
        return Process(pid, exe, argv, userns.outside(uid), family.parents, family.container_pid)

    def _family_of(self, sitter: Sitter) -> _Family:
        known = self._families.get(sitter)
        if known is not None and known.root_pid == self.root_pid and (known.pulse is None or known.pulse.beats()):
            return known
        stat = proc.stat(sitter.pid)
        if stat is None:
            return _Family((), None)
        first = self._first_parent(sitter.pid, stat.parent)
        if first is None:
            return self._keep(sitter, None, stat.parent)
        pulse = self._pulses.get(first)
        if pulse is None or not pulse.beats():
            pulse = self._new_pulse(first)
            # Its number may have been another's when it was told: asked again, now that it is held.
            stat = proc.stat(sitter.pid)
            if pulse is None or stat is None or stat.parent != first:
                return self._family(sitter.pid)
        return self._keep(sitter, pulse, first)

    def _family(self, pid: int) -> _Family:
        stat = proc.stat(pid)
        if stat is None:
            return _Family((), None)
        key = (pid, stat.start)
        known = self._families.get(key)
        first = self._first_parent(pid, stat.parent)
        if known is not None and (known.parents[0].pid if known.parents else None) == first:
            return known
        return self._keep(key, None, stat.parent)

    def _first_parent(self, pid: int, parent: int) -> int | None:
        return parent if pid != self.root_pid and parent > 1 else None

    def _new_pulse(self, pid: int) -> Pulse | None:
        if (former := self._pulses.pop(pid, None)) is not None:
            former.close()
        try:
            pulse = self._pulses[pid] = Pulse(pid)
        except OSError:
            return None
        if len(self._pulses) > _KEPT:
            self._pulses.popitem(last=False)[1].close()
        return pulse

    def _keep(self, key: Sitter | tuple[int, int], pulse: Pulse | None, parent: int) -> _Family:
        pid = key.pid if isinstance(key, Sitter) else key[0]
        parents = self._ancestors(pid, parent)
        family = self._families[key] = _Family(parents, proc.innermost_pid(pid), pulse, self.root_pid)
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

"""Which process opened this flow?

Two questions, one after the other. *Which socket has these addresses?* An exact ``sock_diag`` look-up in the
workload's namespace W (µs), or the text tables of /proc when the kernel refuses that (ms). *Who holds that socket?*
The link /proc/PID/fd/N says "socket:[INODE]"; we look where it is likely first:

1. (process, descriptor) pairs that were right lately: most programs use the same descriptor number again;
2. the descendants of the workload's first process, youngest first;
3. every process whose network namespace is W: daemons that left the family, and whoever entered later.

Invariant: an answer is exact or absent. A socket that nobody can be found for has ``process`` None; nothing is
inferred from ports, times or names. The flow's SYN is held while we look, so the process is still in ``connect()``
unless it was killed or closed the socket.

Seam: when the exact look-up finds nothing, the source may have been translated on its way; ``_untranslated`` is
where conntrack and nested namespaces answer (nothing is translated in a namespace without NAT).
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Iterator

from netns_graft.flow import Attribution, NatStep, Parent, Process
from netns_graft.linux import proc, sock_diag

_RECENT = 64  # remembered (process, descriptor) pairs
_PARENTS = 8  # ancestors in a record
_FAMILY_CACHE = 256


class Attributor:
    """Answers for one workload. ``diag_sock`` was born in W (borrowed); ``workload_ns`` is W's inode, and
    ``workload_link`` the index of its eth0, for sockets that are bound to that."""

    def __init__(self, diag_sock: socket.socket, workload_ns: int, workload_link: int = 0) -> None:
        self._diag_sock = diag_sock
        self._workload_ns = workload_ns
        self._workload_link = workload_link
        self._root_pid: int | None = None
        self._recent: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._ancestors: OrderedDict[tuple[int, int], tuple[Parent, ...]] = OrderedDict()

    def started(self, root_pid: int) -> None:
        """The workload's first process runs; before, nobody can have opened anything."""
        self._root_pid = root_pid

    def who(self, protocol: int, source: bytes, source_port: int, target: bytes, target_port: int) -> Attribution:
        """The process whose socket has these addresses (packed), as W's wire shows them. Never raises."""
        begin = time.perf_counter_ns()
        owner, method, nat = self._socket(protocol, source, source_port, target, target_port)
        process = None
        if owner is not None:
            inode, uid = owner
            pid = self._holder(inode)
            if pid is not None:
                process = self._describe(pid, uid)
        return Attribution(process, method, (time.perf_counter_ns() - begin) // 1000, nat)

    def _socket(
        self, protocol: int, source: bytes, source_port: int, target: bytes, target_port: int
    ) -> tuple[tuple[int, int] | None, str, tuple[NatStep, ...]]:
        try:
            owner = sock_diag.find(
                self._diag_sock, protocol, source, source_port, target, target_port, self._workload_link
            )
            method = "sock_diag"
        except OSError:
            row = None
            if self._root_pid is not None:
                row = proc.find_in_tables(self._root_pid, protocol, source, source_port, target, target_port)
            return row, "proc", ()
        return owner, method, ()

    def _holder(self, inode: int) -> int | None:
        for pair in reversed(self._recent):
            if proc.holds_socket(*pair, inode):
                self._recent.move_to_end(pair)
                return pair[0]
        for pid in self._candidates():
            for fd in proc.descriptors(pid):
                if proc.holds_socket(pid, fd, inode):
                    self._recent[pid, fd] = None
                    if len(self._recent) > _RECENT:
                        self._recent.popitem(last=False)
                    return pid
        return None

    def _candidates(self) -> Iterator[int]:
        seen: set[int] = set()
        if self._root_pid is not None:
            generation = [self._root_pid]
            while generation:
                youngest_first = sorted(generation, reverse=True)
                for pid in youngest_first:
                    if pid not in seen:
                        seen.add(pid)
                        yield pid
                generation = [child for pid in youngest_first for child in proc.children(pid) if child not in seen]
        for pid in proc.pids():
            if pid not in seen and proc.network_namespace(pid) == self._workload_ns:
                yield pid

    def _describe(self, pid: int, uid: int) -> Process:
        # exe and argv change with every exec, so they are read each time; ancestors are remembered.
        return Process(pid, proc.exe(pid), proc.argv(pid), uid, self._parents(pid))

    def _parents(self, pid: int) -> tuple[Parent, ...]:
        if pid == self._root_pid:
            return ()
        stat = proc.stat(pid)
        if stat is None:
            return ()
        key = (pid, stat.start)
        known = self._ancestors.get(key)
        if known is not None and known[:1] and known[0].pid == stat.parent:
            return known
        found: list[Parent] = []
        parent = stat.parent
        while parent > 1 and len(found) < _PARENTS:
            found.append(Parent(parent, proc.exe(parent)))
            if parent == self._root_pid:
                break
            above = proc.stat(parent)
            if above is None:
                break
            parent = above.parent
        self._ancestors[key] = parents = tuple(found)
        if len(self._ancestors) > _FAMILY_CACHE:
            self._ancestors.popitem(last=False)
        return parents

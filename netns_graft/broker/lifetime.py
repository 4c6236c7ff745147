"""When a container's network is no longer needed: when no process is left in W.

A container's first process is watched by its pidfd. When it ends, others may still be in W: the members of a pod, or
a process that an engine entered from outside; then one of those is watched next. The hook's farewell (poststop) asks
us to look at once. Nobody's word is needed: an engine that was killed says no farewell.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from netns_graft.flow import Process
from netns_graft.forwarder.life import Running, end_everyone_in
from netns_graft.forwarder.status import Answer, Message
from netns_graft.journal import Tally
from netns_graft.linux import proc, workload
from netns_graft.linux.workload import Workload


@dataclass(slots=True, frozen=True)
class Member:
    """A container in W."""

    container_id: str
    name: str | None
    pid_ns: int | None  # the inode of its PID namespace, by which its processes are known


class ContainerLife:
    """Owns the descriptors of ``first``."""

    def __init__(self, name: str, first: Workload, member: Member, told: Callable[[str], None]) -> None:
        self._name = name
        self._first = first
        self._members = [member]
        self._told = told
        self._watched: dict[int, Member | None] = {}  # by pidfd
        self._running: Running

    def watch(self, running: Running) -> Mapping[str, Answer]:
        self._running = running
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._over, "SIGTERM")
        self._watch(self._first.pid_fd, self._members[0])
        running.started(self._name, self._first.pid)
        return {"finish": self._finish, "leave": self._leave, "join": self._join, "end": self._end_everyone}

    def container_of(self, process: Process | None) -> str:
        """Members of a pod have a PID namespace each, unless they were told to share one; then nobody can tell."""
        if len(self._members) > 1 and process is not None:
            pid_ns = proc.pid_namespace(process.pid)
            own = {member.container_id for member in self._members if member.pid_ns == pid_ns}
            if pid_ns is not None and len(own) == 1:
                return own.pop()
        return self._members[0].container_id

    def members(self) -> list[Message]:
        return [{"id": member.container_id, "name": member.name} for member in self._members]

    def end(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGTERM)
        for pid_fd in list(self._watched):
            self._forget(pid_fd)

    def farewell(self, tally: Tally) -> None:
        self._told(f"ended: {tally.total} flows, {tally.denied} denied, {tally.unattributed} unattributed")

    def end_everyone(self) -> bool:
        """Kill every process in W. Whether any of those that began it was still at work."""
        at_work = any(not workload.is_ending(pid_fd) for pid_fd in self._watched)
        for pid_fd in self._watched:
            workload.kill(pid_fd)  # at once; with the first of a PID namespace goes all of it
        end_everyone_in(self._running.workload_ns)
        return at_work

    def _watch(self, pid_fd: int, member: Member | None) -> None:
        self._watched[pid_fd] = member
        asyncio.get_running_loop().add_reader(pid_fd, self._on_end, pid_fd)

    def _forget(self, pid_fd: int) -> None:
        member = self._watched.pop(pid_fd)
        if member is not None and len(self._members) > 1:  # the last one stays, for what its processes leave behind
            self._members.remove(member)
        asyncio.get_running_loop().remove_reader(pid_fd)
        os.close(pid_fd)

    def _on_end(self, pid_fd: int) -> None:
        self._forget(pid_fd)
        if not self._watched:
            self._look()

    def _look(self) -> bool:
        """Is anybody left in W? If so, somebody is watched; else it is over."""
        for pid_fd in list(self._watched):
            if workload.has_ended(pid_fd):
                self._forget(pid_fd)
        if self._watched:
            return True
        somebody_fd = workload.someone_in(self._running.workload_ns)
        if somebody_fd is None:
            self._over("nobody is left")
            return False
        self._watch(somebody_fd, None)
        return True

    def _over(self, _why: str) -> None:
        if not self._running.over.done():
            self._running.over.set_result(None)

    async def _finish(self, _question: Message) -> Message:
        self._over("asked to finish")
        return {"finished": True}

    async def _end_everyone(self, _question: Message) -> Message:
        self.end_everyone()
        return {"ended": self._name}

    async def _leave(self, _question: Message) -> Message:
        """A container says that it has ended."""
        return {"finished": not self._look()}

    async def _join(self, question: Message) -> Message:
        """Another container came into W: ``pid``, ``container_id``, ``container_name``."""
        pid, container_id, name = question.get("pid"), question.get("container_id"), question.get("container_name")
        if not isinstance(pid, int) or not isinstance(container_id, str) or not isinstance(name, str | None):
            return {"error": "join needs pid and container_id"}
        if self._running.over.done():
            return {"error": "it is over"}
        try:
            joined = workload.open_workload(pid)
        except OSError as error:
            return {"error": f"process {pid}: {error.strerror}"}
        os.close(joined.ns_fd)
        if joined.inode != self._running.workload_ns:
            os.close(joined.pid_fd)
            return {"error": f"process {pid} is not in this network"}
        member = Member(container_id, name, proc.pid_namespace(pid))
        self._members.append(member)
        self._watch(joined.pid_fd, member)
        return {"joined": self._name}

"""When a workload begins and when it is over. ``exec`` has a supervisor that says so; a container has processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Mapping
from typing import Protocol

from netns_graft.errors import GraftError
from netns_graft.flow import Process
from netns_graft.forwarder.status import Answer, Message
from netns_graft.journal import Tally
from netns_graft.linux import proc

NOTED = b"noted"  # to "started PID"; anything else says what went wrong
_CHUNK = 60_000  # bytes of the tally per message


class Running(Protocol):
    """What a life may do to the forwarder that it watches over."""

    @property
    def over(self) -> asyncio.Future[None]: ...

    @property
    def workload_ns(self) -> int:
        """The inode of W."""

    def started(self, name: str, pid: int) -> None:
        """The workload's first process is ``pid``; from now on the workload is called ``name``.

        GraftError where its calls cannot be followed.
        """

    def end_workload(self) -> None:
        """Nothing of it may go on."""


class Life(Protocol):
    def watch(self, running: Running) -> Mapping[str, Answer]:
        """Begin, on the running loop: resolve ``running.over`` one day. Gives the status socket's further words."""

    def container_of(self, process: Process | None) -> str | None:
        """The id of the container that a process is in; of the workload's first one where nobody knows."""

    def members(self) -> list[Message]:
        """The containers that share W: {"id", "name"}."""

    def end(self) -> None:
        """It is over: stop watching, and whatever must happen before the flows are finished."""

    def farewell(self, tally: Tally) -> None:
        """Every flow has its record."""


class Supervised:
    """``channel`` is the supervisor's: it says which process is the workload's first, and when to finish; its end of
    file means that the supervisor was killed, and then nothing of the workload may stay.
    """

    def __init__(self, kind: str, channel: socket.socket) -> None:
        self._kind = kind
        self._channel = channel
        self._asked = False
        self._running: Running

    def watch(self, running: Running) -> Mapping[str, Answer]:
        self._running = running
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._on_message)
        return {}

    def container_of(self, _process: Process | None) -> None:
        return None

    def members(self) -> list[Message]:
        return []

    def end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        if not self._asked:
            self._running.end_workload()

    def farewell(self, tally: Tally) -> None:
        if not self._asked:
            return
        self._channel.setblocking(True)
        data = tally.to_json().encode()
        try:
            for start in range(0, len(data), _CHUNK):
                self._channel.send(data[start : start + _CHUNK])
        except OSError:
            pass  # the supervisor is gone: nobody wants the table

    def _on_message(self) -> None:
        try:
            data = self._channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data.startswith(b"started "):
            pid = int(data.split()[1])
            try:
                self._running.started(f"{self._kind}-{pid}", pid)
                answer = NOTED
            except GraftError as error:
                answer = str(error).encode()
            try:
                self._channel.send(answer)
            except OSError:
                pass  # the supervisor was killed meanwhile: the next read says so
        elif not self._running.over.done():
            self._asked = data == b"finish"
            self._running.over.set_result(None)


def end_everyone_in(workload_ns: int) -> None:
    """SIGKILL to every process in the network namespace with this inode, until none is left (or we may not)."""
    for _ in range(50):
        left = [pid for pid in proc.pids() if pid != os.getpid() and proc.network_namespace(pid) == workload_ns]
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass

"""What a forwarder tells about itself: one line of JSON in, lines of JSON out, on a Unix socket of its own.

::

    {"do": "status"}                  one line: the workload and its counts
    {"do": "flows", "follow": true}   the last flows (at most ``REMEMBERED``), then each as it ends
    {"do": "flows"}                   the last flows, then the end of file
    {"do": "finish"}, …               whatever the workload's kind adds; one line. The end of file after
                                      {"finished": true} comes when the forwarder has ended, its last records written

An error is ``{"error": "…"}``. Who may ask is decided by ``control_sockets``; a process in a graft may not. Nothing
that an asker does or leaves undone holds a flow up: a follower that does not read loses flows, and is told how many.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from netns_graft.flow import Flow
from netns_graft.forwarder.jobs import Jobs
from netns_graft.linux import control_sockets

REMEMBERED = 1000  # flows
_WAITING = 1000  # flows that a follower may be behind
_ASKERS = 64  # at once
_LINE = 65536  # bytes of a question
_PATIENCE = 5.0  # seconds for the question, and for the reader of an answer

Message = dict[str, Any]
Answer = Callable[[Message], Awaitable[Message]]


class Recent:
    """The last flows of a workload and the sums of all of them; followers hear of each new one."""

    def __init__(self) -> None:
        self.flows: deque[Flow] = deque(maxlen=REMEMBERED)
        self.bytes_sent = 0
        self.bytes_received = 0
        self._followers: set[Follower] = set()

    def add(self, flow: Flow) -> None:
        self.flows.append(flow)
        self.bytes_sent += flow.bytes_sent
        self.bytes_received += flow.bytes_received
        for follower in self._followers:
            follower.add(flow)

    def follow(self) -> Follower:
        follower = Follower()
        self._followers.add(follower)
        return follower

    def forget(self, follower: Follower) -> None:
        self._followers.discard(follower)


class Follower:
    """Flows on their way to one asker."""

    def __init__(self) -> None:
        self._waiting: deque[Flow] = deque()
        self._news = asyncio.Event()
        self.lost = 0

    def add(self, flow: Flow) -> None:
        if len(self._waiting) < _WAITING:
            self._waiting.append(flow)
        else:
            self.lost += 1
        self._news.set()

    async def next(self) -> list[Flow]:
        await self._news.wait()
        self._news.clear()
        flows = list(self._waiting)
        self._waiting.clear()
        return flows


class StatusSocket:
    """Answers for one workload. Owns its listening socket and the file."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._sock = sock
        self._path = path
        self._inode = os.lstat(path).st_ino
        self._askers = 0
        self._kept: list[socket.socket] = []
        self._jobs: Jobs
        self._recent: Recent
        self._answers: Mapping[str, Answer] = {}

    @classmethod
    def open(cls, path: str) -> StatusSocket:
        """Listen at ``path``. A stale socket there is replaced; FileExistsError when somebody listens. OSError."""
        try:
            return cls(control_sockets.listen(path), path)
        except FileExistsError:
            if not control_sockets.remove_stale(path):
                raise
        return cls(control_sockets.listen(path), path)

    def serve(self, jobs: Jobs, recent: Recent, answers: Mapping[str, Answer]) -> None:
        """Begin to answer, on the running loop. ``answers`` are the words besides "flows"."""
        self._jobs, self._recent, self._answers = jobs, recent, answers
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._on_asker)

    def close(self) -> None:
        """Inside the loop if it was served; harmless when repeated."""
        if self._sock.fileno() < 0:
            return
        if self._answers:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
        control_sockets.remove(self._path, self._inode)
        for sock in (self._sock, *self._kept):
            sock.close()

    def abandon(self) -> None:
        """At the end of the process, however that came: no file stays. Outside the loop, and after ``close`` too."""
        control_sockets.remove(self._path, self._inode)

    def _on_asker(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return  # it has left, or we have no descriptor left for it
        sock.setblocking(False)
        reason = control_sockets.refusal(sock)
        if reason is None and self._askers >= _ASKERS:
            reason = "too many are asking"
        if reason is not None:
            try:
                sock.send(_line({"error": f"refused: {reason}"}))
            except OSError:
                pass
            sock.close()
            return
        self._jobs.create_task(self._converse(sock))

    async def _converse(self, sock: socket.socket) -> None:
        self._askers += 1
        with sock:
            try:
                async with asyncio.timeout(_PATIENCE):
                    question = await _question(sock)
                if question.get("do") == "flows":
                    await self._tell_flows(sock, bool(question.get("follow")))
                else:
                    answer = await self._answer(question)
                    await _tell(sock, answer)
                    if answer.get("finished"):
                        self._kept.append(sock.dup())
            except (OSError, TimeoutError):
                pass  # the asker has left, or does not read
            except ValueError:
                await _tell_if_possible(sock, {"error": "not a line of JSON"})
            finally:
                self._askers -= 1

    async def _answer(self, question: Message) -> Message:
        answer = self._answers.get(str(question.get("do")))
        if answer is None:
            return {"error": f"unknown: {question.get('do')!r}"}
        return await answer(question)

    async def _tell_flows(self, sock: socket.socket, follow: bool) -> None:
        follower = self._recent.follow() if follow else None
        try:
            for flow in list(self._recent.flows):
                await _tell(sock, flow.record())
            if follower is None:
                return
            told = 0
            gone = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(sock, 1))
            try:
                while True:
                    news = asyncio.ensure_future(follower.next())
                    await asyncio.wait([news, gone], return_when=asyncio.FIRST_COMPLETED)
                    if not news.done():
                        news.cancel()
                        return  # nobody reads any more; a follower has nothing to say
                    for flow in news.result():
                        await _tell(sock, flow.record())
                    if follower.lost > told:
                        await _tell(sock, {"lost": follower.lost - told})
                        told = follower.lost
            finally:
                gone.cancel()
                await asyncio.wait([gone])
        finally:
            if follower is not None:
                self._recent.forget(follower)


async def _question(sock: socket.socket) -> Message:
    """ValueError for what is no JSON object on a line."""
    loop = asyncio.get_running_loop()
    data = b""
    while b"\n" not in data:
        part = await loop.sock_recv(sock, _LINE)
        data += part
        if not part or len(data) > _LINE:
            raise ValueError("no line")
    question = json.loads(data[: data.index(b"\n")])
    if not isinstance(question, dict):
        raise ValueError("no object")
    return question


async def _tell(sock: socket.socket, message: Message) -> None:
    async with asyncio.timeout(_PATIENCE):
        await asyncio.get_running_loop().sock_sendall(sock, _line(message))


async def _tell_if_possible(sock: socket.socket, message: Message) -> None:
    try:
        await _tell(sock, message)
    except (OSError, TimeoutError):
        pass


def _line(message: Message) -> bytes:
    return json.dumps(message).encode("ascii") + b"\n"

"""Names to addresses on the host, by its own getaddrinfo(3), in threads that nobody ever waits for.

getaddrinfo has no time limit and cannot be interrupted: a dead resolver holds it for tens of seconds. The
event loop's own pool would run full of such calls, and joins its threads when the process ends. So: a few
daemon threads of our own, a time limit on the waiting side, and whoever waits no longer is passed over when
its turn comes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from netns_graft.dialling.place import is_name, literal

THREADS = 16
TIME_LIMIT = 10.0  # seconds: glibc's own default is 5 seconds and two attempts a server
IDLE_LIMIT = 30.0  # seconds until a thread without work goes away

_Job = tuple[str, asyncio.AbstractEventLoop, "asyncio.Future[list[str]]"]


def getaddrinfo(host: str) -> list[str]:
    """The addresses of ``host`` for TCP, in the order of RFC 6724, each once. Blocks. Raises ``OSError``."""
    # As bytes, past Python's idna codec: it refuses names that the DNS takes.
    infos = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    # A mapped address is judged as what it is. Index 0 is the address in text for both families.
    return list(dict.fromkeys(literal(str(info[4][0])) or str(info[4][0]) for info in infos))


class Resolver:
    """A bounded pool of daemon threads around ``look_up``. Usable from any loop, and anew after a fork."""

    def __init__(
        self,
        *,
        look_up: Callable[[str], Sequence[str]] = getaddrinfo,
        threads: int = THREADS,
        time_limit: float = TIME_LIMIT,
        idle_limit: float = IDLE_LIMIT,
    ) -> None:
        self._look_up = look_up
        self._threads = threads
        self._time_limit = time_limit
        self._idle_limit = idle_limit
        self._closed = False
        self._start_over()

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._running = 0
        self._unfinished = 0  # jobs queued or in work

    async def resolve(self, host: str) -> list[str]:
        """The addresses of ``host``; a literal is its own, without a thread.

        Raises ``OSError``: ``gaierror`` with the resolver's words, ``TimeoutError`` after the time limit.
        """
        address = literal(host)
        if address is not None:
            return [address]
        if not is_name(host):
            raise socket.gaierror(socket.EAI_NONAME, "not a host name")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()
        self._submit((host, loop, future))
        async with asyncio.timeout(self._time_limit):
            addresses = await future
        if not addresses:
            raise socket.gaierror(socket.EAI_NODATA, "no address")
        return addresses

    def close(self) -> None:
        """Let idle threads go now and busy ones when their call returns; waits for none of them."""
        self._closed = True
        if self._pid == os.getpid():
            with self._lock:
                for _ in range(self._running):
                    self._jobs.put(None)

    def _submit(self, job: _Job) -> None:
        if self._closed:
            raise RuntimeError("a resolver was asked after it was closed")
        if self._pid != os.getpid():  # a fork leaves the threads behind, and maybe the lock taken
            self._start_over()
        with self._lock:
            self._jobs.put(job)
            self._unfinished += 1
            if self._unfinished <= self._running or self._running == self._threads:
                return
            self._running += 1
        Thread(target=self._work, name="netns-graft-resolver", daemon=True).start()

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            host, loop, future = job
            result: Any = None
            if not future.done():  # else: nobody waits any longer
                try:
                    result = list(self._look_up(host))
                except Exception as error:  # noqa: BLE001 - the waiting side raises it
                    result = error
            with self._lock:
                self._unfinished -= 1
            try:
                loop.call_soon_threadsafe(_settle, future, result)
            except RuntimeError:  # the loop has closed meanwhile
                pass

    def _next_job(self) -> _Job | None:
        """The next job; None when this thread is to end, and is counted no longer."""
        while True:
            try:
                job = self._jobs.get(timeout=self._idle_limit)
            except Empty:
                with self._lock:
                    if not self._jobs.empty():  # a job came just as the idle time ended, and counts on us
                        continue
                    self._running -= 1
                return None
            if job is None:
                with self._lock:
                    self._running -= 1
            return job


def _settle(future: asyncio.Future[list[str]], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, OSError):
        future.set_exception(result)
    elif isinstance(result, Exception):
        future.set_exception(socket.gaierror(socket.EAI_FAIL, str(result)))
    else:
        future.set_result(result)


_shared = Resolver()


async def resolve(host: str, *, resolver: Resolver | None = None) -> list[str]:
    """The addresses of ``host`` on the host machine, by the process's common resolver. Raises ``OSError``."""
    return await (resolver or _shared).resolve(host)

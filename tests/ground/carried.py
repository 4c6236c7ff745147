"""A traced command whose network calls mean what they mean in ptrace mode, carried by a small forwarder.

The carrier dials from the tracer's process, directly, and pumps bytes by threads. What it cannot reach, it says with
the errno that it was told. A few ports are made for tests:

* ``DENIED``: EACCES, before the call is let go
* ``REFUSED_LATER``, ``UNREACHABLE_LATER``: ECONNREFUSED, EHOSTUNREACH, once a byte has come over ``go``
* ``NEVER``: no answer at all
"""

from __future__ import annotations

import errno
import os
import pickle
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ground.traced import Report, Traced
from netns_graft.linux.routes import HostAddresses
from netns_graft.tracing.network import Connecting, Network, Question
from netns_graft.tracing.sockets import text
from netns_graft.tracing.tracer import Tracer

DENIED, REFUSED_LATER, UNREACHABLE_LATER, NEVER = 7001, 7002, 7003, 7004
_LATER = {REFUSED_LATER: errno.ECONNREFUSED, UNREACHABLE_LATER: errno.EHOSTUNREACH}


@dataclass
class Seen(Report):
    """What the carrier was told, as text and numbers."""

    connects: list[tuple[int, tuple[str, int], tuple[str, int]]] = field(default_factory=list)
    sources: list[tuple[str, int]] = field(default_factory=list)  # as they were when the connection stood
    questions: list[tuple[int, tuple[str, int], str, bytes]] = field(default_factory=list)
    doors: list[tuple[int, tuple[str, int], str, int]] = field(default_factory=list)


class _Carrier:
    def __init__(self, seen: Seen, wake: Callable[[Callable[[], None]], None], go_fd: int) -> None:
        self.seen, self._wake, self._go_fd = seen, wake, go_fd
        self.network: Network

    def connecting(self, attempt: Connecting) -> None:
        target = text(attempt.target), attempt.port
        self.seen.connects.append((attempt.pid, _shown(attempt.source), target))
        if attempt.port == DENIED:
            attempt.fail(errno.EACCES)
        elif attempt.port in _LATER:
            threading.Thread(target=self._fail_later, args=(attempt, _LATER[attempt.port]), daemon=True).start()
        elif attempt.port != NEVER:
            threading.Thread(target=self._dial, args=(attempt, target), daemon=True).start()

    def asked(self, question: Question) -> None:
        self.seen.questions.append(
            (question.pid, _shown(question.source), text(question.target), question.payload)
        )
        question.reply(b"re: " + question.payload)

    def closed(self, caller: int, source: tuple[bytes, int], target: bytes, port: int) -> None:
        self.seen.doors.append((caller, _shown(source), text(target), port))

    def _fail_later(self, attempt: Connecting, number: int) -> None:
        os.read(self._go_fd, 1)
        self._wake(lambda: attempt.fail(number))

    def _dial(self, attempt: Connecting, target: tuple[str, int]) -> None:
        try:
            far_sock = socket.create_connection(target, 10)
        except OSError as error:
            number = error.errno or errno.ETIMEDOUT
            self._wake(lambda: attempt.fail(number))
            return
        far_sock.settimeout(None)
        self._wake(lambda: self._join(attempt, far_sock))

    def _join(self, attempt: Connecting, far_sock: socket.socket) -> None:
        near_sock = attempt.succeed()
        if near_sock is None:
            far_sock.close()
            return
        assert not near_sock.getblocking()
        near_sock.setblocking(True)
        self.seen.sources.append(_shown(attempt.source))
        halves = [(near_sock, far_sock), (far_sock, near_sock)]
        threads = [threading.Thread(target=_pump, args=half, daemon=True) for half in halves]
        for thread in threads:
            thread.start()
        threading.Thread(target=self._end, args=(threads, near_sock, far_sock, attempt.cookie), daemon=True).start()

    def _end(self, threads: list[threading.Thread], near: socket.socket, far: socket.socket, cookie: int) -> None:
        for thread in threads:
            thread.join()
        near.close()
        far.close()
        self._wake(lambda: self.network.ended(cookie))


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for sock in (source, target):
            _shut(sock)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # reset already


def _shown(name: tuple[bytes, int]) -> tuple[str, int]:
    return text(name[0]), name[1]


class Carried(Traced):
    """``command`` as for ``Traced``, a function being given this object. ``network``: options of ``Network``.

    ``go()``, called on either side: let what waits for it happen.
    """

    def __init__(
        self, command: list[str] | Callable[[Carried], object], *, before: Callable[[], object] = lambda: None,
        **network: Any,
    ) -> None:  # fmt: skip
        self._options = {"dns": True, "ignore_local": True, **network}
        self._go_read, self._go_write = os.pipe()
        super().__init__((lambda: command(self)) if callable(command) else command, before=before)
        os.close(self._go_read)

    def go(self) -> None:
        os.write(self._go_write, b".")

    def report(self) -> Seen:
        os.close(self._go_write)
        seen = super().report()
        assert isinstance(seen, Seen)
        return seen

    def finish(self) -> Seen:
        seen = super().finish()
        assert isinstance(seen, Seen)
        return seen

    def _trace(self, _on_call: object, out_fd: int, before: Callable[[], object]) -> None:
        os.close(self._stop_write)
        os.close(self._out_read)
        before()
        seen, poll = Seen(), select.epoll()
        handlers: dict[int, Callable[[int], bool | None]] = {}
        todo: deque[Callable[[], None]] = deque()
        wake_read, wake_write = os.pipe()

        def wake(work: Callable[[], None]) -> None:
            todo.append(work)
            os.write(wake_write, b".")

        def woken(_events: int) -> None:
            os.read(wake_read, 64)
            while todo:
                todo.popleft()()

        def watch(fd: int, handler: Callable[[int], bool | None]) -> None:
            handlers[fd] = handler
            poll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

        def forget(fd: int) -> None:
            del handlers[fd]

        carrier, host = _Carrier(seen, wake, self._go_read), HostAddresses()
        options = {"owns": host.owns, **self._options}
        network = carrier.network = Network(
            carrier, watch=watch, forget=forget, warn=seen.warnings.append, **options
        )

        def on_call(call: Any) -> None:
            seen.calls.append((call.pid, call.name))
            network.on_call(call)

        tracer = Tracer(on_call, on_exec=seen.execs.append, on_end=seen.ends.append, warn=seen.warnings.append)
        os.read(self._allowed_read, 1)
        tracer.seize(self.pid)
        os.write(out_fd, b".")
        handlers[wake_read] = woken
        for fd in (wake_read, tracer.fd(), self._stop_read):
            poll.register(fd, select.EPOLLIN)
        handlers[tracer.fd()] = tracer.turn
        started, running = time.process_time(), True
        while running:
            for fd, events in poll.poll():
                running = running and fd != self._stop_read
                handler = handlers.get(fd)
                while handler is not None and handler(events):
                    pass
        seen.micros = (time.process_time() - started) * 1e6
        tracer.close()
        network.close()
        assert handlers.keys() <= {wake_read, tracer.fd()}, "descriptors are watched that were closed"
        host.close()
        with open(out_fd, "wb") as file:
            pickle.dump(seen, file)

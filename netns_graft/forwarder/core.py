"""A flow's life.

::

    door ──► who? ──► verdict ──allow──► dial ──connected──► let in ──► entered ──► relay
                         │                 │                                          │
                         └deny ──► refuse ◄┘failed                                    └► record

A *door* (``attempt.Door``) is how flows come and how their programs are answered: ``packets`` in route mode, ``calls``
in ptrace mode. A program is let in only after the upstream has answered, so ``connect()`` in it gives what the real
network would give.

Invariants: every flow has exactly one record; no socket outlives its flow.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from netns_graft.attribution import Attributor
from netns_graft.dialling import DialError
from netns_graft.flow import Attribution, Flow, Outcome, Process
from netns_graft.forwarder.attempt import Attempt, Door
from netns_graft.forwarder.jobs import Jobs
from netns_graft.forwarder.reactor import Reactor
from netns_graft.forwarder.status import Recent
from netns_graft.forwarder.verdict import Judge, Ruling
from netns_graft.journal import Journal, Tally
from netns_graft.relay import EVENTS, Pipes, Relay, reset_on_close

_DIRECT = "direct"

_OUTCOMES = {
    errno.ECONNREFUSED: Outcome.REFUSED,
    errno.ETIMEDOUT: Outcome.TIMEOUT,
    errno.ECONNRESET: Outcome.RESET,
}


class Forwarder:
    """One workload's flows, from their beginning to the record. ``attributor`` None: every door knows who calls."""

    def __init__(
        self,
        *,
        workload: str,
        container_of: Callable[[Process | None], str | None] = lambda _process: None,
        judge: Judge,
        attributor: Attributor | None,
        journal: Journal | None,
        tally: Tally,
        recent: Recent,
        serve_dns: Callable[[Attempt, socket.socket], Coroutine[Any, Any, None]] | None,
        jobs: Jobs,
        reactor: Reactor,
    ) -> None:
        self.workload = workload
        self._container_of = container_of
        self._judge = judge
        self._attributor = attributor
        self._journal = journal
        self._tally = tally
        self._recent = recent
        self._serve_dns = serve_dns
        self._jobs = jobs
        self._reactor = reactor
        self._door: Door | None = None
        self._pipes = Pipes()
        self._attempts: set[Attempt] = set()
        self._relays: set[Relay] = set()
        self._count = 0
        self._run = os.urandom(4).hex()

    def open(self, door: Door) -> None:
        """Flows come by ``door`` from now on, which is closed with us."""
        self._door = door

    # 1. Who

    def new_flow(
        self,
        protocol: str,
        number: int,
        source: bytes,
        source_port: int,
        target: bytes,
        target_port: int,
        *,
        attribution: Attribution | None = None,
        arrived: float | None = None,
    ) -> Flow:
        """A flow that begins now, with the process that opened it (unless that is known: ``attribution``).

        Addresses are packed; ``number`` is IPPROTO_TCP or IPPROTO_UDP; ``arrived`` as ``since`` of ``Attributor.who``.
        """
        ticks = time.monotonic()
        self._count += 1
        flow = Flow(
            id=f"{self._run}-{self._count}",
            workload=self.workload,
            protocol=protocol,
            source_address=_text(source),
            source_port=source_port,
            destination_address=_text(target),
            destination_port=target_port,
            started=time.time(),
            ticks=ticks,
        )
        if attribution is None:
            assert self._attributor is not None
            attribution = self._attributor.who(number, source, source_port, target, target_port, arrived)
        flow.attribution = attribution
        flow.container_id = self._container_of(flow.attribution.process)
        return flow

    # 2. Verdict

    def begin(self, attempt: Attempt) -> None:
        """A flow has come by the door: sooner or later it is let in or refused."""
        self._attempts.add(attempt)
        flow, ends = attempt.flow, attempt.ends
        if self._serve_dns is not None and ends.target_port == 53:
            attempt.dns = True
            attempt.let_in()
            return
        ruling = self._judge.rule(flow, ends.target)
        if ruling is None:
            self._refuse(attempt, errno.EACCES, Outcome.DENIED, None)
        elif ruling.literal:
            self._dial_address(attempt)
        else:
            attempt.dialling = self._jobs.create_task(self._dial(attempt, ruling))

    # 3. Dial

    def _dial_address(self, attempt: Attempt) -> None:
        """Direct, to a literal address: no task, no name, the shortest way."""
        flow, ends = attempt.flow, attempt.ends
        flow.upstream = _DIRECT
        family = socket.AF_INET if len(ends.target) == 4 else socket.AF_INET6
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._refuse(attempt, errno.ENETUNREACH, Outcome.UPSTREAM_FAILED, error.strerror)
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        attempt.upstream_sock = sock
        code = sock.connect_ex((flow.destination_address, ends.target_port))
        if code not in (0, errno.EINPROGRESS):
            self._dial_failed(attempt, code)
            return
        self._reactor.watch(sock.fileno(), EVENTS, partial(self._on_dialled, attempt))

    def _on_dialled(self, attempt: Attempt, _events: int) -> bool:
        sock = attempt.upstream_sock
        if sock is None or attempt.entered:
            return False
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._dial_failed(attempt, code)
            return False
        try:
            sock.getpeername()
        except OSError:
            return False  # a stale event; still connecting
        attempt.let_in()
        return False

    def _dial_failed(self, attempt: Attempt, code: int) -> None:
        self._refuse(attempt, code, _OUTCOMES.get(code, Outcome.UNREACHABLE), os.strerror(code))

    async def _dial(self, attempt: Attempt, ruling: Ruling) -> None:
        """By way of a proxy, or to a name."""
        flow = attempt.flow
        try:
            dialled = await ruling.upstreams.dial(ruling.target, permits=ruling.permits)
        except DialError as error:
            if attempt.over:
                return
            if error.outcome is Outcome.DENIED:
                flow.verdict = "deny"
            else:
                flow.upstream = error.upstream
            self._refuse(attempt, error.errno, error.outcome, str(error))
            return
        if attempt.over:
            dialled.sock.close()  # given up while dialling; recorded already
            return
        flow.upstream, flow.resolved = dialled.upstream, dialled.resolved
        attempt.upstream_sock, attempt.early = dialled.sock, dialled.early
        self._reactor.watch(dialled.sock.fileno(), EVENTS, _not_yet)
        attempt.let_in()

    # 4. Answer

    def _refuse(self, attempt: Attempt, number: int, outcome: Outcome, error: str | None) -> None:
        """``number`` is the errno that the program's connect() shall give."""
        attempt.flow.outcome, attempt.flow.error = outcome, error
        attempt.refuse(number)
        self._drop(attempt)
        self.record(attempt.flow)

    def abandon(self, attempt: Attempt) -> None:
        """The program gave up before it was answered."""
        attempt.flow.outcome = Outcome.WORKLOAD_GONE
        self._drop(attempt)
        if not attempt.dns:
            self.record(attempt.flow)

    def _drop(self, attempt: Attempt) -> None:
        attempt.over = True
        self._attempts.discard(attempt)
        if attempt.dialling is not None and attempt.dialling is not asyncio.current_task():
            attempt.dialling.cancel()
        sock, attempt.upstream_sock = attempt.upstream_sock, None
        if sock is not None:
            self._reactor.forget(sock.fileno())
            reset_on_close(sock)
            sock.close()
        attempt.drop()

    # 5. Relay

    def enter(self, attempt: Attempt, client_sock: socket.socket) -> None:
        """The program is connected: ``client_sock`` (non-blocking, now ours) leads to it."""
        self._attempts.discard(attempt)
        if attempt.dns:
            assert self._serve_dns is not None
            self._reactor.forget(client_sock.fileno())
            self._jobs.create_task(self._serve_dns(attempt, client_sock))
            return
        upstream_sock = attempt.upstream_sock
        assert upstream_sock is not None
        finished = partial(self._relay_finished, attempt.ended)
        relay = Relay(attempt.flow, client_sock, upstream_sock, self._pipes, finished)
        self._relays.add(relay)
        self._reactor.handlers[upstream_sock.fileno()] = relay.on_upstream
        if attempt.watched:
            self._reactor.handlers[client_sock.fileno()] = relay.on_client
        else:
            self._reactor.watch(client_sock.fileno(), EVENTS, relay.on_client)
        if attempt.early:
            relay.preload(attempt.early)
        # The upstream's first edges were spent on the dial: look once without one.
        if relay.on_client(0):
            self._reactor.again(relay.on_client)

    def _relay_finished(self, ended: Callable[[], None] | None, relay: Relay) -> None:
        self._relays.discard(relay)
        self._reactor.forget(relay.client_sock.fileno())
        self._reactor.forget(relay.upstream_sock.fileno())
        self.record(relay.flow)
        if ended is not None:
            ended()

    # 6. Record

    def record(self, flow: Flow) -> None:
        flow.duration = time.monotonic() - flow.ticks
        if self._journal is not None:
            self._journal.write(flow)
        self._tally.add(flow)
        self._recent.add(flow)

    def under_way(self) -> tuple[int, int, int]:
        """(flows, bytes sent, bytes received) of what has begun and not ended."""
        sent = received = 0
        for relay in self._relays:
            out, back = relay.carried
            sent, received = sent + out, received + back
        return len(self._attempts) + len(self._relays), sent, received

    def sweep(self) -> None:
        """Once a second: let go of what has ended."""
        if self._attributor is not None:
            self._attributor.sweep()
        if self._door is not None:
            self._door.sweep()

    def stop(self) -> None:
        """The workload has ended: finish every flow and write its record."""
        self._reactor.turn()
        for attempt in list(self._attempts):
            self.abandon(attempt)
        for relay in list(self._relays):
            relay.stop()

    def close(self) -> None:
        if self._door is not None:
            self._door.close()
        self._pipes.close()
        self._judge.close()
        if self._attributor is not None:
            self._attributor.close()


def _not_yet(_events: int) -> bool:
    """For an upstream socket whose relay has not begun: its edges are looked at then."""
    return False


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)

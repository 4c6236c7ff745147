"""A flow's life.

::

    SYN on v0 ──tap──► who? ──► verdict ──allow──► dial ──connected──► SYN put back, marked ──► accept ──► relay
        │(nft drops it)             │                 │                                                   │
        └ again after 1 s: ignored  └deny: ICMP       └refused: RST, unreachable: ICMP                    └► record

The kernel completes the handshake only after the upstream has answered, so ``connect()`` in the program gives what
the real network would give. Where packet sockets are refused, and with ``--accept-first``, the order is the old one:
accept, then who, verdict, dial; a failure is then a reset.

Invariants: every flow has exactly one record; a connection that arrives at the listener without a held SYN (someone
forged the mark) is judged like any other, from its beginning; no socket outlives its flow.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from netns_graft.attribution import Attributor
from netns_graft.dialling import DialError
from netns_graft.flow import Attribution, Flow, Outcome, Process
from netns_graft.forwarder.attempt import Attempt
from netns_graft.forwarder.jobs import Jobs
from netns_graft.forwarder.reactor import Reactor
from netns_graft.forwarder.status import Recent
from netns_graft.forwarder.verdict import Judge, Ruling, packed
from netns_graft.journal import Journal, Tally
from netns_graft.linux.cable import Wiring
from netns_graft.relay import EVENTS, Pipes, Relay, reset_on_close
from netns_graft.wire import ProtocolError, packet
from netns_graft.wire.packet import Syn

HELD_LIMIT = 4096  # SYNs held at once; more wait for their retransmission
ANSWERED_LIMIT = 1024  # SYNs remembered after their answer
ACCEPT_GRACE = 10.0  # seconds for the program to complete a handshake that it began
_BURST = 64  # packets or connections taken per event
_FRAME = 66_000  # a SYN is some 90 bytes, but TCP Fast Open may put data into it
_DIRECT = "direct"

_OUTCOMES = {
    errno.ECONNREFUSED: Outcome.REFUSED,
    errno.ETIMEDOUT: Outcome.TIMEOUT,
    errno.ECONNRESET: Outcome.RESET,
}


class Forwarder:
    """One workload's flows, from the first packet to the record. Owns the sockets of ``wiring``."""

    def __init__(
        self,
        wiring: Wiring,
        *,
        workload: str,
        container_of: Callable[[Process | None], str | None] = lambda _process: None,
        judge: Judge,
        attributor: Attributor,
        journal: Journal | None,
        tally: Tally,
        recent: Recent,
        serve_dns: Callable[[Attempt, socket.socket], Coroutine[Any, Any, None]] | None,
        jobs: Jobs,
        reactor: Reactor,
    ) -> None:
        self._wiring = wiring
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
        self._pipes = Pipes()
        self._held: dict[Syn, Attempt] = {}
        self._answered: dict[Syn, tuple[int, int | None]] = {}  # sequence number; errno, None when let in
        self._accepted: set[Attempt] = set()
        self._relays: set[Relay] = set()
        self._count = 0
        self._run = os.urandom(4).hex()
        for sock in wiring.listeners:
            reactor.watch(sock.fileno(), EVENTS, partial(self._on_accept, sock))
        if wiring.tap_sock is not None:
            reactor.watch(wiring.tap_sock.fileno(), EVENTS, self._on_tap)

    # 1. SYN

    def _on_tap(self, _events: int) -> bool:
        assert self._wiring.tap_sock is not None
        frames = []
        for _ in range(_BURST):
            try:
                frames.append(self._wiring.tap_sock.recv(_FRAME))
            except OSError:
                break  # nothing left; or ENETDOWN: the cable is gone, and every flow with it
        arrived = time.monotonic()  # one moment for all of them: attribution shares its scans among them
        for frame in frames:
            self._on_syn(frame, arrived)
        return len(frames) == _BURST

    def _on_syn(self, frame: bytes, arrived: float) -> None:
        try:
            syn = packet.parse_syn(frame)
        except ProtocolError:
            return
        attempt, sequence = self._held.get(syn), packet.sequence(frame)
        before, number = self._answered.get(syn, (None, None))
        if before == sequence:
            if number is not None:
                self._send_refusal(frame, number)
            return
        if attempt is not None and attempt.sequence != sequence:
            # The program gave up and begins anew from the same port: a flow of its own.
            self._abandon(attempt)
            attempt = None
        if attempt is None:
            if len(self._held) < HELD_LIMIT:
                flow = self.new_flow("tcp", socket.IPPROTO_TCP, *syn, arrived=arrived)
                attempt = Attempt(flow, syn, frame, sequence=sequence)
                self._held[syn] = attempt
                self._decide(attempt)
        elif attempt.injected is not None:
            self._inject(attempt)  # the program asks again: ours was lost on the way

    # 2. Who

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
        flow.attribution = attribution or self._attributor.who(
            number, source, source_port, target, target_port, arrived
        )
        flow.container_id = self._container_of(flow.attribution.process)
        return flow

    # 3. Verdict

    def _decide(self, attempt: Attempt) -> None:
        flow, syn = attempt.flow, attempt.syn
        if self._serve_dns is not None and syn.target_port == 53:
            attempt.dns = True
            self._let_in(attempt)
            return
        ruling = self._judge.rule(flow, syn.target)
        if ruling is None:
            self._refuse(attempt, errno.EACCES, Outcome.DENIED, None)
        elif ruling.literal:
            self._dial_address(attempt)
        else:
            attempt.dialling = self._jobs.create_task(self._dial(attempt, ruling))

    # 4. Dial

    def _dial_address(self, attempt: Attempt) -> None:
        """Direct, to a literal address: no task, no name, the shortest way."""
        flow, syn = attempt.flow, attempt.syn
        flow.upstream = _DIRECT
        family = socket.AF_INET if len(syn.target) == 4 else socket.AF_INET6
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._refuse(attempt, errno.ENETUNREACH, Outcome.UPSTREAM_FAILED, error.strerror)
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        attempt.upstream_sock = sock
        code = sock.connect_ex((flow.destination_address, syn.target_port))
        if code not in (0, errno.EINPROGRESS):
            self._dial_failed(attempt, code)
            return
        self._reactor.watch(sock.fileno(), EVENTS, partial(self._on_dialled, attempt))

    def _on_dialled(self, attempt: Attempt, _events: int) -> bool:
        sock = attempt.upstream_sock
        if sock is None or attempt.injected is not None:
            return False
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._dial_failed(attempt, code)
            return False
        try:
            sock.getpeername()
        except OSError:
            return False  # a stale event; still connecting
        self._let_in(attempt)
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
        self._let_in(attempt)

    # 5. Answer

    def _refuse(self, attempt: Attempt, number: int, outcome: Outcome, error: str | None) -> None:
        """``number`` is the errno that the program's connect() shall give."""
        flow = attempt.flow
        flow.outcome, flow.error = outcome, error
        if attempt.frame is not None:
            self._held.pop(attempt.syn, None)
            self._remember(attempt, number)
            self._send_refusal(attempt.frame, number)
        self._drop(attempt)
        self.record(flow)

    def _send_refusal(self, frame: bytes, number: int) -> None:
        assert self._wiring.tap_sock is not None
        try:
            self._wiring.tap_sock.send(packet.refusal(frame, number))
        except OSError:
            pass  # the cable is gone, and the workload with it

    def _remember(self, attempt: Attempt, number: int | None) -> None:
        """A SYN may be sent again just before its answer comes, or because the answer was no use: an ICMP error that
        finds the program still inside connect() is only a hint to its kernel. That is no new flow.
        """
        self._answered[attempt.syn] = attempt.sequence, number
        if len(self._answered) > ANSWERED_LIMIT:
            del self._answered[next(iter(self._answered))]

    def _let_in(self, attempt: Attempt) -> None:
        """The upstream answered: now the program's handshake may complete."""
        if attempt.client_sock is not None:
            self._begin_relay(attempt, attempt.client_sock)
        else:
            attempt.injected = time.monotonic()
            self._inject(attempt)

    def _inject(self, attempt: Attempt) -> None:
        assert attempt.frame is not None and self._wiring.inject_sock is not None
        try:
            self._wiring.inject_sock.send(packet.marked(attempt.frame, self._wiring.mark))
        except OSError:
            pass  # a full queue: the program's own retransmission brings us here again

    def _on_accept(self, listener: socket.socket, _events: int) -> bool:
        for _ in range(_BURST):
            try:
                client_sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # Level would spin here; the edge is spent. Look again when some flow has ended.
                    asyncio.get_running_loop().call_later(0.1, self._reactor.again, partial(self._on_accept, listener))
                    return False
                raise
            client_sock.setblocking(False)
            name = client_sock.getsockname()
            syn = Syn(packed(peer[0]), peer[1], packed(name[0]), name[1])
            attempt = self._held.get(syn)
            if attempt is None or attempt.injected is None:
                self._accepted_first(syn, client_sock)
                continue
            del self._held[syn]
            self._remember(attempt, None)
            if attempt.dns:
                self._begin_dns(attempt, client_sock)
            else:
                self._begin_relay(attempt, client_sock)
        return True

    def _accepted_first(self, syn: Syn, client_sock: socket.socket) -> None:
        attempt = Attempt(self.new_flow("tcp", socket.IPPROTO_TCP, *syn), syn, client_sock=client_sock)
        self._accepted.add(attempt)
        if self._serve_dns is not None and syn.target_port == 53:
            self._begin_dns(attempt, client_sock)
            return
        self._reactor.watch(client_sock.fileno(), EVENTS, partial(self._on_waiting, attempt))
        self._decide(attempt)

    def _on_waiting(self, attempt: Attempt, events: int) -> bool:
        """A program that was accepted first and waits for its upstream: it may lose patience."""
        if events & (select.EPOLLERR | select.EPOLLHUP) and attempt in self._accepted:
            self._abandon(attempt)
        return False

    # 6. Relay

    def _begin_dns(self, attempt: Attempt, client_sock: socket.socket) -> None:
        assert self._serve_dns is not None
        self._accepted.discard(attempt)
        self._jobs.create_task(self._serve_dns(attempt, client_sock))

    def _begin_relay(self, attempt: Attempt, client_sock: socket.socket) -> None:
        self._accepted.discard(attempt)
        upstream_sock = attempt.upstream_sock
        assert upstream_sock is not None
        relay = Relay(attempt.flow, client_sock, upstream_sock, self._pipes, self._relay_finished)
        self._relays.add(relay)
        self._reactor.handlers[upstream_sock.fileno()] = relay.on_upstream
        if attempt.frame is None:
            self._reactor.handlers[client_sock.fileno()] = relay.on_client  # watched since it was accepted
        else:
            self._reactor.watch(client_sock.fileno(), EVENTS, relay.on_client)
        if attempt.early:
            relay.preload(attempt.early)
        # The upstream's first edges were spent on the dial: look once without one.
        if relay.on_client(0):
            self._reactor.again(relay.on_client)

    def _relay_finished(self, relay: Relay) -> None:
        self._relays.discard(relay)
        self._reactor.forget(relay.client_sock.fileno())
        self._reactor.forget(relay.upstream_sock.fileno())
        self.record(relay.flow)

    # 7. Record

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
        return len(self._held) + len(self._accepted) + len(self._relays), sent, received

    def _drop(self, attempt: Attempt) -> None:
        attempt.over = True
        self._accepted.discard(attempt)
        if attempt.dialling is not None and attempt.dialling is not asyncio.current_task():
            attempt.dialling.cancel()
        for sock in (attempt.upstream_sock, attempt.client_sock):
            if sock is not None:
                self._reactor.forget(sock.fileno())
                reset_on_close(sock)
                sock.close()
        attempt.upstream_sock = attempt.client_sock = None

    def sweep(self) -> None:
        """Once a second: give up handshakes that the program began and left."""
        self._attributor.sweep()
        limit = time.monotonic() - ACCEPT_GRACE
        for attempt in [held for held in self._held.values() if held.injected is not None and held.injected < limit]:
            self._abandon(attempt)

    def _abandon(self, attempt: Attempt) -> None:
        self._held.pop(attempt.syn, None)
        attempt.flow.outcome = Outcome.WORKLOAD_GONE
        self._drop(attempt)
        if not attempt.dns:
            self.record(attempt.flow)

    def stop(self) -> None:
        """The workload has ended: finish every flow and write its record."""
        self._reactor.turn()
        for attempt in [*self._held.values(), *self._accepted]:
            self._abandon(attempt)
        for relay in list(self._relays):
            relay.stop()

    def close(self) -> None:
        for sock in (*self._wiring.listeners, self._wiring.tap_sock, self._wiring.inject_sock):
            if sock is not None:
                self._reactor.forget(sock.fileno())
                sock.close()
        self._pipes.close()
        self._judge.close()
        self._attributor.close()


def _not_yet(_events: int) -> bool:
    """For an upstream socket whose relay has not begun: its edges are looked at then."""
    return False


def _text(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)

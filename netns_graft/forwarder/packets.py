"""The door of route mode: flows are packets on the workload's cable.

::

    SYN on v0 ──tap──► Forwarder.begin … let_in ──► SYN put back, marked ──► accept ──► Forwarder.enter
        │(nft drops it)                    refuse ──► RST or ICMP
        └ again after 1 s: ignored

The kernel completes the handshake only after the upstream has answered, so ``connect()`` in the program gives what
the real network would give. Where packet sockets are refused, and with ``--accept-first``, the order is the old one:
accept, then who, verdict, dial; a failure is then a reset.

Invariant: a connection that arrives at the listener without a held SYN (someone forged the mark) is judged like any
other, from its beginning.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from functools import partial

from netns_graft.attribution import AttributionMethod, Attributor
from netns_graft.attribution.sharing import Later
from netns_graft.flow import Flow
from netns_graft.forwarder.attempt import Attempt
from netns_graft.forwarder.core import Forwarder
from netns_graft.forwarder.life import end_everyone_in
from netns_graft.forwarder.names import Names
from netns_graft.forwarder.reactor import Reactor
from netns_graft.forwarder.verdict import packed
from netns_graft.linux.cable import Wiring
from netns_graft.linux.vantage import Vantage
from netns_graft.relay import EVENTS, reset_on_close
from netns_graft.wire import ProtocolError, packet
from netns_graft.wire.packet import Syn

HELD_LIMIT = 4096  # SYNs held at once; more wait for their retransmission
ANSWERED_LIMIT = 1024  # SYNs remembered after their answer
ACCEPT_GRACE = 10.0  # seconds for the program to complete a handshake that it began
_BURST = 64  # packets or connections taken per event
_FRAME = 66_000  # a SYN is some 90 bytes, but TCP Fast Open may put data into it


class ByPackets:
    """The ``Way`` of route mode. Owns ``wiring``."""

    mode = "route"

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._attributor: Attributor
        self.hold = wiring.tap_sock is not None
        self.workload_ns = os.fstat(wiring.workload_ns_fd).st_ino
        self.resolvers = wiring.resolvers

    def attributor(self, method: AttributionMethod, later: Later) -> Attributor:
        self._attributor = Attributor(Vantage(self._wiring.workload_ns_fd), method=method, later=later)
        return self._attributor

    def open(self, forwarder: Forwarder, _names: Names | None, reactor: Reactor) -> Packets:
        return Packets(self._wiring, forwarder, reactor)

    def started(self, pid: int) -> None:
        self._attributor.started(pid)

    def end_workload(self) -> None:
        end_everyone_in(self.workload_ns)


class Packets:
    """Owns the listeners and packet sockets of ``wiring``."""

    def __init__(self, wiring: Wiring, forwarder: Forwarder, reactor: Reactor) -> None:
        self._wiring = wiring
        self.forwarder = forwarder
        self.reactor = reactor
        self.held: dict[Syn, _Held] = {}
        self._answered: dict[Syn, tuple[int, int | None]] = {}  # sequence number; errno, None when let in
        for sock in wiring.listeners:
            reactor.watch(sock.fileno(), EVENTS, partial(self._on_accept, sock))
        if wiring.tap_sock is not None:
            reactor.watch(wiring.tap_sock.fileno(), EVENTS, self._on_tap)

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
        attempt, sequence = self.held.get(syn), packet.sequence(frame)
        before, number = self._answered.get(syn, (None, None))
        if before == sequence:
            if number is not None:
                self.send_refusal(frame, number)
            return
        if attempt is not None and attempt.sequence != sequence:
            # The program gave up and begins anew from the same port: a flow of its own.
            self.forwarder.abandon(attempt)
            attempt = None
        if attempt is None:
            if len(self.held) < HELD_LIMIT:
                flow = self.forwarder.new_flow("tcp", socket.IPPROTO_TCP, *syn, arrived=arrived)
                attempt = _Held(self, flow, syn, frame, sequence)
                self.held[syn] = attempt
                self.forwarder.begin(attempt)
        elif attempt.injected is not None:
            self.inject(attempt.frame)  # the program asks again: ours was lost on the way

    def _on_accept(self, listener: socket.socket, _events: int) -> bool:
        for _ in range(_BURST):
            try:
                client_sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # Level would spin here; the edge is spent. Look again when some flow has ended.
                    asyncio.get_running_loop().call_later(0.1, self.reactor.again, partial(self._on_accept, listener))
                    return False
                raise
            client_sock.setblocking(False)
            name = client_sock.getsockname()
            syn = Syn(packed(peer[0]), peer[1], packed(name[0]), name[1])
            attempt = self.held.get(syn)
            if attempt is None or attempt.injected is None:
                self._accepted_first(syn, client_sock)
                continue
            del self.held[syn]
            self.remember(attempt, None)
            self.forwarder.enter(attempt, client_sock)
        return True

    def _accepted_first(self, syn: Syn, client_sock: socket.socket) -> None:
        flow = self.forwarder.new_flow("tcp", socket.IPPROTO_TCP, *syn)
        attempt = _Accepted(self, flow, syn, client_sock)
        attempt.watched = True
        self.reactor.watch(client_sock.fileno(), EVENTS, partial(self._on_waiting, attempt))
        self.forwarder.begin(attempt)

    def _on_waiting(self, attempt: _Accepted, events: int) -> bool:
        """A program that was accepted first and waits for its upstream: it may lose patience."""
        if events & (select.EPOLLERR | select.EPOLLHUP) and not attempt.over and not attempt.entered:
            self.forwarder.abandon(attempt)
        return False

    def send_refusal(self, frame: bytes, number: int) -> None:
        assert self._wiring.tap_sock is not None
        try:
            self._wiring.tap_sock.send(packet.refusal(frame, number))
        except OSError:
            pass  # the cable is gone, and the workload with it

    def remember(self, attempt: _Held, number: int | None) -> None:
        """A SYN may be sent again just before its answer comes, or because the answer was no use: an ICMP error that
        finds the program still inside connect() is only a hint to its kernel. That is no new flow.
        """
        self._answered[attempt.ends] = attempt.sequence, number
        if len(self._answered) > ANSWERED_LIMIT:
            del self._answered[next(iter(self._answered))]

    def inject(self, frame: bytes) -> None:
        assert self._wiring.inject_sock is not None
        try:
            self._wiring.inject_sock.send(packet.marked(frame, self._wiring.mark))
        except OSError:
            pass  # a full queue: the program's own retransmission brings us here again

    def sweep(self) -> None:
        limit = time.monotonic() - ACCEPT_GRACE
        for attempt in [held for held in self.held.values() if held.injected is not None and held.injected < limit]:
            self.forwarder.abandon(attempt)

    def close(self) -> None:
        for sock in (*self._wiring.listeners, self._wiring.tap_sock, self._wiring.inject_sock):
            if sock is not None:
                self.reactor.forget(sock.fileno())
                sock.close()


class _Held(Attempt):
    """Its SYN is held. ``injected``: since when (monotonic seconds) the handshake may complete."""

    __slots__ = ("_packets", "frame", "injected", "sequence")

    def __init__(self, packets: Packets, flow: Flow, ends: Syn, frame: bytes, sequence: int) -> None:
        super().__init__(flow, ends)
        self._packets = packets
        self.frame = frame
        self.sequence = sequence
        self.injected: float | None = None

    def let_in(self) -> None:
        self.entered = True
        self.injected = time.monotonic()
        self._packets.inject(self.frame)

    def refuse(self, number: int) -> None:
        self._packets.remember(self, number)
        self._packets.send_refusal(self.frame, number)

    def drop(self) -> None:
        if self._packets.held.get(self.ends) is self:
            del self._packets.held[self.ends]


class _Accepted(Attempt):
    """Accepted before anybody was asked."""

    __slots__ = ("_client_sock", "_packets")

    def __init__(self, packets: Packets, flow: Flow, ends: Syn, client_sock: socket.socket) -> None:
        super().__init__(flow, ends)
        self._packets = packets
        self._client_sock = client_sock

    def let_in(self) -> None:
        self.entered = True
        self._packets.forwarder.enter(self, self._client_sock)

    def refuse(self, number: int) -> None:
        """All that is left to say is a reset."""

    def drop(self) -> None:
        if not self.entered:
            self._packets.reactor.forget(self._client_sock.fileno())
            reset_on_close(self._client_sock)
            self._client_sock.close()

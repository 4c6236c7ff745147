"""The door of ptrace mode: flows are system calls of traced programs.

::

    connect() ──tracer──► Network.on_call ──► connecting ──► Forwarder.begin … let_in ──► our end ──► Forwarder.enter
                                                                          refuse ──► its errno

The programs live in our own network namespace, so there is no cable and no SYN to hold: ``tracing`` keeps a program's
socket connecting, as the kernel knows it, until the upstream has answered, and then gives us the other end of it. It
also knows who calls, so nobody is looked up.

Invariant: nothing here ends or counts processes by network namespace, for that namespace is the host's. What is
traced ends with us (PTRACE_O_EXITKILL).
"""

from __future__ import annotations

import errno
import socket
import time
from functools import partial

from netns_graft.attribution import AttributionMethod
from netns_graft.attribution.portrait import Portraits
from netns_graft.attribution.sharing import Later
from netns_graft.errors import GraftError
from netns_graft.flow import Attribution, Flow, Outcome
from netns_graft.forwarder.attempt import Attempt
from netns_graft.forwarder.core import Forwarder
from netns_graft.forwarder.names import Names
from netns_graft.forwarder.reactor import Reactor
from netns_graft.lines import say
from netns_graft.linux import places, proc
from netns_graft.linux.routes import HostAddresses
from netns_graft.relay import EVENTS
from netns_graft.tracing.crossing import Rooms
from netns_graft.tracing.network import Connecting, Network, Question
from netns_graft.tracing.services import Services
from netns_graft.tracing.sockets import text
from netns_graft.tracing.tracer import Tracer
from netns_graft.wire.packet import Syn

_WARNINGS = 16  # lines on stderr, at most; who needs more has --flows
_MODE = "ptrace"


class ByCalls:
    """The ``Way`` of ptrace mode. ``ignore_local``: connections to the host's own addresses are not ours. ``own``: the
    directory of our sockets, to which the workload has no way.
    """

    mode = _MODE
    hold = True

    def __init__(self, *, ignore_local: bool, own: str | None) -> None:
        """GraftError: this network namespace is none where it could work."""
        try:
            Rooms().close()
        except OSError as error:
            raise GraftError(
                f"mode ptrace needs the loopback: {error.strerror}", hint="ip link set lo up"
            ) from None
        self._ignore_local = ignore_local
        self._own = own
        self._calls: Calls
        self.workload_ns = proc.own_network_namespace()
        self.resolvers: list[socket.socket] = []

    def attributor(self, _method: AttributionMethod, _later: Later) -> None:
        return None

    def open(self, forwarder: Forwarder, names: Names | None, reactor: Reactor) -> Calls:
        services = Services(places.NAME_SERVICES if names is not None else (), self._own)
        self._calls = Calls(forwarder, names, reactor, ignore_local=self._ignore_local, services=services)
        return self._calls

    def started(self, pid: int) -> None:
        self._calls.started(pid)

    def end_workload(self) -> None:
        """It ends with this process, whichever way that ends."""


class Calls:
    """What ``tracing`` tells of a workload's calls, made into flows: its ``Carrier``."""

    def __init__(
        self, forwarder: Forwarder, names: Names | None, reactor: Reactor, *, ignore_local: bool, services: Services
    ) -> None:
        self.forwarder = forwarder
        self._names = names
        self._reactor = reactor
        self._portraits = Portraits()
        self._warned = 0
        self._closed_to: set[tuple[bytes, int]] = set()
        self._host = HostAddresses()
        self.network = Network(
            self,
            dns=names is not None,
            ignore_local=ignore_local,
            owns=self._host.owns,
            watch=lambda fd, handler: reactor.watch(fd, EVENTS, handler),
            forget=reactor.forget,
            warn=self.warn,
            services=services,
        )
        self._tracer = Tracer(self.network.on_call, warn=self.warn)
        reactor.watch(self._tracer.fd(), EVENTS, self._tracer.turn)

    def started(self, pid: int) -> None:
        self._portraits.root_pid = pid
        try:
            self._tracer.seize(pid)
        except OSError as error:
            raise GraftError(f"cannot trace the command: {error.strerror} (ptrace)") from None

    # What Network tells

    def connecting(self, connecting: Connecting) -> None:
        ends = Syn(*connecting.source, connecting.target, connecting.port)
        flow = self._flow("tcp", socket.IPPROTO_TCP, ends, connecting.pid)
        self.forwarder.begin(_Called(self, flow, ends, connecting))

    def asked(self, question: Question) -> None:
        assert self._names is not None
        ends = Syn(*question.source, question.target, 53)
        flow = self._flow("dns", socket.IPPROTO_UDP, ends, question.pid)
        self._names.ask(flow, question.payload, question.reply)

    def closed(self, caller: int, source: tuple[bytes, int], target: bytes, port: int) -> None:
        """UDP that is no question for a name: there is no way out for it in this mode."""
        flow = self._flow("udp", socket.IPPROTO_UDP, Syn(*source, target, port), caller)
        flow.verdict, flow.outcome = "deny", Outcome.DENIED
        flow.error = "mode ptrace carries no UDP but DNS"
        self.forwarder.record(flow)
        if (target, port) not in self._closed_to and self._warned < _WARNINGS:
            self._closed_to.add((target, port))
            self.warn(f"UDP to {flow.destination_address} port {port} is closed: {flow.error}")

    def warn(self, text: str) -> None:
        """One line for whoever watches; a program that goes on and on is not repeated for ever."""
        self._warned += 1
        if self._warned <= _WARNINGS:
            say("warning", text)

    def _flow(self, protocol: str, number: int, ends: Syn, pid: int) -> Flow:
        begin = time.perf_counter_ns()
        process = self._portraits.take(pid, proc.effective_uid(pid))
        who = Attribution(process, _MODE, (time.perf_counter_ns() - begin) // 1000)
        return self.forwarder.new_flow(protocol, number, *ends, attribution=who)

    # What Forwarder asks of a door

    def sweep(self) -> None:
        """Nothing waits here without its program waiting as well."""

    def close(self) -> None:
        self._reactor.forget(self._tracer.fd())
        self._tracer.close()
        self.network.close()
        self._host.close()


class _Called(Attempt):
    """Its program is in connect(), or was told that it is under way."""

    __slots__ = ("_calls", "_connecting")

    def __init__(self, calls: Calls, flow: Flow, ends: Syn, connecting: Connecting) -> None:
        super().__init__(flow, ends)
        self._calls = calls
        self._connecting = connecting

    def let_in(self) -> None:
        self.entered = True
        client_sock = self._connecting.succeed()
        if client_sock is None:
            self._calls.forwarder.abandon(self)
            return
        # Where loopback is translated, the program's socket may have got another port on its way to us.
        host, self.flow.source_port = self._connecting.source
        self.flow.source_address = text(host)
        self.ended = partial(self._calls.network.ended, self._connecting.cookie)
        self._calls.forwarder.enter(self, client_sock)

    def refuse(self, number: int) -> None:
        self.entered = True
        self._connecting.fail(number)

    def drop(self) -> None:
        if not self.entered:
            self._connecting.fail(errno.ECONNABORTED)

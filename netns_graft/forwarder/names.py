"""DNS, whatever resolver address the program asked: UDP and TCP 53 in F, and loopback resolvers inside W.

UDP questions arrive on one socket for all addresses; packet info tells which address was asked and makes the answer
come from there, or the program would not take it. Every question is a flow of protocol "dns" with its process.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from netns_graft.dns.service import Answer, DnsService
from netns_graft.flow import Attribution, Flow, Outcome
from netns_graft.forwarder.jobs import Jobs
from netns_graft.forwarder.reactor import Reactor
from netns_graft.linux.cable import DNS_PORT
from netns_graft.relay import EVENTS

if TYPE_CHECKING:
    from netns_graft.forwarder.attempt import Attempt
    from netns_graft.forwarder.core import Forwarder

_BURST = 64
_DATAGRAM = 65535
_IDLE = 10.0  # seconds that a TCP connection may stay silent
_IP_PKTINFO = 8
_ANCILLARY = socket.CMSG_SPACE(20)


class Names:
    """Serves one workload's questions from ``service``; ``forwarder`` makes the flows and records them."""

    def __init__(self, service: DnsService, resolvers: list[socket.socket], jobs: Jobs) -> None:
        self._service = service
        self._resolvers = resolvers
        self._jobs = jobs
        self._forwarder: Forwarder

    def attach(self, forwarder: Forwarder, reactor: Reactor) -> None:
        self._forwarder = forwarder
        for sock in self._resolvers:
            handler = self._on_connection if sock.type == socket.SOCK_STREAM else self._on_datagram
            reactor.watch(sock.fileno(), EVENTS, partial(handler, sock))

    def close(self) -> None:
        for sock in self._resolvers:
            sock.close()
        self._service.close()

    def name_of(self, address: str) -> tuple[str, str] | None:
        """The name behind an address, and how it is known: "synthetic" or "dns"."""
        return self._service.name_of(address)

    def _on_datagram(self, sock: socket.socket, _events: int) -> bool:
        for _ in range(_BURST):
            try:
                data, ancillary, _flags, peer = sock.recvmsg(_DATAGRAM, _ANCILLARY)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                continue  # an ICMP error for an earlier answer: the program has left
            asked = _asked_address(sock, ancillary)
            if asked is None:
                continue
            source = _packed(sock.family, peer[0])
            flow = self._forwarder.new_flow("dns", socket.IPPROTO_UDP, source, peer[1], asked, DNS_PORT)
            self.ask(flow, data, partial(_reply, sock, peer, _answer_from(sock, asked)))
        return True

    def ask(self, flow: Flow, data: bytes, reply: Callable[[bytes], None]) -> None:
        """One datagram's question, now or as soon as a resolver has answered. ``reply`` may never be called."""
        answer = self._service.answer_now(data, udp=True)
        if answer is None:
            self._jobs.create_task(self._later(flow, data, reply))
            return
        self._finish(flow, len(data), answer)
        if answer.reply is not None:
            reply(answer.reply)

    async def _later(self, flow: Flow, data: bytes, reply: Callable[[bytes], None]) -> None:
        try:
            answer = await self._service.answer(data, udp=True)
        except asyncio.CancelledError:
            self._cut_short(flow, data)
            raise
        self._finish(flow, len(data), answer)
        if answer.reply is not None:
            reply(answer.reply)

    def _cut_short(self, flow: Flow, data: bytes) -> None:
        """The workload ended before its resolver had answered."""
        from netns_graft.wire.dns import parse_query  # loaded with the first question, not with us

        flow.host, flow.host_source = parse_query(data).name, "dns"
        flow.verdict, flow.outcome = "allow", Outcome.WORKLOAD_GONE
        flow.bytes_sent = len(data)
        self._forwarder.record(flow)

    def _finish(self, flow: Flow, sent: int, answer: Answer) -> None:
        flow.host = answer.name or None
        flow.host_source = "dns" if answer.name else None
        flow.verdict, flow.rule = ("allow" if answer.allowed else "deny"), answer.rule
        flow.upstream = answer.upstream
        flow.outcome, flow.error = answer.outcome, answer.error
        flow.bytes_sent = sent
        flow.bytes_received = len(answer.reply) if answer.reply else 0
        self._forwarder.record(flow)

    # TCP

    def _on_connection(self, listener: socket.socket, _events: int) -> bool:
        """A connection to a loopback resolver inside W."""
        for _ in range(_BURST):
            try:
                client_sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            client_sock.setblocking(False)
            family = client_sock.family
            own = _packed(family, client_sock.getsockname()[0])
            ends = (_packed(family, peer[0]), peer[1], own, DNS_PORT)
            flow = self._forwarder.new_flow("dns", socket.IPPROTO_TCP, *ends)
            self._jobs.create_task(self._converse(client_sock, ends, flow.attribution))
        return True

    async def serve_attempt(self, attempt: Attempt, client_sock: socket.socket) -> None:
        """A connection to port 53 of any address."""
        await self._converse(client_sock, attempt.ends, attempt.flow.attribution)

    async def _converse(
        self, client_sock: socket.socket, ends: tuple[bytes, int, bytes, int], who: Attribution | None
    ) -> None:
        """RFC 7766: questions with a two-byte length, until the program closes or falls silent."""
        loop = asyncio.get_running_loop()
        with client_sock:
            try:
                while True:
                    async with asyncio.timeout(_IDLE):
                        (length,) = struct.unpack("!H", await _exactly(loop, client_sock, 2))
                        data = await _exactly(loop, client_sock, length)
                    flow = self._forwarder.new_flow("dns", 0, *ends, attribution=who)
                    answer = self._service.answer_now(data, udp=False)
                    if answer is None:
                        try:
                            answer = await self._service.answer(data, udp=False)
                        except asyncio.CancelledError:
                            self._cut_short(flow, data)
                            raise
                    self._finish(flow, len(data), answer)
                    if answer.reply is None:
                        return
                    async with asyncio.timeout(_IDLE):
                        await loop.sock_sendall(client_sock, struct.pack("!H", len(answer.reply)) + answer.reply)
            except (OSError, EOFError, TimeoutError):
                return


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        part = await loop.sock_recv(sock, count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return parts


def _packed(family: int, address: str) -> bytes:
    return socket.inet_pton(family, address.partition("%")[0])


def _asked_address(sock: socket.socket, ancillary: list[tuple[int, int, bytes]]) -> bytes | None:
    """The packed address that a datagram was sent to: struct in_pktinfo or in6_pktinfo."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            return data[8:12]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return data[:16]
    return None


def _answer_from(sock: socket.socket, asked: bytes) -> tuple[int, int, bytes]:
    """The control message that gives an answer its source. Interface 0: the route decides."""
    if sock.family == socket.AF_INET:
        return socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=i", 0) + asked + bytes(4)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, asked + struct.pack("=I", 0)


def _reply(sock: socket.socket, peer: tuple[str, int], source: tuple[int, int, bytes], reply: bytes) -> None:
    try:
        sock.sendmsg([reply], [source], 0, peer)
    except OSError:
        pass  # the program asks again; a full buffer or a closed namespace is no news to anyone

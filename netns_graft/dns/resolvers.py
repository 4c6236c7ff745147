"""Asks the host's own resolvers, as the host's libc would: servers, order, timeouts and retries of
resolv.conf.

The query's bytes go out as they came, but for a fresh random ID, from a socket of their own whose port the
kernel picks at random: EDNS options and DNSSEC bits are the workload's and the resolver's business. Each
socket is connected, so the kernel drops what comes from elsewhere; what comes from the right address with
another ID or question is ignored too, and waiting goes on (RFC 5452). The same question asked twice at once
is sent once: it spares the resolver a client's retransmissions, and denies a forger the many open questions a
birthday attack needs.

Over libc: a server that did not answer stands last for half a minute, so that a dead first server costs its
timeout once and not with every name.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from netns_graft.flow import Outcome
from netns_graft.wire import dns as wire

from .by_proxy import Reach
from .followed import FollowedFile
from .resolv_conf import Nameserver, ResolvConf, asked_servers, parse_resolv_conf

_DISTRUST = 30.0  # seconds that a server which did not answer stands last
_MOST_SECONDS = 30.0  # for one question, whatever resolv.conf allows
_UDP_ROOM = 65535
_NEXT_SERVER = (wire.SERVFAIL, wire.NOTIMP, wire.REFUSED)  # on these libc asks the next one


@dataclass(slots=True, frozen=True)
class Resolved:
    """What came of asking: a reply under the *query's own* ID, from ``server``; or None, with outcome and
    error."""

    reply: bytes | None
    server: str
    outcome: Outcome
    error: str | None


class HostResolvers:
    """The host's resolvers: those of a resolv.conf (its path, re-read when it changes), or a fixed
    ``ResolvConf``. With ``reach`` they are asked by TCP alone, over the connections that it makes."""

    def __init__(self, source: str | ResolvConf = "/etc/resolv.conf", reach: Reach | None = None) -> None:
        self._reach = reach
        self._file = FollowedFile(source) if isinstance(source, str) else None
        self._conf = source if isinstance(source, ResolvConf) else ResolvConf(())
        self._distrusted: dict[Nameserver, float] = {}  # until when, in the loop's time
        self._turn = 0
        self._asked: dict[tuple[bytes, bool], asyncio.Task[Resolved]] = {}

    async def ask(self, query: bytes, question: wire.Question, *, udp: bool) -> Resolved:
        """The reply to ``query`` (whose parsed form ``question`` is). Never raises for what a resolver
        does."""
        key = (query[2:], udp)
        task = self._asked.get(key)
        if task is None:
            task = asyncio.create_task(self._ask_in_time(query, question, udp=udp), name="dns question")
            self._asked[key] = task
            task.add_done_callback(lambda _: self._asked.pop(key, None))
        try:
            resolved = await asyncio.shield(task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not task.cancelled() or (current is not None and current.cancelling()):
                raise
            return Resolved(None, "", Outcome.WORKLOAD_GONE, "the graft is being taken down")
        if resolved.reply is None:
            return resolved
        return replace(resolved, reply=query[:2] + resolved.reply[2:])

    def close(self) -> None:
        """Ends all questions under way; their sockets are closed when the loop next runs."""
        for task in self._asked.values():
            task.cancel()

    async def _ask_in_time(self, query: bytes, question: wire.Question, *, udp: bool) -> Resolved:
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                return await self._ask_servers(query, question, udp=udp)
        except TimeoutError:
            return Resolved(None, "", Outcome.TIMEOUT, f"no resolver answered within {_MOST_SECONDS:g} s")

    async def _ask_servers(self, query: bytes, question: wire.Question, *, udp: bool) -> Resolved:
        conf = self._current_conf()
        servers = self._in_order(conf)
        silent = servers
        unhelpful: Resolved | None = None
        failed = Resolved(None, "", Outcome.UPSTREAM_FAILED, "no resolver")
        for attempt in range(conf.attempts):
            # glibc doubles the wait with each round, and shares it among the servers from the second round
            # on.
            patience = conf.timeout * 2**attempt / (len(servers) if attempt else 1)
            asked, silent = silent, []
            for server in asked:
                label = server.label
                try:
                    async with asyncio.timeout(patience):
                        if self._reach is not None:
                            reply, label = await _ask_by(self._reach, server, query, question)
                        else:
                            reply = await (_ask_udp if udp else _ask_tcp)(server, query, question)
                except TimeoutError:
                    silent.append(server)
                    failed = Resolved(None, server.label, Outcome.TIMEOUT, f"{server.label} did not answer")
                except (OSError, EOFError) as error:
                    text = f"{server.label}: {_reason(error)}"
                    failed = Resolved(None, server.label, _outcome(error), text)
                else:
                    self._distrusted.pop(server, None)
                    rcode = wire.rcode_of(reply)
                    if rcode not in _NEXT_SERVER:
                        return Resolved(reply, label, Outcome.OK, None)
                    text = f"{server.label} answered {wire.rcode_text(rcode)}"
                    unhelpful = unhelpful or Resolved(reply, label, Outcome.UPSTREAM_FAILED, text)
                    continue
                self._distrusted[server] = asyncio.get_running_loop().time() + _DISTRUST
            if not silent:
                break
        return unhelpful or failed

    def _current_conf(self) -> ResolvConf:
        text = self._file.changed_text() if self._file else None
        if text is not None:
            self._conf = parse_resolv_conf(text)
            self._distrusted.clear()
        return self._conf

    def _in_order(self, conf: ResolvConf) -> Sequence[Nameserver]:
        servers = list(asked_servers(conf))
        if conf.rotate:
            first = self._turn % len(servers)
            servers = servers[first:] + servers[:first]
            self._turn += 1
        now = asyncio.get_running_loop().time()
        return sorted(servers, key=lambda server: self._distrusted.get(server, 0.0) > now)


async def _ask_udp(server: Nameserver, query: bytes, question: wire.Question) -> bytes:
    loop = asyncio.get_running_loop()
    family, address = _socket_address(server)
    query = os.urandom(2) + query[2:]
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)  # UDP: no packet, only the kernel's filter and a random port of our own
        await loop.sock_sendall(sock, query)
        while True:
            reply = await loop.sock_recv(sock, _UDP_ROOM)
            if wire.answers(reply, query, question):
                return reply


async def _ask_tcp(server: Nameserver, query: bytes, question: wire.Question) -> bytes:
    return await _converse(*await asyncio.open_connection(server.address, server.port), query, question)


async def _ask_by(reach: Reach, server: Nameserver, query: bytes, question: wire.Question) -> tuple[bytes, str]:
    """The reply, and who gave it by which upstream: "socks5://127.0.0.1:1080,1.1.1.1:53"."""
    sock, upstream = await reach(server)
    label = server.label if upstream == "direct" else f"{upstream},{server.label}"
    return await _converse(*await asyncio.open_connection(sock=sock), query, question), label


async def _converse(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, query: bytes, question: wire.Question
) -> bytes:
    query = os.urandom(2) + query[2:]
    try:
        writer.write(len(query).to_bytes(2, "big") + query)
        while True:
            length = int.from_bytes(await reader.readexactly(2), "big")
            reply = await reader.readexactly(length)
            if wire.answers(reply, query, question):
                return reply
    finally:
        writer.transport.abort()  # the reply is here or will not be wanted; nothing to linger for
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _socket_address(server: Nameserver) -> tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]:
    """What ``connect`` takes. Numeric only, no look-up: it is for "%eth0" to become an interface's index."""
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(server.address, server.port, type=socket.SOCK_DGRAM, flags=flags)
    except socket.gaierror as error:  # an interface that is gone
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL)) from error
    family, _, _, _, address = found[0]
    return family, address


def _outcome(error: Exception) -> Outcome:
    number = getattr(error, "errno", None)
    if number == errno.ECONNREFUSED:
        return Outcome.REFUSED
    if number in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
        return Outcome.UNREACHABLE
    return Outcome.UPSTREAM_FAILED


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "closed the connection without an answer"
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    return str(error)

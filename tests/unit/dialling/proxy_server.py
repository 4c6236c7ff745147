"""Real servers on loopback for these tests: a proxy of all kinds, a scripted peer, and a place to arrive at.

The proxy really connects and relays, so that chains can be built of several. What it says, and in which pieces, is
each test's own choice.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

from netns_graft.dialling import Credentials, DialError, Resolver, Target, Upstreams
from netns_graft.dialling.upstreams import Upstream
from netns_graft.dialling.url import parse_chain

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GREETING = b"220 here\r\n"


@asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port at which ``handler`` answers. Its connections end with the block, at whatever point they are."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=100)
    listener.setblocking(False)
    tasks: set[asyncio.Task[None]] = set()

    def accept() -> None:
        try:
            conn, _ = listener.accept()
        except BlockingIOError:
            return
        conn.setblocking(False)
        task = loop.create_task(_converse(handler, conn))
        tasks.add(task)
        task.add_done_callback(lambda _: conn.close())

    loop.add_reader(listener, accept)
    try:
        yield listener.getsockname()[1]
    finally:
        loop.remove_reader(listener)
        listener.close()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # an aborted transport is closed one turn later
        wrong = [error for error in results if isinstance(error, Exception)]
    if wrong:
        raise wrong[0]  # an assertion of the handler's, say


async def _converse(handler: Handler, conn: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=conn)
    try:
        await handler(reader, writer)
        writer.close()
        await writer.wait_closed()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.transport.abort()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The destination: greets first, as SMTP and SSH do, then sends back what comes."""
    writer.write(GREETING)
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def says(*pieces: bytes, after: int = 1, then_hang: bool = False) -> Handler:
    """A peer that waits for ``after`` reads, sends ``pieces`` one by one, and leaves or hangs."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(after):
            await reader.read(65536)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if then_hang:
            await reader.read()

    return handler


class Proxy:
    """SOCKS4a, SOCKS5 and CONNECT at one port. ``asked`` lists what it was asked for.

    ``login``: what it demands. ``names``: how it resolves. ``reply``: a SOCKS5 reply code, a SOCKS4 one or an HTTP
    status line instead of connecting. ``drip``: answers byte by byte. ``joined``: the answer and the destination's
    greeting in one segment. ``leads_to``: where it goes, whatever it is asked for.
    """

    def __init__(
        self,
        *,
        login: tuple[str, str] | None = None,
        names: Mapping[str, str] | None = None,
        reply: int | str | None = None,
        drip: bool = False,
        joined: bool = False,
        leads_to: tuple[str, int] | None = None,
    ) -> None:
        self.leads_to = leads_to
        self.login, self.names, self.reply, self.drip, self.joined = login, names or {}, reply, drip, joined
        self.asked: list[tuple[str, int]] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0

    @asynccontextmanager
    async def running(self, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
        async with serving(self._handle, host) as self.port:
            self.place = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
            yield self

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first = await reader.readexactly(1)
        protocol = {b"\5": self._socks5, b"\4": self._socks4}.get(first, self._http)
        asked = await protocol(first, reader, writer)
        if asked is None:
            return
        host, port, granted = asked
        self.asked.append((host, port))
        far = self.leads_to or (self.names.get(host, host), port)
        far_reader, far_writer = await asyncio.open_connection(*far)
        try:
            if self.joined:
                granted += await far_reader.readexactly(len(GREETING))
                writer.write(granted)
            else:
                await self._send(writer, granted)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            far_writer.close()

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        for piece in [data[i : i + 1] for i in range(len(data))] if self.drip else [data]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    async def _socks5(
        self, _: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int, bytes] | None:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        if self.login is None:
            await self._send(writer, b"\5\0")
        elif 2 not in methods:
            return await self._send(writer, b"\5\xff")
        else:
            await self._send(writer, b"\5\2")
            _, length = await reader.readexactly(2)
            username = await reader.readexactly(length)
            password = await reader.readexactly((await reader.readexactly(1))[0])
            right = (username.decode(), password.decode()) == self.login
            await self._send(writer, b"\1\0" if right else b"\1\1")
            if not right:
                return None
        kind = (await reader.readexactly(4))[3]
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            family, size = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, await reader.readexactly(size))
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        if self.reply is not None:
            self.asked.append((host, port))
            return await self._send(writer, bytes([5, int(self.reply), 0, 1, 0, 0, 0, 0, 0, 0]))
        return host, port, b"\5\0\0\3\4name\0\0"  # the longest kind of answer: bound to a name

    async def _socks4(
        self, _: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int, bytes] | None:
        command, port, address = struct.unpack("!BH4s", await reader.readexactly(7))
        assert command == 1
        username = (await reader.readuntil(b"\0"))[:-1].decode()
        host = socket.inet_ntoa(address)
        if host.startswith("0.0.0."):
            host = (await reader.readuntil(b"\0"))[:-1].decode()
        code = self.reply if self.reply is not None else 0x5A
        if self.login is not None and username != self.login[0]:
            code = 0x5D
        answer = bytes([0, int(code)]) + b"\0" * 6
        if code != 0x5A:
            return await self._send(writer, answer)
        return host, port, answer

    async def _http(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int, bytes] | None:
        request = first + await reader.readuntil(b"\r\n\r\n")
        self.requests.append(request)
        lines = request.decode().split("\r\n")
        method, authority, version = lines[0].split(" ")
        assert (method, version) == ("CONNECT", "HTTP/1.1")
        assert f"Host: {authority}" in lines
        host, _, port = authority.rpartition(":")
        if self.login is not None:
            token = base64.b64encode(":".join(self.login).encode()).decode()
            if f"Proxy-Authorization: Basic {token}" not in lines:
                answer = 'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n'
                return await self._send(writer, answer.encode())
        if self.reply is not None:
            self.asked.append((host.strip("[]"), int(port)))
            return await self._send(writer, f"HTTP/1.1 {self.reply}\r\n\r\nlook here".encode())
        return host.strip("[]"), int(port), b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes of a non-blocking socket, fewer at its end."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size and (piece := await loop.sock_recv(sock, size - len(data))):
        data += piece
    return data


def free_port(host: str = "127.0.0.1") -> int:
    """A port at which nobody answers, below those that the kernel hands out by itself (32768 and up)."""
    while True:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            try:
                sock.bind((host, random.randrange(20000, 32000)))
            except OSError:
                continue
            return int(sock.getsockname()[1])


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port of 127.0.0.1 whose queue is full: the kernel drops each further SYN, as a dead host would."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with socket.create_connection(address):
            extra = socket.socket()
            extra.setblocking(False)
            extra.connect_ex(address)
            with extra:
                yield address[1]


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def upstreams(
    *urls: str,
    names: Mapping[str, Sequence[str]] | None = None,
    credentials: Credentials | None = None,
    time_limit: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Upstreams]:
    """Upstreams as parsed from ``urls``, on a host whose resolver knows ``names`` and nothing else."""

    def look_up(host: str) -> Sequence[str]:
        if host not in (names or {}):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return (names or {})[host]

    made = Upstreams(
        [Upstream(parse_chain(url, credentials or Credentials())) for url in urls],
        resolver=Resolver(look_up=look_up),
        time_limit=time_limit,
        clock=clock,
    )
    try:
        yield made
    finally:
        made.close()


async def dial_error(made: Upstreams, target: Target, permits: Callable[[str], bool] = lambda _: True) -> DialError:
    """The error that a dial ends in, which leaves no descriptor behind on our side."""
    try:
        dialled = await made.dial(target, permits=permits)
    except DialError as error:
        return error
    dialled.sock.close()
    raise AssertionError(f"dialled {target} by {dialled.upstream}")

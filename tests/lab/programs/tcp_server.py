"""The far ends that no ready-made server offers: each port is one behaviour, and each ending is written down.

Usage: tcp_server.py EVENTS.jsonl NAME=PORT...

One line per connection that ended: ``{"port": NAME, "peer": ADDRESS, "received": BYTES, "end":
"eof"|"reset"|...}``. The names are the functions below.
"""

import asyncio
import hashlib
import json
import socket
import struct
import sys
import time
from typing import Any, TextIO


def reset(writer: asyncio.StreamWriter) -> None:
    """End with an RST: linger of zero seconds."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Behaviours:
    """What each port does with a connection: it returns how many bytes came."""

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Everything back, then our end too."""
        received = 0
        while data := await reader.read(1 << 16):
            received += len(data)
            writer.write(data)
            await writer.drain()
        return received

    async def hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Never a byte, never an end before the client's."""
        received = 0
        while data := await reader.read(1 << 16):
            received += len(data)
        return received

    async def reset_at_once(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        reset(writer)
        return 0

    async def reset_after_byte(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Greets, waits for one byte, and resets."""
        writer.write(b"ready\n")
        received = len(await reader.read(1))
        reset(writer)
        return received

    async def count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """The client closes its half first; then it is told what came."""
        digest, received = hashlib.sha256(), 0
        while data := await reader.read(1 << 18):
            digest.update(data)
            received += len(data)
        writer.write(f"{received} {digest.hexdigest()}\n".encode())
        await writer.drain()
        return received

    async def speak_then_listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """We close our half first, and go on reading."""
        writer.write(b"hello\n")
        writer.write_eof()
        return await self.hold(reader, writer)

    async def pairs(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """For each pair of bytes a pair of bytes, sent one by one with a pause that keeps them apart."""
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = 0
        try:
            while True:
                pair = await reader.readexactly(2)
                received += 2
                for byte in pair:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.001)
        except asyncio.IncompleteReadError:
            return received

    async def peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """Tells the client as whom it came."""
        writer.write(f"{writer.get_extra_info('peername')[0]}\n".encode())
        await writer.drain()
        return 0

    async def upload(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """HTTP: the answer to a PUT or POST is the body's length and SHA-256."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        if fields.get("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        left, digest = int(fields.get("content-length", "0")), hashlib.sha256()
        total = left
        while left:
            data = await reader.read(min(left, 1 << 18))
            if not data:
                break
            digest.update(data)
            left -= len(data)
        body = f"{total - left} {digest.hexdigest()}\n".encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        return total

    async def page(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """HTTP: one short page, which names the address that was asked."""
        head = await reader.readuntil(b"\r\n\r\n")
        body = f"hello from {writer.get_extra_info('sockname')[0]}\n".encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        return len(head)

    async def socks4a(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        """SOCKS4 and 4a with one user id that it knows: "graft". The names asked for are written down."""
        version, command, port = struct.unpack("!BBH", await reader.readexactly(4))
        address = await reader.readexactly(4)
        user = (await reader.readuntil(b"\0"))[:-1]
        host = socket.inet_ntoa(address)
        if address[:3] == b"\0\0\0" and address[3]:
            host = (await reader.readuntil(b"\0"))[:-1].decode("ascii")
        log(port="socks4a", asked=host)
        if version != 4 or command != 1 or user != b"graft":
            writer.write(b"\0\x5d" + bytes(6))
            return 0
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.write(b"\0\x5b" + bytes(6))
            return 0
        writer.write(b"\0\x5a" + bytes(6))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> int:
            moved = 0
            while data := await source.read(1 << 18):
                moved += len(data)
                sink.write(data)
                await sink.drain()
            sink.write_eof()
            return moved

        try:
            sent, _ = await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
            return sent
        finally:
            far_writer.close()


events: TextIO


def log(**fields: Any) -> None:
    events.write(json.dumps({"time": time.time(), **fields}) + "\n")


async def main(ports: list[str]) -> None:
    for item in ports:
        name, _, port = item.partition("=")
        behave = getattr(Behaviours(), name)

        async def serve(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name, behave: Any = behave
        ) -> None:
            received, end = -1, "eof"
            peer = writer.get_extra_info("peername")[0]
            try:
                received = await behave(reader, writer)
            except (ConnectionResetError, BrokenPipeError):
                end = "reset"
            except (ConnectionError, TimeoutError, asyncio.IncompleteReadError) as error:
                end = type(error).__name__
            finally:
                writer.close()
                log(port=name, peer=peer, received=received, end=end)

        host, _, number = port.rpartition("@")
        addresses = [host] if host else ["0.0.0.0", "::"]
        await asyncio.start_server(serve, addresses, int(number), limit=1 << 18, backlog=1024)
    await asyncio.Event().wait()


if __name__ == "__main__":
    events = open(sys.argv[1], "a", buffering=1)  # until the end of the process
    asyncio.run(main(sys.argv[2:]))

"""A DNS server on loopback that does what its test says, over UDP and TCP on one port."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self

import dns.message
import pytest

from netns_graft.dns.resolv_conf import Nameserver

Respond = Callable[[dns.message.Message, tuple[str, int]], "bytes | list[bytes] | None"]


async def both_protocols(datagrams: Any, streams: Any) -> tuple[Any, asyncio.Server, int]:
    """A UDP and a TCP server on one port of 127.0.0.1."""
    loop = asyncio.get_running_loop()
    while True:
        udp, _ = await loop.create_datagram_endpoint(datagrams, local_addr=("127.0.0.1", 0))
        port = udp.get_extra_info("sockname")[1]
        try:
            return udp, await asyncio.start_server(streams, "127.0.0.1", port, backlog=1024), port
        except OSError:
            udp.close()  # that port is somebody else's by TCP


class LoopbackServer(asyncio.DatagramProtocol):
    """``respond(question, asker's address)`` gives one message, several, or None: silence.

    ``asked`` has every question's bytes and the address it came from; ``split`` sends TCP replies byte by
    byte; ``hang_up`` closes TCP connections after so many bytes of the reply.
    """

    def __init__(self, respond: Respond, *, split: bool = False, hang_up: int | None = None) -> None:
        self.respond = respond
        self.split = split
        self.hang_up = hang_up
        self.asked: list[tuple[bytes, tuple[str, int]]] = []
        self.by_tcp = 0

    async def __aenter__(self) -> Self:
        self.udp, self.tcp, port = await both_protocols(lambda: self, self.converse)
        # Room for 500 questions in one go.
        self.udp.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.nameserver = Nameserver("127.0.0.1", port)
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.udp.close()
        self.tcp.close()
        await self.tcp.wait_closed()
        await asyncio.sleep(0)  # the UDP transport closes its descriptor in the next round

    def replies(self, data: bytes, address: tuple[str, int]) -> list[bytes]:
        self.asked.append((data, address))
        reply = self.respond(dns.message.from_wire(data), address)
        return reply if isinstance(reply, list) else [] if reply is None else [reply]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        for reply in self.replies(data, addr):
            self.udp.sendto(reply, addr)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.by_tcp += 1
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(2), "big")
                data = await reader.readexactly(length)
                for reply in self.replies(data, writer.get_extra_info("peername")[:2]):
                    packed = (len(reply).to_bytes(2, "big") + reply)[: self.hang_up]
                    for piece in [packed[i : i + 1] for i in range(len(packed))] if self.split else [packed]:
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)  # lets the piece go out alone
                if self.hang_up is not None:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
def loopback_server() -> type[LoopbackServer]:
    return LoopbackServer


@pytest.fixture(name="both_protocols")
def _both_protocols() -> Any:
    return both_protocols

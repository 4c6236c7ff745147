"""A name server for the lab: a zone from a JSON file, over UDP and TCP, that writes down every question.

Usage: dns_server.py ZONE.json QUESTIONS.jsonl ADDRESS...

The zone is ``{"example.com": {"A": ["93.184.216.34"], ...}, ...}``. An answer larger than what the client
takes over UDP is truncated, as a real server does it. A name that is not in the zone does not exist.
"""

import asyncio
import json
import sys
import time
from typing import Any, TextIO

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Zone = dict[str, dict[str, list[str]]]


def reply_to(question: dns.message.Message, zone: Zone) -> dns.message.Message:
    reply = dns.message.make_response(question, recursion_available=True)
    name = question.question[0].name
    kind = dns.rdatatype.to_text(question.question[0].rdtype)
    for _ in range(8):  # as long as CNAMEs lead on
        records = zone.get(name.to_text(omit_final_dot=True).lower())
        if records is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
            break
        alias = records.get("CNAME") if kind != "CNAME" else None
        found = alias or records.get(kind, [])
        if found:
            reply.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME" if alias else kind, *found))
        if not alias:
            break
        name = dns.name.from_text(alias[0])
    return reply


class Server:
    def __init__(self, zone: Zone, log: TextIO) -> None:
        self.zone = zone
        self.log = log

    def answer(self, wire: bytes, server: str, client: str, transport: str) -> bytes:
        question = dns.message.from_wire(wire)
        entry = {
            "time": time.time(), "server": server, "client": client, "transport": transport,
            "name": question.question[0].name.to_text(omit_final_dot=True),
            "type": dns.rdatatype.to_text(question.question[0].rdtype),
        }  # fmt: skip
        self.log.write(json.dumps(entry) + "\n")
        reply = reply_to(question, self.zone)
        if transport == "tcp":
            return reply.to_wire(max_size=65535)
        room = max(512, question.payload) if question.edns >= 0 else 512
        try:
            return reply.to_wire(max_size=room)
        except dns.exception.TooBig:
            short = dns.message.make_response(question, recursion_available=True)
            short.flags |= dns.flags.TC
            return short.to_wire()

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                wire = await reader.readexactly(size)
                server, client = writer.get_extra_info("sockname")[0], writer.get_extra_info("peername")[0]
                out = self.answer(wire, server, client, "tcp")
                writer.write(len(out).to_bytes(2, "big") + out)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: Server, address: str) -> None:
        self.server = server
        self.address = address

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(self.server.answer(data, self.address, addr[0], "udp"), addr)


async def main(zone: Zone, log: TextIO, addresses: list[str]) -> None:
    server = Server(zone, log)
    loop = asyncio.get_running_loop()
    for address in addresses:

        def made(address: str = address) -> Datagrams:
            return Datagrams(server, address)

        await loop.create_datagram_endpoint(made, local_addr=(address, 53))
        await asyncio.start_server(server.stream, address, 53)
    await asyncio.Event().wait()


if __name__ == "__main__":
    zone_path, log_path, *addresses = sys.argv[1:]
    with open(zone_path) as zone_file, open(log_path, "a", buffering=1) as log_file:
        asyncio.run(main(json.load(zone_file), log_file, addresses))

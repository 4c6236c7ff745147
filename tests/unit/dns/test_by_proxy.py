"""A resolver that is asked by TCP, through whatever the upstreams are."""

from __future__ import annotations

import asyncio
import socket

import dns.message
import dns.rrset
import pytest
from unit.dialling.proxy_server import Proxy, free_port

from netns_graft.dialling import parse_upstreams
from netns_graft.dns.by_proxy import reach_by
from netns_graft.dns.resolv_conf import Nameserver, ResolvConf
from netns_graft.dns.service import DnsService
from netns_graft.dns.synthetic import SyntheticPool
from netns_graft.flow import Outcome


def good(asked, _):
    reply = dns.message.make_response(asked)
    reply.answer.append(dns.rrset.from_text(asked.question[0].name, 60, "IN", "A", "192.0.2.1"))
    return reply.to_wire()


async def answer(server: Nameserver, *urls: str, udp: bool = True, patience: float = 5.0):
    upstreams = parse_upstreams(urls)
    conf = ResolvConf((server,), timeout=patience, attempts=1)
    service = DnsService("forward", SyntheticPool(), conf, "/nonexistent", reach=reach_by(upstreams))
    try:
        return await service.answer(dns.message.make_query("www.example.org", "A").to_wire(), udp=udp)
    finally:
        service.close()
        upstreams.close()


@pytest.mark.parametrize("udp", [True, False])
@pytest.mark.parametrize("kind", ["socks5", "socks5h", "http"])
def test_however_the_question_came_it_goes_by_tcp_through_the_proxy(loopback_server, kind, udp):
    async def run():
        proxy = Proxy()
        async with loopback_server(good) as server, proxy.running():
            got = await answer(server.nameserver, f"{kind}://{proxy.place}", udp=udp)
            assert dns.message.from_wire(got.reply).answer[0][0].address == "192.0.2.1"
            assert (got.outcome, got.upstream) == (
                Outcome.OK, f"{kind}://{proxy.place},{server.nameserver.label}",
            )  # fmt: skip
            assert server.by_tcp == len(server.asked) == 1

    asyncio.run(run())


def test_without_a_proxy_it_is_asked_by_tcp_all_the_same(loopback_server):
    async def run():
        async with loopback_server(good) as server:
            got = await answer(server.nameserver)
            assert (got.outcome, got.upstream, server.by_tcp) == (Outcome.OK, server.nameserver.label, 1)

    asyncio.run(run())


def test_a_dead_proxy_is_no_reason_to_ask_without_it(loopback_server):
    async def run():
        async with loopback_server(good) as server:
            got = await answer(server.nameserver, f"socks5://127.0.0.1:{free_port()}")
            assert (got.outcome, server.asked) == (Outcome.REFUSED, [])
            assert "connection refused" in got.error.lower()
            assert dns.message.from_wire(got.reply).rcode() == dns.rcode.SERVFAIL

    asyncio.run(run())


def test_a_proxy_that_says_nothing_is_waited_for_no_longer_than_the_resolver_would_be():
    async def run():
        with socket.create_server(("127.0.0.1", 0)) as silent:
            got = await answer(Nameserver("192.0.2.53"), f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.2)
            assert got.outcome is Outcome.TIMEOUT

    asyncio.run(run())


def test_a_resolver_by_name_is_the_proxys_to_find():
    async def run():
        proxy = Proxy(reply=4)
        async with proxy.running():
            await answer(Nameserver("dns.example.org"), f"socks5h://{proxy.place}")
            assert proxy.asked == [("dns.example.org", 53)]

    asyncio.run(run())

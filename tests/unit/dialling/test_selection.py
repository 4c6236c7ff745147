"""``--select-proxy-mode``: which proxies a flow may take, and which first."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from netns_graft.dialling import Target, parse_upstreams
from netns_graft.errors import UsageError

from .proxy_server import Proxy, echo, free_port, serving

SOCKS, SOCKS_H, SOCKS4, HTTP = "socks5://a:1", "socks5h://b:2", "socks4a://c:3", "http://d:4"
CHAIN = f"{SOCKS},{HTTP}"  # what the destination is asked of is an HTTP proxy


@pytest.mark.parametrize(
    ("mode", "given", "left"),
    [
        (None, [HTTP, SOCKS], [HTTP, SOCKS]),
        (None, [], ["direct"]),
        ("auto", [HTTP, SOCKS], [SOCKS, HTTP, "direct"]),
        ("auto", [HTTP, "direct", SOCKS4, SOCKS_H, CHAIN, SOCKS], [SOCKS_H, SOCKS, HTTP, SOCKS4, CHAIN, "direct"]),
        ("only_socks5", [HTTP, SOCKS, SOCKS4, SOCKS_H, CHAIN, "direct"], [SOCKS, SOCKS_H]),
        ("only_http_proxy", [HTTP, SOCKS, SOCKS4, SOCKS_H, CHAIN, "direct"], [HTTP, CHAIN]),
        ("random", [HTTP, SOCKS], [HTTP, SOCKS]),
        ("direct", [HTTP, SOCKS], ["direct"]),
        ("direct", [], ["direct"]),
    ],
)
def test_what_is_left_and_in_which_order(mode, given, left):
    made = parse_upstreams(given, select_mode=mode)
    assert made.labels == left
    assert made.is_direct == (left == ["direct"])


@pytest.mark.parametrize(
    ("mode", "given", "said"),
    [
        ("auto", [], "no proxy to select"),
        ("random", ["direct"], "no proxy to select"),
        ("only_socks5", [], "no proxy to select"),
        ("only_socks5", [HTTP, SOCKS4], "no --proxy is of that kind"),
        ("only_http_proxy", [SOCKS], "no --proxy is of that kind"),
    ],
)
def test_a_choice_of_nothing_is_refused(mode, given, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse_upstreams(given, select_mode=mode)
    assert caught.value.hint


def anything(_address: str) -> bool:
    return True


async def upstream_of(made, port: int) -> str:
    dialled = await made.dial(Target(port, "127.0.0.1"), permits=anything)
    dialled.sock.close()
    return dialled.upstream


def test_at_random_every_proxy_gets_flows() -> None:
    """Of 64 flows all by the same one of two: once in 10^19 runs."""

    async def main() -> None:
        first, second = Proxy(), Proxy()
        async with serving(echo) as port, first.running(), second.running():
            made = parse_upstreams([f"socks5://{first.place}", f"http://{second.place}"], select_mode="random")
            taken = Counter([await upstream_of(made, port) for _ in range(64)])
            assert set(taken) == {f"socks5://{first.place}", f"http://{second.place}"}
            made.close()

    asyncio.run(main())


def test_at_random_a_dead_proxy_costs_no_flow() -> None:
    async def main() -> None:
        good = Proxy()
        async with serving(echo) as port, good.running():
            made = parse_upstreams([f"socks5://127.0.0.1:{free_port()}", f"http://{good.place}"], select_mode="random")
            assert {await upstream_of(made, port) for _ in range(16)} == {f"http://{good.place}"}
            made.close()

    asyncio.run(main())


def test_in_auto_what_no_proxy_serves_goes_directly() -> None:
    async def main() -> None:
        async with serving(echo) as port:
            urls = [f"http://127.0.0.1:{free_port()}", f"socks5://127.0.0.1:{free_port()}"]
            made = parse_upstreams(urls, select_mode="auto")
            assert await upstream_of(made, port) == "direct"
            made.close()

    asyncio.run(main())

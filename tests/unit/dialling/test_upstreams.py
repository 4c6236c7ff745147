"""Upstreams end to end on loopback: every kind of proxy, chains, failover and recovery, names at the right end."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from netns_graft.dialling import Blame, Credentials, DialError, Dialled, Target, Upstreams, parse_upstreams
from netns_graft.dialling.upstreams import Upstream
from netns_graft.errors import ConfigError
from netns_graft.flow import Outcome

from .proxy_server import (
    GREETING,
    Proxy,
    deaf_port,
    descriptors,
    dial_error,
    echo,
    free_port,
    receive,
    says,
    serving,
    upstreams,
)

NAME = "server.test"
SCHEMES = ["socks5", "socks5h", "socks4a", "http"]


def anything(_: str) -> bool:
    return True


def nothing(_: str) -> bool:
    return False


async def converse(dialled: Dialled) -> None:
    """The way really leads to the destination, and nothing is lost or made up. Closes it."""
    with dialled.sock as sock:
        assert sock.gettimeout() == 0
        assert fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK
        assert fcntl.fcntl(sock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        rest = len(GREETING) - len(dialled.early)
        assert dialled.early + await receive(sock, rest) == GREETING
        await asyncio.get_running_loop().sock_sendall(sock, b"over")
        assert await receive(sock, 4) == b"over"
        sock.shutdown(socket.SHUT_WR)
        assert await receive(sock, 1) == b""


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- one proxy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drip", [False, True])
@pytest.mark.parametrize("to", ["127.0.0.1", "::1", NAME])
@pytest.mark.parametrize("login", ["right", "wrong", "missing", "none wanted"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_kind_of_proxy(scheme: str, login: str, to: str, drip: bool) -> None:
    userinfo = {"right": "u:p@", "wrong": "u:x@"}.get(login, "")
    if scheme == "socks4a":  # knows a user only
        userinfo = {"right": "u@", "wrong": "x@"}.get(login, "")

    async def main() -> None:
        wanted = None if login == "none wanted" else ("u", "p")
        target_host = "::1" if to == "::1" else "127.0.0.1"
        proxy = Proxy(login=wanted, names={NAME: "127.0.0.1"}, drip=drip)
        async with serving(echo, target_host) as port, proxy.running():
            target = Target(port, None, NAME) if to == NAME else Target(port, to)
            label = f"{scheme}://{proxy.place}"
            with upstreams(f"{scheme}://{userinfo}{proxy.place}", names={NAME: ["127.0.0.1"]}) as made:
                if scheme == "socks4a" and to == "::1":
                    error = await dial_error(made, target)
                    assert (error.outcome, error.errno) == (Outcome.UNREACHABLE, errno.ENETUNREACH)
                elif login in ("wrong", "missing"):
                    error = await dial_error(made, target)
                    assert (error.outcome, error.errno) == (Outcome.UPSTREAM_AUTH, errno.ECONNREFUSED)
                    assert str(error).startswith(f"{label}: ")
                    assert proxy.asked == []
                else:
                    dialled = await made.dial(target, permits=anything)
                    assert dialled.upstream == label
                    here = scheme == "socks5" and to == NAME
                    assert dialled.resolved == ("127.0.0.1" if here else None)
                    assert proxy.asked == [("127.0.0.1" if here else to, port)]
                    await converse(dialled)

    asyncio.run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_answer_joined_with_the_greeting_loses_no_byte(scheme: str) -> None:
    async def main() -> None:
        proxy = Proxy(joined=True)
        async with serving(echo) as port, proxy.running():
            with upstreams(f"{scheme}://{proxy.place}") as made:
                await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))

    asyncio.run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_proxy_at_an_ipv6_address_and_by_name(scheme: str) -> None:
    async def main() -> None:
        proxy = Proxy()
        async with serving(echo) as port, proxy.running("::1"):
            by_name = f"{scheme}://proxy.test:{proxy.port}"
            for url in (f"{scheme}://{proxy.place}", by_name):
                with upstreams(url, names={"proxy.test": ["127.0.0.1", "::1"]}) as made:
                    dialled = await made.dial(Target(port, "127.0.0.1"), permits=nothing)
                    assert dialled.upstream == url
                    await converse(dialled)

    asyncio.run(main())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_proxy_that_is_not_there(scheme: str) -> None:
    async def main() -> None:
        with upstreams(f"{scheme}://127.0.0.1:{free_port()}") as made:
            error = await dial_error(made, Target(80, "192.0.2.1"))
            assert (error.outcome, error.errno) == (Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED)
            assert error.blame is Blame.PROXY
        with upstreams(f"{scheme}://nowhere.test:1") as made:
            error = await dial_error(made, Target(80, "192.0.2.1"))
            assert (error.outcome, error.errno) == (Outcome.UPSTREAM_FAILED, errno.EHOSTUNREACH)
            assert "cannot resolve nowhere.test" in str(error)

    asyncio.run(main())


def test_credentials_from_elsewhere_than_the_url() -> None:
    async def main() -> None:
        proxy = Proxy(login=("anna", "pässword"))
        async with serving(echo) as port, proxy.running():
            known = Credentials.from_environment(
                {"NETNS_GRAFT_PROXY_USERNAME": "anna", "NETNS_GRAFT_PROXY_PASSWORD": "pässword"}
            )
            made = parse_upstreams([f"http://{proxy.place}"], known)
            dialled = await made.dial(Target(port, "127.0.0.1"), permits=anything)
            assert "anna" not in dialled.upstream
            assert "anna" not in repr(made)
            await converse(dialled)
            made.close()

    asyncio.run(main())


# --- direct, and names on the host ------------------------------------------------------------------------------


def test_direct() -> None:
    async def main() -> None:
        async with serving(echo) as port:
            with upstreams("direct", names={NAME: ["127.0.0.1"]}) as made:
                dialled = await made.dial(Target(port, "127.0.0.1", NAME), permits=nothing)
                assert (dialled.upstream, dialled.resolved) == ("direct", None)
                await converse(dialled)
                dialled = await made.dial(Target(port, None, NAME), permits=anything)
                assert (dialled.upstream, dialled.resolved) == ("direct", "127.0.0.1")
                await converse(dialled)
                error = await dial_error(made, Target(free_port(), "127.0.0.1"))
                assert (error.outcome, error.errno) == (Outcome.REFUSED, errno.ECONNREFUSED)
                assert error.upstream == "direct"
                error = await dial_error(made, Target(port, None, "nowhere.test"))
                assert (error.outcome, error.errno) == (Outcome.UNREACHABLE, errno.EHOSTUNREACH)

    asyncio.run(main())


@pytest.mark.parametrize("url", ["direct", "socks5"])
def test_only_permitted_addresses_of_a_name_are_dialled(url: str) -> None:
    async def main() -> None:
        proxy = Proxy()
        async with serving(echo, "127.0.0.2") as port, proxy.running():
            with upstreams(
                "direct" if url == "direct" else f"socks5://{proxy.place}",
                names={NAME: ["127.0.0.1", "127.0.0.2"], "inside.test": ["127.0.0.1", "169.254.169.254"]},
            ) as made:
                asked: list[str] = []

                def only_two(address: str) -> bool:
                    asked.append(address)
                    return address == "127.0.0.2"

                dialled = await made.dial(Target(port, None, NAME), permits=only_two)
                assert (dialled.resolved, asked) == ("127.0.0.2", ["127.0.0.1", "127.0.0.2"])
                await converse(dialled)
                error = await dial_error(made, Target(port, None, "inside.test"), only_two)
                assert (error.outcome, error.errno) == (Outcome.DENIED, errno.EACCES)
                assert "127.0.0.1, 169.254.169.254" in str(error)
                assert proxy.asked in ([], [("127.0.0.2", port)])

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["direct", *SCHEMES])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "::1", "localhost", "x.localhost"])
def test_an_address_dressed_up_as_a_name_is_judged_as_the_address(scheme: str, host: str) -> None:
    async def main() -> None:
        proxy = Proxy()
        async with proxy.running():
            url = scheme if scheme == "direct" else f"{scheme}://{proxy.place}"
            with upstreams(url, names={"localhost": ["127.0.0.1"], "x.localhost": ["::1"]}) as made:
                error = await dial_error(made, Target(1, None, host), nothing)
                assert error.outcome is Outcome.DENIED
                assert proxy.connections == 0

    asyncio.run(main())


@pytest.mark.parametrize("scheme", ["direct", *SCHEMES])
@pytest.mark.parametrize("host", ["", "a b", "a\0b", "a\r\nX: y", "a:1", "ä.test", "x" * 64, ".".join(["x" * 60] * 5)])
def test_a_name_that_is_none_reaches_nobody(scheme: str, host: str) -> None:
    async def main() -> None:
        proxy = Proxy()
        async with proxy.running():
            with upstreams(scheme if scheme == "direct" else f"{scheme}://{proxy.place}") as made:
                error = await dial_error(made, Target(1, None, host))
                assert (error.outcome, error.errno) == (Outcome.UNREACHABLE, errno.EHOSTUNREACH)
                assert str(error).isprintable()
                assert proxy.connections == 0

    asyncio.run(main())


@pytest.mark.parametrize("listening", ["127.0.0.1", "::1"])
def test_the_host_by_the_name_that_containers_know_it_by(listening: str) -> None:
    async def main() -> None:
        async with serving(echo, listening) as port:
            target = Target(port, None, "host.containers.internal")
            with upstreams("direct") as made:
                for permits in (anything, listening.__eq__):
                    dialled = await made.dial(target, permits=permits)
                    assert dialled.resolved == listening
                    await converse(dialled)
                assert (await dial_error(made, target, nothing)).outcome is Outcome.DENIED
                error = await dial_error(made, target, listening.__ne__)
                assert error.outcome is Outcome.REFUSED  # the other loopback, where nobody listens

    asyncio.run(main())


def test_a_proxy_without_names_is_given_one_address_after_the_other() -> None:
    async def main() -> None:
        proxy = Proxy()
        async with serving(echo) as port, proxy.running():
            closed = free_port()
            assert closed != port
            refusing = Proxy(reply=4)
            async with refusing.running():
                names = {NAME: [f"127.0.0.{last}" for last in range(2, 9)]}
                with upstreams(f"socks5://{refusing.place}", names=names) as made:
                    error = await dial_error(made, Target(port, None, NAME))
                    assert (error.outcome, error.errno) == (Outcome.UNREACHABLE, errno.EHOSTUNREACH)
                    assert [host for host, _ in refusing.asked] == names[NAME][:4]

    asyncio.run(main())


# --- chains ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds", [("socks5", "http", "socks4a"), ("http", "socks4a", "socks5h"), ("socks4a", "socks5h", "http")]
)
@pytest.mark.parametrize("drip", [False, True])
def test_a_chain_of_three_kinds(kinds: tuple[str, str, str], drip: bool) -> None:
    async def main() -> None:
        # Only each proxy itself can resolve the name of the next one.
        proxies = [Proxy(names={NAME: "127.0.0.1", "next.test": "127.0.0.1"}, drip=drip) for _ in kinds]
        async with AsyncExitStack() as stack:
            port = await stack.enter_async_context(serving(echo))
            for proxy in proxies:
                await stack.enter_async_context(proxy.running())
            first, second, third = proxies
            hosts = ["127.0.0.1", "127.0.0.1" if kinds[0] == "socks5" else "next.test", "next.test"]
            hops = [f"{kind}://{host}:{proxy.port}" for kind, host, proxy in zip(kinds, hosts, proxies, strict=True)]
            with upstreams(",".join(hops)) as made:
                assert made.takes_names
                dialled = await made.dial(Target(port, None, NAME), permits=nothing)
                assert dialled.upstream == ",".join(hops)
                await converse(dialled)
            assert first.asked == [(hosts[1], second.port)]
            assert second.asked == [(hosts[2], third.port)]
            assert third.asked == [(NAME, port)]

    asyncio.run(main())


def test_a_later_proxy_is_resolved_here_for_one_that_takes_no_names() -> None:
    async def main() -> None:
        first, second = Proxy(), Proxy()
        async with serving(echo) as port, first.running(), second.running():
            chain = f"socks5://{first.place},http://second.test:{second.port}"
            with upstreams(chain, names={"second.test": ["127.0.0.2", "127.0.0.1"]}) as made:
                await made.check()
                # Nobody is at 127.0.0.2 (the first proxy just hangs up), and that is not the end.
                error = await dial_error(made, Target(port, "127.0.0.1"))
                assert error.outcome is Outcome.UPSTREAM_FAILED
            with upstreams(chain, names={"second.test": ["127.0.0.1"]}) as made:
                await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))
                assert first.asked[-1] == ("127.0.0.1", second.port)

    asyncio.run(main())


@pytest.mark.parametrize("kind", SCHEMES)
def test_a_later_proxy_that_is_not_there_is_an_upstream_that_failed(kind: str) -> None:
    async def main() -> None:
        refusing = Proxy(reply={"socks4a": 0x5B, "http": "502 Bad Gateway"}.get(kind, 5))
        async with refusing.running():
            with upstreams(f"{kind}://{refusing.place},http://127.0.0.1:1") as made:
                error = await dial_error(made, Target(80, "192.0.2.1"))
                assert (error.outcome, error.blame) == (Outcome.UPSTREAM_FAILED, Blame.PROXY)
                assert str(error).startswith(f"http://127.0.0.1:1 not reached: {kind}://{refusing.place}: it says")

    asyncio.run(main())


def test_a_later_proxy_that_refuses_our_credentials() -> None:
    async def main() -> None:
        first, second = Proxy(), Proxy(login=("u", "p"))
        async with first.running(), second.running():
            with upstreams(f"socks5://{first.place},http://u:x@{second.place},socks5://127.0.0.1:1") as made:
                error = await dial_error(made, Target(80, "192.0.2.1"))
                assert (error.outcome, error.blame) == (Outcome.UPSTREAM_AUTH, Blame.PROXY)

    asyncio.run(main())


def test_a_later_proxy_that_speaks_first_breaks_the_protocol() -> None:
    async def main() -> None:
        async with serving(says(b"HTTP/1.1 200 OK\r\n\r\nHello!", then_hang=True)) as port:
            with upstreams(f"http://127.0.0.1:{port},socks5://127.0.0.1:1") as made:
                error = await dial_error(made, Target(80, "192.0.2.1"))
                assert error.outcome is Outcome.UPSTREAM_FAILED
                assert "speaks before it is asked" in str(error)

    asyncio.run(main())


# --- failover -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def two(bad: Proxy, good: Proxy) -> AsyncIterator[int]:
    async with serving(echo) as port, bad.running(), good.running():
        yield port


@pytest.mark.parametrize(
    ("dead", "text"),
    [
        ("socks5h://127.0.0.1:{closed}", "connection refused"),
        ("socks5h://nowhere.test:1", "cannot resolve"),
        ("http://127.0.0.1:{mute}", "no answer within"),
        ("socks5h://127.0.0.1:{mute}", "no answer within"),
        ("http://127.0.0.1:{babble}", "not HTTP"),
        ("socks5h://127.0.0.1:{babble}", "does not speak SOCKS5"),
        ("socks4a://127.0.0.1:{babble}", "does not speak SOCKS4"),
        ("socks5h://u:wrong@{locked}", "refused the user name"),
        ("socks5h://{locked}", "none is given"),
        ("http://u:wrong@{locked}", "407"),
        ("socks5h://{locked_out},http://127.0.0.1:1", "not reached"),
    ],
)
def test_a_proxy_that_fails_is_passed_over(dead: str, text: str) -> None:
    async def main() -> None:
        locked, locked_out, good = Proxy(login=("u", "p")), Proxy(reply=5), Proxy()
        async with (
            serving(echo) as port,
            serving(says(after=0, then_hang=True)) as mute,
            serving(says(b"no such luck\r\n\r\n")) as babble,
            locked.running(),
            locked_out.running(),
            good.running(),
        ):
            url = dead.format(
                closed=free_port(), mute=mute, babble=babble, locked=locked.place, locked_out=locked_out.place
            )
            clock = Clock()
            with upstreams(url, f"socks5://{good.place}", time_limit=0.3, clock=clock) as made:
                for _ in range(2):
                    dialled = await made.dial(Target(port, "127.0.0.1"), permits=anything)
                    assert dialled.upstream == f"socks5://{good.place}"
                    await converse(dialled)
            with upstreams(url, time_limit=0.3) as made:
                assert text in str(await dial_error(made, Target(port, "127.0.0.1")))

    asyncio.run(main())


@pytest.mark.parametrize("kind", SCHEMES)
def test_what_is_the_targets_fault_is_final(kind: str) -> None:
    async def main() -> None:
        refusing, good = Proxy(reply={"socks4a": 0x5B, "http": "403 No"}.get(kind, 5)), Proxy()
        async with two(refusing, good) as port:
            with upstreams(f"{kind}://{refusing.place}", f"socks5://{good.place}") as made:
                for _ in range(2):
                    assert (await dial_error(made, Target(port, "127.0.0.1"))).blame is Blame.TARGET
            assert (refusing.connections, good.connections) == (2, 0)

    asyncio.run(main())


def test_a_general_failure_is_no_reason_to_leave_a_proxy_alone() -> None:
    async def main() -> None:
        failing, good = Proxy(reply=1), Proxy()
        async with two(failing, good) as port:
            with upstreams(f"socks5://{failing.place}", f"socks5://{good.place}") as made:
                for _ in range(2):
                    await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))
            assert (failing.connections, good.connections) == (2, 2)

    asyncio.run(main())


def test_a_dead_proxy_is_left_alone_for_longer_and_longer_and_comes_back() -> None:
    async def main() -> None:
        clock, broken, good = Clock(), Proxy(login=("u", "p")), Proxy()
        async with two(broken, good) as port:
            with upstreams(f"http://{broken.place}", f"socks5://{good.place}", clock=clock) as made:

                async def tried() -> bool:
                    before = broken.connections
                    await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))
                    return broken.connections > before

                for pause in (1, 2, 4, 8, 16, 30, 30):
                    assert await tried()
                    assert not await tried()
                    clock.now += pause - 0.01
                    assert not await tried()
                    clock.now += 0.02
                broken.login = None
                assert await tried()
                assert await tried()  # it works again, and is the preferred one
                broken.login = ("u", "p")
                assert await tried()
                assert not await tried()
                clock.now += 1.01  # a new trouble starts anew
                assert await tried()

    asyncio.run(main())


def test_one_flow_at_a_time_tries_a_dead_proxy_again() -> None:
    async def main() -> None:
        clock, good = Clock(), Proxy()
        async with serving(says(after=0, then_hang=True)) as mute, serving(echo) as port, good.running():
            with upstreams(f"http://127.0.0.1:{mute}", f"socks5://{good.place}", clock=clock, time_limit=0.3) as made:
                await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))
                clock.now += 1.01
                arrived: list[str] = []

                async def flow(name: str) -> None:
                    await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))
                    arrived.append(name)

                await asyncio.gather(flow("tries again"), flow("goes on"), flow("goes on"))
                assert arrived == ["goes on", "goes on", "tries again"]

    asyncio.run(main())


def test_many_flows_that_fail_together_are_one_failure() -> None:
    upstream = Upstream(())
    upstream.failed(10.0, 11.0)
    upstream.failed(10.5, 11.5)
    assert (upstream.pause, upstream.retry_at) == (1.0, 12.0)
    upstream.failed(12.0, 13.0)
    assert (upstream.pause, upstream.retry_at) == (2.0, 15.0)


def test_when_all_are_down_they_are_tried_anyway_and_the_error_tells_of_each() -> None:
    async def main() -> None:
        proxy = Proxy(login=("u", "p"))
        async with serving(echo) as port, proxy.running():
            dead = f"socks5h://127.0.0.1:{free_port()}"
            with upstreams(dead, f"http://{proxy.place}", clock=Clock()) as made:
                for _ in range(2):
                    error = await dial_error(made, Target(port, "127.0.0.1"))
                    assert error.outcome is Outcome.UPSTREAM_AUTH
                    assert error.upstream == f"http://{proxy.place}"
                    assert str(error).startswith(f"{dead}: connect to ")
                    assert f"; http://{proxy.place}: " in str(error)
                assert proxy.connections == 2
                proxy.login = None
                await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))

    asyncio.run(main())


def test_direct_as_the_last_resort_and_as_the_first_choice() -> None:
    async def main() -> None:
        good = Proxy(names={NAME: "127.0.0.1"})
        async with serving(echo) as port, good.running():
            with upstreams(f"http://127.0.0.1:{free_port()}", "direct") as made:
                assert not made.takes_names
                assert not made.is_direct
                dialled = await made.dial(Target(port, "127.0.0.1"), permits=anything)
                assert dialled.upstream == "direct"
                await converse(dialled)
            with upstreams("direct", f"http://{good.place}") as made:
                dialled = await made.dial(Target(port, None, NAME), permits=nothing)
                assert dialled.upstream == f"http://{good.place}"
                await converse(dialled)
                error = await dial_error(made, Target(free_port(), "127.0.0.1"))
                assert error.outcome is Outcome.REFUSED

    asyncio.run(main())


def test_a_direct_dial_into_the_void_gives_way_to_the_next_upstream() -> None:
    async def main() -> None:
        async with serving(echo) as port, Proxy(leads_to=("127.0.0.1", port)).running() as good:
            with deaf_port() as deaf, upstreams("direct", f"http://{good.place}", time_limit=0.2) as made:
                dialled = await made.dial(Target(deaf, "127.0.0.1"), permits=anything)
                assert dialled.upstream == f"http://{good.place}"
                await converse(dialled)

    asyncio.run(main())


def test_a_denial_here_says_nothing_of_a_proxy_that_is_down() -> None:
    async def main() -> None:
        clock, broken, good = Clock(), Proxy(login=("u", "p")), Proxy()
        async with two(broken, good) as port:
            urls = (f"socks5://{broken.place}", f"socks5://{good.place}")
            with upstreams(*urls, names={NAME: ["127.0.0.1"]}, clock=clock) as made:
                await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))
                clock.now += 1.01
                assert (await dial_error(made, Target(port, None, NAME), nothing)).outcome is Outcome.DENIED
                await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))
                assert broken.connections == 1

    asyncio.run(main())


def test_many_at_once() -> None:
    async def main() -> None:
        first, second = Proxy(login=("u", "p"), joined=True), Proxy(drip=True)
        async with serving(echo) as port, first.running(), second.running():
            with upstreams(f"http://{second.place},socks5://u:p@{first.place}") as made:

                async def flow() -> None:
                    await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))

                await asyncio.gather(*(flow() for _ in range(64)))
            assert (first.connections, second.connections) == (64, 64)

    asyncio.run(main())


def test_a_name_that_policy_denies_here_is_not_smuggled_through_the_next_upstream() -> None:
    async def main() -> None:
        good = Proxy(names={NAME: "127.0.0.1"})
        async with serving(echo) as port, good.running():
            with upstreams("direct", f"http://{good.place}", names={NAME: ["127.0.0.1"]}) as made:
                assert (await dial_error(made, Target(port, None, NAME), nothing)).outcome is Outcome.DENIED
            assert good.connections == 0

    asyncio.run(main())


# --- the whole ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("urls", "direct", "names"),
    [
        ([], True, False),
        (["direct"], True, False),
        (["socks5h://a"], False, True),
        (["socks5://a"], False, False),
        (["socks5://a,socks4a://b"], False, True),
        (["http://a,socks5://b"], False, False),
        (["http://a", "socks4a://b"], False, True),
        (["http://a", "direct"], False, False),
        (["direct", "direct"], False, False),
    ],
)
def test_what_the_forwarder_asks_beforehand(urls: list[str], direct: bool, names: bool) -> None:
    made = parse_upstreams(urls, Credentials())
    assert (made.is_direct, made.takes_names) == (direct, names)


def test_check_names_the_proxy_that_does_not_resolve() -> None:
    async def main() -> None:
        names = {"a.test": ["127.0.0.1"]}
        for fine in ("direct", "socks5://127.0.0.1:1", "socks5h://a.test,http://only-a-knows.test"):
            with upstreams(fine, names=names) as made:
                await made.check()
        for wrong in ("http://missing.test", "socks5h://u:s3cr3t@missing.test", "socks5://a.test,http://missing.test"):
            with upstreams("direct", wrong, names=names) as made:
                with pytest.raises(ConfigError, match=r"^--proxy: cannot resolve the proxy 'missing.test': ") as caught:
                    await made.check()
                assert "s3cr3t" not in str(caught.value)

    asyncio.run(main())


def test_the_addresses_of_a_proxy_are_kept_until_it_fails_or_they_are_old() -> None:
    async def main() -> None:
        proxy, clock = Proxy(), Clock()
        async with serving(echo) as port, proxy.running():
            names = {"proxy.test": ["127.0.0.1"]}
            with upstreams(f"http://proxy.test:{proxy.port}", names=names, clock=clock) as made:

                async def works() -> bool:
                    try:
                        await converse(await made.dial(Target(port, "127.0.0.1"), permits=anything))
                    except DialError:
                        return False
                    return True

                assert await works()
                names["proxy.test"] = ["127.0.0.9"]  # where nobody is
                assert await works()
                clock.now += 31
                assert not await works()
                names["proxy.test"] = ["127.0.0.1"]
                assert await works()

    asyncio.run(main())


@pytest.mark.parametrize("turns", range(0, 60, 3))
def test_cancelled_at_whatever_turn_of_a_chain_nothing_stays_open(turns: int) -> None:
    async def main() -> None:
        before = len(descriptors())
        first, second = Proxy(login=("u", "p")), Proxy()
        async with serving(echo) as port, first.running(), second.running():
            with upstreams(f"socks5h://u:p@{first.place},http://{second.place},socks4a://{second.place}") as made:
                dial = asyncio.create_task(made.dial(Target(port, "127.0.0.1"), permits=anything))
                for _ in range(turns):
                    await asyncio.sleep(0)
                dial.cancel()
                try:
                    (await dial).sock.close()
                except asyncio.CancelledError:
                    pass
        assert len(descriptors()) == before

    asyncio.run(main())


# --- proxies that others wrote --------------------------------------------------------------------------------


@asynccontextmanager
async def program(port: int, *command: str) -> AsyncIterator[None]:
    """A server of somebody else's, once it listens at ``port``."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            while True:
                with socket.socket() as sock:
                    if sock.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.returncode is None, command
                await asyncio.sleep(0.01)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def tinyproxy(port: int, folder: Path) -> tuple[str, ...]:
    config = folder / "tinyproxy.conf"
    config.write_text(f"Port {port}\nListen 127.0.0.1\nBasicAuth u p\nTimeout 10\nMaxClients 20\n")
    return ("tinyproxy", "-d", "-c", str(config))


def danted(port: int, folder: Path) -> tuple[str, ...]:
    config = folder / "danted.conf"
    config.write_text(
        f"internal: 127.0.0.1 port = {port}\nexternal: lo\nclientmethod: none\nsocksmethod: none\n"
        + "client pass { from: 0/0 to: 0/0 }\nsocks pass { from: 0/0 to: 0/0 }\n"
    )
    return ("danted", "-f", str(config))


def microsocks(port: int, folder: Path) -> tuple[str, ...]:
    return ("microsocks", "-i", "127.0.0.1", "-p", str(port), "-u", "u", "-P", "p")


@pytest.mark.parametrize(
    ("server", "scheme", "locked"),
    [
        (microsocks, "socks5", True),
        (microsocks, "socks5h", True),
        (tinyproxy, "http", True),
        (danted, "socks5", False),
        (danted, "socks5h", False),
        (danted, "socks4a", False),
    ],
)
def test_proxies_that_others_wrote(
    server: Callable[[int, Path], tuple[str, ...]], scheme: str, locked: bool, tmp_path: Path
) -> None:
    proxy_port = free_port()
    command = server(proxy_port, tmp_path)
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")

    async def main() -> None:
        names = {NAME: ["127.0.0.1"]}
        login = "u:p@" if locked else ""
        async with serving(echo) as port, program(proxy_port, *command):
            with upstreams(f"{scheme}://{login}127.0.0.1:{proxy_port}", names=names) as made:
                host = NAME if scheme == "socks5" else "localhost"
                targets = [Target(port, "127.0.0.1"), Target(port, None, host)]
                if scheme == "socks4a":
                    targets.pop()  # dante knows SOCKS4 only, and takes 0.0.0.1 for the address it is to dial
                for target in targets:
                    await converse(await made.dial(target, permits=anything))
                error = await dial_error(made, Target(free_port(), "127.0.0.1"))
                # Only SOCKS5 has words for it.
                refused = scheme in ("socks5", "socks5h")
                assert error.outcome is (Outcome.REFUSED if refused else Outcome.UPSTREAM_FAILED)
                assert error.blame is Blame.TARGET
            if locked:
                for wrong in ("u:x@", ""):
                    with upstreams(f"{scheme}://{wrong}127.0.0.1:{proxy_port}", names=names) as made:
                        assert (await dial_error(made, Target(port, "127.0.0.1"))).outcome is Outcome.UPSTREAM_AUTH

    asyncio.run(main())


def test_the_type_that_the_forwarder_gets() -> None:
    assert isinstance(parse_upstreams([]), Upstreams)

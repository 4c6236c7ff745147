"""Names to addresses: the host's own getaddrinfo, in threads that can hang without harm."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netns_graft.dialling.resolver import Resolver, getaddrinfo, resolve


@contextmanager
def resolver(**options: object) -> Iterator[Resolver]:
    made = Resolver(**options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def resolver_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "netns-graft-resolver"]


def test_the_hosts_own_resolver_gives_each_address_once() -> None:
    addresses = asyncio.run(resolve("localhost"))
    assert "127.0.0.1" in addresses or "::1" in addresses
    assert len(set(addresses)) == len(addresses)
    assert addresses == getaddrinfo("localhost")


@pytest.mark.parametrize(("host", "address"), [("127.1", "127.0.0.1"), ("::1", "::1"), ("::ffff:10.0.0.1", "10.0.0.1")])
def test_a_literal_needs_no_thread(host: str, address: str) -> None:
    with resolver(look_up=lambda _: ["never"]) as own:
        assert asyncio.run(own.resolve(host)) == [address]


@pytest.mark.parametrize("host", ["", "a b", "a\0b", "ä.example", "x" * 64, "a..b"])
def test_what_is_no_name_is_not_put_before_the_resolver(host: str) -> None:
    with resolver(look_up=lambda _: ["never"]) as own, pytest.raises(socket.gaierror):
        asyncio.run(own.resolve(host))


def test_an_ipv4_address_in_ipv6_clothes_is_given_as_what_it_is() -> None:
    assert getaddrinfo("::ffff:10.0.0.1") == ["10.0.0.1"]


def test_the_reserved_name_that_never_exists() -> None:
    with pytest.raises(socket.gaierror):
        asyncio.run(resolve("nowhere.invalid"))


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("odd"), ValueError("odd")])
def test_whatever_goes_wrong_is_an_oserror(error: Exception) -> None:
    def look_up(_: str) -> list[str]:
        raise error

    with resolver(look_up=look_up) as own, pytest.raises(socket.gaierror, match=r"unknown|odd"):
        asyncio.run(own.resolve("x"))


def test_no_address_is_an_error() -> None:
    with resolver(look_up=lambda _: []) as own, pytest.raises(socket.gaierror, match="no address"):
        asyncio.run(own.resolve("x"))


def test_a_resolver_that_hangs_holds_neither_the_loop_nor_more_than_its_threads() -> None:
    hang, asked = threading.Event(), []

    def look_up(host: str) -> list[str]:
        asked.append(host)
        hang.wait(30)
        return ["192.0.2.1"]

    async def main() -> None:
        with resolver(look_up=look_up, threads=2, time_limit=0.2) as own:
            answers = await asyncio.gather(
                *(own.resolve(f"host{number}") for number in range(5)), return_exceptions=True
            )
            assert [type(answer) for answer in answers] == [TimeoutError] * 5
            assert sorted(asked) == ["host0", "host1"]
            hang.set()
            assert await own.resolve("after") == ["192.0.2.1"]
            # Nobody waited any longer for the other three, so nobody was asked about them.
            assert sorted(asked) == ["after", "host0", "host1"]

    asyncio.run(main())


def test_many_at_once_share_the_threads() -> None:
    before = len(resolver_threads())
    seen: list[int] = []

    def look_up(host: str) -> list[str]:
        seen.append(len(resolver_threads()) - before)
        return [host.removeprefix("host")]

    async def main() -> list[list[str]]:
        with resolver(look_up=look_up, threads=3) as own:
            return await asyncio.gather(*(own.resolve(f"host{number}") for number in range(50)))

    assert asyncio.run(main()) == [[str(number)] for number in range(50)]
    assert max(seen) <= 3


def test_threads_go_when_closed_and_when_idle() -> None:
    with resolver(look_up=lambda _: ["192.0.2.1"]) as own:
        before = set(resolver_threads())
        asyncio.run(own.resolve("x"))
        (thread,) = set(resolver_threads()) - before
    thread.join(5)
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(own.resolve("x"))
    with resolver(look_up=lambda _: ["192.0.2.1"], idle_limit=0.001) as idle:
        for _ in range(3):
            before = set(resolver_threads())
            assert asyncio.run(idle.resolve("x")) == ["192.0.2.1"]
            for thread in set(resolver_threads()) - before:
                thread.join(5)
                assert not thread.is_alive()


def test_a_cancelled_question_is_let_go() -> None:
    hang = threading.Event()

    def look_up(_: str) -> list[str]:
        hang.wait(30)
        return ["192.0.2.1"]

    async def main() -> None:
        with resolver(look_up=look_up, threads=1) as own:
            first = asyncio.create_task(own.resolve("x"))
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            hang.set()
            assert await own.resolve("y") == ["192.0.2.1"]

    asyncio.run(main())


def test_it_works_on_after_a_fork() -> None:
    with resolver(look_up=lambda _: ["192.0.2.1"]) as own:
        asyncio.run(own.resolve("x"))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = 0 if asyncio.run(own.resolve("x")) == ["192.0.2.1"] else 1
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0


def test_a_process_ends_though_its_resolver_hangs() -> None:
    program = """
import asyncio, threading
from netns_graft.dialling.resolver import Resolver
own = Resolver(look_up=lambda host: threading.Event().wait() or [], time_limit=0.01)
try:
    asyncio.run(own.resolve("x"))
except TimeoutError:
    print("in time")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert (run.returncode, run.stdout, run.stderr) == (0, "in time\n", "")

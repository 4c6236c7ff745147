"""Connections on loopback: the kernel's errno as it is, several addresses as a race, and no descriptor left."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import socket
import time

import pytest

from netns_graft.dialling import tcp
from netns_graft.dialling.outcome import Blame, DialError, connect_error
from netns_graft.flow import Outcome

from .proxy_server import deaf_port, descriptors, echo, free_port, receive, serving


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_connection_is_what_the_forwarder_needs(host: str) -> None:
    async def main() -> None:
        async with serving(echo, host) as port:
            sock = await tcp.connect(host, port)
            with sock:
                assert sock.gettimeout() == 0
                assert fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK
                assert fcntl.fcntl(sock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert await receive(sock, 3) == b"220"

    asyncio.run(main())


def test_a_closed_port_is_refused_at_once() -> None:
    with pytest.raises(DialError, match=r"connect to 127\.0\.0\.1:\d+: connection refused") as caught:
        asyncio.run(tcp.connect("127.0.0.1", free_port()))
    assert (caught.value.outcome, caught.value.errno) == (Outcome.REFUSED, errno.ECONNREFUSED)
    assert caught.value.blame is Blame.TARGET


@pytest.mark.parametrize(
    ("number", "outcome", "told"),
    [
        (errno.ECONNREFUSED, Outcome.REFUSED, errno.ECONNREFUSED),
        (errno.ETIMEDOUT, Outcome.TIMEOUT, errno.ETIMEDOUT),
        (errno.ENETUNREACH, Outcome.UNREACHABLE, errno.ENETUNREACH),
        (errno.EHOSTUNREACH, Outcome.UNREACHABLE, errno.EHOSTUNREACH),
        (errno.EAFNOSUPPORT, Outcome.UNREACHABLE, errno.ENETUNREACH),
        (errno.EPERM, Outcome.UNREACHABLE, errno.EACCES),
        (errno.EMFILE, Outcome.UNREACHABLE, errno.EHOSTUNREACH),
    ],
)
def test_what_each_errno_means(number: int, outcome: Outcome, told: int) -> None:
    error = connect_error(OSError(number, "x"), "a:1")
    assert (error.outcome, error.errno) == (outcome, told)


@pytest.mark.parametrize("address", ["255.255.255.255", "ff02::1"])
def test_where_no_connection_can_lead(address: str) -> None:
    with pytest.raises(DialError) as caught:
        asyncio.run(tcp.connect_any([address], 9, time_limit=5))
    assert (caught.value.outcome, caught.value.errno) == (Outcome.UNREACHABLE, errno.ENETUNREACH)
    assert caught.value.blame is Blame.WAY


def test_a_time_limit() -> None:
    async def main(port: int) -> None:
        with pytest.raises(DialError, match=r"no answer within 0.05 s") as caught:
            await tcp.connect_any(["127.0.0.1"], port, time_limit=0.05)
        assert (caught.value.outcome, caught.value.errno) == (Outcome.TIMEOUT, errno.ETIMEDOUT)
        with pytest.raises(DialError) as caught:
            await tcp.connect_proxy(["127.0.0.1"], port, time_limit=0.05)
        assert (caught.value.outcome, caught.value.errno) == (Outcome.UPSTREAM_FAILED, errno.ETIMEDOUT)
        assert caught.value.blame is Blame.PROXY

    with deaf_port() as port:
        asyncio.run(main(port))


def test_a_refused_address_starts_the_next_at_once() -> None:
    async def main() -> None:
        async with serving(echo, "127.0.0.2") as port:
            began = time.monotonic()
            sock, address = await tcp.connect_any(["127.0.0.1", "::1", "127.0.0.2"], port, head_start=30)
            sock.close()
            assert address == "127.0.0.2"
            assert time.monotonic() - began < 15

    asyncio.run(main())


def test_a_deaf_address_has_a_head_start_and_no_more() -> None:
    async def main(port: int) -> None:
        async with asyncio.timeout(30):
            listener = socket.create_server(("127.0.0.2", port))
            with listener:
                before = descriptors()
                began = time.monotonic()
                sock, address = await tcp.connect_any(["127.0.0.1", "127.0.0.2"], port, head_start=0.05)
                took = time.monotonic() - began
                sock.close()
                assert address == "127.0.0.2"
                assert took >= 0.05
                assert descriptors() == before

    with deaf_port() as port:
        asyncio.run(main(port))


def test_a_race_that_all_lose_tells_most_of_what_happened() -> None:
    port = free_port()
    with pytest.raises(DialError, match="refused"):
        asyncio.run(tcp.connect_any(["255.255.255.255", "127.0.0.1", "ff02::1"], port))


def test_the_first_to_answer_wins_and_the_others_are_closed() -> None:
    async def main() -> None:
        async with serving(echo, "127.0.0.1") as port:
            before = descriptors()
            sock, address = await tcp.connect_any(["127.0.0.1"] * 5, port, head_start=0)
            assert address == "127.0.0.1"
            assert len(descriptors() - before) - 1 <= 5  # the server's ends of the losers may still be there
            assert await receive(sock, 3) == b"220"
            sock.close()

    asyncio.run(main())


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.1", "127.0.0.1"]])
@pytest.mark.parametrize("turns", range(6))
def test_cancelled_at_whatever_turn_of_the_loop_nothing_stays_open(addresses: list[str], turns: int) -> None:
    async def main(port: int) -> None:
        before = descriptors()
        dial = asyncio.create_task(tcp.connect_any(addresses, port, head_start=0))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not dial.done()
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial
        assert descriptors() == before

    with deaf_port() as port:
        asyncio.run(main(port))


@pytest.mark.parametrize("turns", range(12))
def test_cancelled_while_it_succeeds_the_socket_is_closed_or_handed_over(turns: int) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            before = descriptors()
            dial = asyncio.create_task(tcp.connect_any(["127.0.0.1"] * 3, listener.getsockname()[1], head_start=0))
            for _ in range(turns):
                await asyncio.sleep(0)
            dial.cancel()
            try:
                sock, _ = await dial
                sock.close()
            except asyncio.CancelledError:
                pass
            assert descriptors() == before

    asyncio.run(main())


def test_no_descriptor_left_to_open_is_an_error_like_any_other() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            with pytest.raises(DialError, match="too many open files"):
                await tcp.connect("127.0.0.1", 9)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    asyncio.run(main())


def test_a_socket_that_met_itself_is_told_from_one_that_met_somebody() -> None:
    with socket.socket() as alone:
        alone.bind(("127.0.0.1", 0))
        alone.connect(alone.getsockname())
        assert tcp._met_itself(alone)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as paired:
            assert not tcp._met_itself(paired)
        assert not tcp._met_itself(listener)  # nobody at the other end at all

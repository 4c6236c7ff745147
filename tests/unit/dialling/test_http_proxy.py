"""CONNECT on a socket: what each status means, credentials on the wire, and the bytes that come early."""

from __future__ import annotations

import asyncio
import errno

import pytest

from netns_graft.dialling import Blame, DialError, Target
from netns_graft.flow import Outcome

from .proxy_server import Handler, descriptors, dial_error, receive, says, serving, upstreams

TARGET = Target(443, None, "example.com")


def error_of(handler: Handler, url: str = "http://127.0.0.1:{port}", time_limit: float = 30.0) -> DialError:
    async def main() -> DialError:
        async with serving(handler) as port:
            with upstreams(url.format(port=port), time_limit=time_limit) as made:
                return await dial_error(made, TARGET)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "outcome", "number", "blame"),
    [
        ("403 Filtered", Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
        ("404 Not Found", Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
        ("502 Bad Gateway", Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
        ("504 Gateway Timeout", Outcome.TIMEOUT, errno.ETIMEDOUT, Blame.TARGET),
        ("302 Found", Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
        ("401 Unauthorized", Outcome.UPSTREAM_AUTH, errno.ECONNREFUSED, Blame.PROXY),
        ("407 Who are you", Outcome.UPSTREAM_AUTH, errno.ECONNREFUSED, Blame.PROXY),
    ],
)
def test_refusals(status: str, outcome: Outcome, number: int, blame: Blame) -> None:
    error = error_of(says(f"HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nnope".encode()))
    assert (error.outcome, error.errno, error.blame) == (outcome, number, blame)
    assert f"it says: {status}" in str(error)


def test_a_proxy_that_echoes_our_password_does_not_get_it_into_the_record() -> None:
    error = error_of(says(b"HTTP/1.1 407 s3cr3t is wrong\r\n\r\n"), "http://u:s3cr3t@127.0.0.1:{port}")
    assert str(error).endswith("it says: 407 *** is wrong")


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/2.0 200 OK\r\n\r\n", b"\5\xff", b"HTTP/1.1 200 OK\r\nA: " + b"a" * 20_000],
)
def test_what_breaks_the_protocol(said: bytes) -> None:
    error = error_of(says(said))
    assert (error.outcome, error.errno, error.blame) == (
        Outcome.UPSTREAM_FAILED,
        errno.ECONNREFUSED,
        Blame.PROXY,
    )


@pytest.mark.parametrize("said", [(), (b"HTTP/1.1 200 OK\r\n",), (b"HTTP/1.1 100 Continue\r\n\r\n",)])
def test_a_proxy_that_hangs(said: tuple[bytes, ...]) -> None:
    error = error_of(says(*said, then_hang=True), time_limit=0.05)
    assert (error.outcome, error.errno, error.blame) == (
        Outcome.UPSTREAM_FAILED,
        errno.ETIMEDOUT,
        Blame.PROXY,
    )


def test_a_proxy_that_resets() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.transport.abort()  # with unread bytes: the kernel sends RST

    error = error_of(talk)
    assert (error.outcome, error.blame) == (Outcome.UPSTREAM_FAILED, Blame.PROXY)


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-x\r\n",),
        tuple(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-x\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"Late: header\r\n", b"\r\nSSH-", b"2.0-x\r\n"),
        (b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r", b"\nSSH-2.0-x\r\n"),
    ],
)
def test_early_bytes_and_what_follows_are_the_destinations_stream(pieces: tuple[bytes, ...]) -> None:
    async def main() -> None:
        async with serving(says(*pieces)) as port:
            with upstreams(f"http://127.0.0.1:{port}") as made:
                dialled = await made.dial(TARGET, permits=lambda _: True)
                with dialled.sock:
                    rest = await receive(dialled.sock, 100)
                    assert dialled.early + rest == b"SSH-2.0-x\r\n"

    asyncio.run(main())


def test_cancelled_while_the_proxy_is_silent_nothing_stays_open() -> None:
    async def main() -> None:
        arrived = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            arrived.set()
            await reader.read()

        before = len(descriptors())
        async with serving(talk) as port:
            with upstreams(f"http://127.0.0.1:{port}") as made:
                dial = asyncio.create_task(made.dial(TARGET, permits=lambda _: True))
                await arrived.wait()
                dial.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await dial
        assert len(descriptors()) == before

    asyncio.run(main())

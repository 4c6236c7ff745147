"""SOCKS handshakes to the byte: what each answer means, however it is cut, and that no byte too many is read."""

from __future__ import annotations

import asyncio
import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_graft.dialling import Blame, DialError, Target
from netns_graft.flow import Outcome

from .proxy_server import Handler, descriptors, dial_error, receive, says, serving, upstreams

TARGET = Target(443, None, "example.com")
LET_IN = b"\5\0"
CONNECTED = b"\5\0\0\1\x7f\0\0\1\x1f\x90"
GRANTED4 = b"\0\x5a\0\0\0\0\0\0"


def error_of(handler: Handler, url: str = "socks5h://127.0.0.1:{port}", time_limit: float = 30.0) -> DialError:
    async def main() -> DialError:
        async with serving(handler) as port:
            before = descriptors()
            with upstreams(url.format(port=port), time_limit=time_limit) as made:
                error = await dial_error(made, TARGET)
            assert len(descriptors() - before) <= 1  # the server's end may still be there
            return error

    error = asyncio.run(main())
    assert str(error).startswith("socks")
    return error


@pytest.mark.parametrize(
    ("answers", "url"),
    [
        ((LET_IN, CONNECTED), "socks5h://127.0.0.1:{port}"),
        ((LET_IN, b"\5\0\0\4" + b"\0" * 18), "socks5h://127.0.0.1:{port}"),
        ((LET_IN, b"\5\0\0\3\x03abc\0\1"), "socks5h://127.0.0.1:{port}"),
        ((b"\5\2", b"\1\0", CONNECTED), "socks5h://u:p@127.0.0.1:{port}"),
        ((GRANTED4,), "socks4a://u@127.0.0.1:{port}"),
    ],
)
@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_destinations_first_bytes_joined_with_the_answer_are_not_lost(
    answers: tuple[bytes, ...], url: str, one_by_one: bool
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers[:-1]:
            await reader.read(4096)
            writer.write(answer)
        await reader.read(4096)
        last = answers[-1] + b"SSH-2.0-OpenSSH\r\n"
        for piece in [bytes([byte]) for byte in last] if one_by_one else [last]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async def main() -> None:
        async with serving(talk) as port:
            with upstreams(url.format(port=port)) as made:
                dialled = await made.dial(TARGET, permits=lambda _: True)
                with dialled.sock:
                    assert dialled.early == b""
                    assert await receive(dialled.sock, 17) == b"SSH-2.0-OpenSSH\r\n"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "outcome", "number", "blame"),
    [
        (1, Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.WAY),
        (2, Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
        (3, Outcome.UNREACHABLE, errno.ENETUNREACH, Blame.TARGET),
        (4, Outcome.UNREACHABLE, errno.EHOSTUNREACH, Blame.TARGET),
        (5, Outcome.REFUSED, errno.ECONNREFUSED, Blame.TARGET),
        (6, Outcome.TIMEOUT, errno.ETIMEDOUT, Blame.TARGET),
        (7, Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
        (8, Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
        (9, Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.PROXY),
        (255, Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.PROXY),
    ],
)
def test_socks5_replies(code: int, outcome: Outcome, number: int, blame: Blame) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(LET_IN)
        await reader.read(4096)
        writer.write(bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0]))

    error = error_of(talk)
    assert (error.outcome, error.errno, error.blame) == (outcome, number, blame)


@pytest.mark.parametrize(
    ("code", "outcome", "blame"),
    [
        (0x5B, Outcome.UPSTREAM_FAILED, Blame.TARGET),
        (0x5C, Outcome.UPSTREAM_AUTH, Blame.PROXY),
        (0x5D, Outcome.UPSTREAM_AUTH, Blame.PROXY),
        (0x5E, Outcome.UPSTREAM_FAILED, Blame.PROXY),
    ],
)
def test_socks4_replies(code: int, outcome: Outcome, blame: Blame) -> None:
    error = error_of(says(bytes([0, code]) + b"\0" * 6), "socks4a://127.0.0.1:{port}")
    assert (error.outcome, error.blame) == (outcome, blame)


@pytest.mark.parametrize(
    ("url", "pieces", "text"),
    [
        ("socks5h://127.0.0.1:{port}", (b"\5\xff",), "none is given"),
        ("socks5h://u:p@127.0.0.1:{port}", (b"\5\xff",), "another way to log in"),
        ("socks5h://127.0.0.1:{port}", (b"\5\2",), "wants a user name"),
        ("socks5h://u:p@127.0.0.1:{port}", (b"\5\2", b"\1\1"), "refused the user name or the password"),
        ("socks5h://u:p@127.0.0.1:{port}", (b"\5", b"\2", b"\1", b"\xff"), "refused the user name or the password"),
        ("socks5h://u:p@127.0.0.1:{port}", (b"\5\2\1\1",), "refused the user name or the password"),
    ],
)
def test_what_is_about_our_credentials(url: str, pieces: tuple[bytes, ...], text: str) -> None:
    error = error_of(says(*pieces, then_hang=True), url)
    assert (error.outcome, error.errno, error.blame) == (
        Outcome.UPSTREAM_AUTH,
        errno.ECONNREFUSED,
        Blame.PROXY,
    )
    assert text in str(error)


@pytest.mark.parametrize(
    "url", ["socks5h://127.0.0.1:{port}", "socks5h://u:p@127.0.0.1:{port}", "socks4a://127.0.0.1:{port}"]
)
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\5",
        b"\0",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\4\0",
        b"\5\1",
        b"\5\7",
        b"\5\0\4\0",
        b"\5\0\5\0\1\1" + b"\0" * 6,
        b"\5\0\5\0\0\2" + b"\0" * 6,
        b"\5\0\5\0\0\3\2\xff\xfe\0\0",
        b"\5\2\5\0",
        b"\1\x5a" + b"\0" * 6,
        b"\5\0\5",
        b"\0\x5a\0\0",
        b"\5\0\5\0\0\3\xff",
    ],
)
def test_what_breaks_the_protocol(said: bytes, url: str) -> None:
    if said[:2] == b"\5\2" and "u:p" not in url:
        said = b"\5\3"
    error = error_of(says(said), url)
    assert (error.outcome, error.blame) == (Outcome.UPSTREAM_FAILED, Blame.PROXY)
    assert "p@" not in str(error)


@pytest.mark.parametrize(
    ("said", "blame"),
    [((), Blame.PROXY), ((b"\5",), Blame.PROXY), ((b"\5\0",), Blame.WAY), ((b"\5\0", b"\5\0\0\1"), Blame.WAY)],
)
def test_a_proxy_that_hangs_and_one_that_waits_for_the_destination(said: tuple[bytes, ...], blame: Blame) -> None:
    error = error_of(says(*said, then_hang=True), time_limit=0.05)
    assert (error.outcome, error.errno, error.blame) == (Outcome.UPSTREAM_FAILED, errno.ETIMEDOUT, blame)
    assert "no answer within 0.05 s" in str(error)


@pytest.mark.parametrize("address", ["2001:db8::1", "0.0.0.1"])
def test_what_socks4_has_no_words_for(address: str) -> None:
    async def main() -> DialError:
        async with serving(says()) as port:
            with upstreams(f"socks4a://127.0.0.1:{port}") as made:
                return await dial_error(made, Target(80, address))

    error = asyncio.run(main())
    assert (error.outcome, error.errno) == (Outcome.UNREACHABLE, errno.ENETUNREACH)
    assert "SOCKS4a cannot reach" in str(error)


def test_cancelled_at_each_byte_of_the_handshake_nothing_stays_open() -> None:
    answers = b"\5\2\1\0" + CONNECTED

    async def cancelled_after(count: int) -> None:
        arrived = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answers[:count])
            arrived.set()
            while await reader.read(4096):
                pass

        before = descriptors()
        async with serving(talk) as port:
            with upstreams(f"socks5h://u:p@127.0.0.1:{port}") as made:
                dial = asyncio.create_task(made.dial(TARGET, permits=lambda _: True))
                await arrived.wait()
                for _ in range(count):
                    await asyncio.sleep(0)
                dial.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await dial
        assert len(descriptors()) == len(before)

    async def main() -> None:
        for count in range(len(answers)):
            await cancelled_after(count)

    asyncio.run(main())


_bytes = st.sampled_from([b"\5\0", b"\5\2", b"\1\0", CONNECTED, GRANTED4, b"\5\0\0\3", b"HTTP/1.1 200 OK\r\n\r\n"])


@settings(deadline=None, max_examples=150)
@given(
    st.lists(_bytes | st.binary(max_size=6), max_size=6).map(b"".join),
    st.sampled_from(["socks5h://", "socks5h://u:p@", "socks4a://", "http://", "http://u:p@"]),
    st.booleans(),
)
def test_whatever_a_proxy_says_a_dial_ends_in_a_socket_or_in_our_error(said: bytes, kind: str, cut: bool) -> None:
    async def main() -> None:
        pieces = [bytes([byte]) for byte in said] if cut else [said] if said else []
        before = len(descriptors())
        async with serving(says(*pieces)) as port:
            with upstreams(f"{kind}127.0.0.1:{port}", time_limit=5) as made:
                try:
                    dialled = await made.dial(TARGET, permits=lambda _: True)
                except DialError as error:
                    assert error.outcome in (*Outcome,)
                    assert str(error).isprintable()
                else:
                    dialled.sock.close()
        assert len(descriptors()) == before

    asyncio.run(main())

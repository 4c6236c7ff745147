"""CONNECT answers, whole and byte by byte: a tunnel, a refusal, "more", or our one error."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.wire import ProtocolError
from netns_graft.wire.connect import HEADER_LIMIT, REASON_LIMIT, Connect, Refusal, Tunnel

OK = b"HTTP/1.1 200 Connection established\r\n"


def whole(data: bytes) -> Tunnel | Refusal | None:
    return Connect("example.com", 443).receive(data)


def in_pieces(data: bytes, size: int) -> Tunnel | Refusal | None:
    """As ``whole``, in pieces; what is not asked for any more is the destination's, hence early."""
    connect = Connect("example.com", 443)
    for start in range(0, len(data), size):
        answer = connect.receive(data[start : start + size])
        if isinstance(answer, Tunnel):
            return Tunnel(answer.early + data[start + size :])
        if answer is not None:
            return answer
    return None


def test_the_request() -> None:
    assert Connect("example.com", 443).request == (
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nUser-Agent: netns-graft\r\n\r\n"
    )


def test_an_ipv6_address_stands_in_brackets() -> None:
    request = Connect("2001:db8::1", 80).request
    assert request.startswith(b"CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n")


def test_basic_credentials_are_utf8() -> None:
    request = Connect("example.com", 443, username="jürgen", password="gehe:im€").request
    (line,) = [line for line in request.split(b"\r\n") if line.startswith(b"Proxy-Authorization: Basic ")]
    assert base64.b64decode(line.rpartition(b" ")[2]).decode() == "jürgen:gehe:im€"


@pytest.mark.parametrize("host", ["a b", "a\r\nX: y", "a\0b", "", "ä.example"])
def test_a_host_that_cannot_stand_in_a_request(host: str) -> None:
    if host == "":
        assert b"CONNECT :1 " in Connect(host, 1).request  # pointless, but harmless
        return
    with pytest.raises(ValueError, match="no host"):
        Connect(host, 1)


@pytest.mark.parametrize(
    ("answer", "early"),
    [
        (OK + b"\r\n", b""),
        (OK + b"\r\nSSH-2.0-x\r\n", b"SSH-2.0-x\r\n"),
        (OK + b"\r\n\r\n\r\n", b"\r\n\r\n"),
        (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\nabc", b"abc"),
        # RFC 9110 forbids these two in such an answer, and has the client ignore them.
        (OK + b"Content-Length: 3\r\n\r\nabcdef", b"abcdef"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"3\r\nabc\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"\r\nabc", b"abc"),
        (b"HTTP/1.1 102 Processing\r\nA: b\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"\r\n", b""),
        (OK + b"Via: 1.1 x\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n\0\xff", b"\0\xff"),
        (OK + b"\r\n" + b"x" * 100_000, b"x" * 100_000),
    ],
)
def test_a_tunnel_and_what_came_joined_with_it(answer: bytes, early: bytes) -> None:
    assert whole(answer) == Tunnel(early)
    assert in_pieces(answer, 1) == Tunnel(early)


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", 407, "Proxy Authentication Required"),
        (b"HTTP/1.0 403 Filtered\r\nContent-Length: 4\r\n\r\nnope", 403, "Filtered"),
        (b"HTTP/1.1 502\r\n\r\n", 502, ""),
        (b"HTTP/1.1 301 Go away\r\nLocation: x\r\n\r\n", 301, "Go away"),
        (b"HTTP/1.1 500 a\t b\xa0\xff\r\n\r\n", 500, "a b"),
        (b"HTTP/1.1 500 " + "ä".encode() + b"\r\n\r\n", 500, "ä"),
        (b"HTTP/1.1 500 " + b"x" * 5000 + b"\r\n\r\n", 500, "x" * (REASON_LIMIT - 1) + "…"),
        (b"HTTP/1.1 500 \xc2\x9b31mred\xe2\x80\xae\r\n\r\n", 500, "31mred"),
    ],
)
def test_a_refusal_and_its_reason_made_printable(answer: bytes, status: int, reason: str) -> None:
    assert whole(answer) == Refusal(status, reason)
    assert in_pieces(answer, 1) == Refusal(status, reason)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"\5\xff\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"\r\n\r\n" + OK + b"\r\n",
        OK + b"Content-Length: many\r\n\r\n",
        OK + b"A: " + b"b" * HEADER_LIMIT + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + OK + b"\r\n",
        b"x" * HEADER_LIMIT,
    ],
)
def test_what_is_no_answer(answer: bytes) -> None:
    with pytest.raises(ProtocolError):
        whole(answer)
    with pytest.raises(ProtocolError):
        in_pieces(answer, 1)


def test_a_header_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    frame = len(OK + b"A: \r\n\r\n")
    answer = OK + b"A: " + b"b" * (HEADER_LIMIT - frame) + b"\r\n\r\n"
    assert len(answer) == HEADER_LIMIT
    assert whole(answer + b"early") == Tunnel(b"early")
    longer = answer.replace(b"A: ", b"AA: ")
    with pytest.raises(ProtocolError, match="headers of more than"):
        whole(longer + b"early")


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_end_in_the_middle(sent: bytes) -> None:
    connect = Connect("example.com", 443)
    if sent:
        assert connect.receive(sent) is None
    with pytest.raises(ProtocolError, match="closed"):
        connect.receive(b"")


_line = st.sampled_from(
    [
        OK,
        b"HTTP/1.0 407 No\r\n",
        b"HTTP/1.1 100 Continue\r\n",
        b"HTTP/1.1 502 \xff\xfe\r\n",
        b"HTTP/3.1 200 x\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"A: b\r\n",
        b" folded\r\n",
        b": x\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"a: " + b"b" * (HEADER_LIMIT - 60) + b"\r\n",
    ]
)
_answers = st.lists(_line | st.binary(max_size=20), max_size=12).map(b"".join)


@given(_answers, st.integers(1, 7))
def test_any_bytes_in_any_cut_give_the_same(data: bytes, size: int) -> None:
    results = []
    for parse in (whole, lambda data: in_pieces(data, size)):
        try:
            results.append(parse(data) if data else None)
        except ProtocolError:
            results.append(ProtocolError)
    assert results[0] == results[1]
    if isinstance(results[0], Refusal):
        assert results[0].reason.isprintable()
        assert len(results[0].reason) <= REASON_LIMIT

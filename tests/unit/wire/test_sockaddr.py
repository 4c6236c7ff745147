"""Socket addresses and message headers, beside what the C library's own layouts (ctypes, socket) say."""

from __future__ import annotations

import ctypes
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.wire import ProtocolError, sockaddr
from netns_graft.wire.sockaddr import Address, Message

WIDTHS = pytest.mark.parametrize("wide", [True, False])
hosts4 = st.binary(min_size=4, max_size=4)
hosts6 = st.binary(min_size=16, max_size=16).filter(lambda host: not host.startswith(bytes(10) + b"\xff\xff"))
ports, words = st.integers(0, 65535), st.integers(0, 2**32 - 1)
addresses = st.one_of(
    st.builds(Address, st.just(sockaddr.AF_INET), hosts4, ports, st.just(0)),
    st.builds(Address, st.just(sockaddr.AF_INET6), st.one_of(hosts4, hosts6), ports, words),
)


def message_type(wide: bool) -> type[ctypes.Structure]:
    """struct msghdr in C's own terms, for both word sizes."""
    word = ctypes.c_uint64 if wide else ctypes.c_uint32

    class Header(ctypes.Structure):
        _fields_ = (
            ("name", word), ("name_length", ctypes.c_int32), ("vectors", word), ("vector_count", word),
            ("control", word), ("control_length", word), ("flags", ctypes.c_uint32),
        )  # fmt: skip

    return Header


class TestAddress:
    def test_what_the_kernel_wrote(self) -> None:
        with socket.socket(socket.AF_INET) as sock:
            sock.bind(("127.0.0.1", 0))
            buffer, length = ctypes.create_string_buffer(64), ctypes.c_int(64)
            assert ctypes.CDLL(None).getsockname(sock.fileno(), buffer, ctypes.byref(length)) == 0
            written = buffer.raw[: length.value]
            address = sockaddr.parse(written)
            assert address == (socket.AF_INET, socket.inet_aton("127.0.0.1"), sock.getsockname()[1], 0)
            assert sockaddr.build(address) == written

    def test_ipv6_with_a_scope(self) -> None:
        host = socket.inet_pton(socket.AF_INET6, "fe80::1")
        raw = struct.pack("=H", 10) + b"\x01\xbb" + bytes(4) + host + struct.pack("=I", 3)
        assert sockaddr.parse(raw) == (10, host, 443, 3)
        assert sockaddr.build(sockaddr.parse(raw)) == raw

    def test_24_bytes_are_enough(self) -> None:
        """RFC 2133's sockaddr_in6, which has no scope."""
        raw = struct.pack("=H", 10) + b"\x01\xbb" + bytes(20)
        assert sockaddr.parse(raw) == (10, bytes(16), 443, 0)

    def test_ipv4_mapped_is_ipv4(self) -> None:
        raw = sockaddr.build(Address(10, b"\1\2\3\4", 53))
        assert raw[8:24] == bytes(10) + b"\xff\xff\1\2\3\4"
        assert sockaddr.parse(raw).host == b"\1\2\3\4"
        assert sockaddr.plain(raw[8:24]) == b"\1\2\3\4" == sockaddr.mapped(b"\1\2\3\4")[12:]

    def test_a_form_that_is_given(self) -> None:
        """A send on an IPv4 socket takes AF_UNSPEC for AF_INET."""
        raw = bytes(2) + sockaddr.build(Address(2, b"\1\2\3\4", 53))[2:]
        assert sockaddr.parse(raw, sockaddr.AF_INET) == (2, b"\1\2\3\4", 53, 0)
        with pytest.raises(ProtocolError):
            sockaddr.parse(raw)

    @given(addresses)
    def test_whatever_is_built_is_read(self, address: Address) -> None:
        raw = sockaddr.build(address)
        assert len(raw) == (16 if address.family == sockaddr.AF_INET else 28)
        assert sockaddr.parse(raw) == address
        assert sockaddr.family(raw) == address.family

    @given(addresses, st.integers(0, 27))
    def test_cut_short(self, address: Address, length: int) -> None:
        raw = sockaddr.build(address)[:length]
        if length < (16 if address.family == sockaddr.AF_INET else 24):
            with pytest.raises(ProtocolError):
                sockaddr.parse(raw)
        else:
            assert sockaddr.parse(raw)[:3] == address[:3]

    @given(st.binary(max_size=130), st.sampled_from([None, 2, 10, 1, 0]))
    def test_any_bytes_give_an_address_or_our_one_error(self, raw: bytes, form: int | None) -> None:
        try:
            address = sockaddr.parse(raw, form)
        except ProtocolError:
            return
        assert len(address.host) in (4, 16) and 0 <= address.port <= 65535
        assert sockaddr.parse(sockaddr.build(address)) == address

    def test_no_ipv6_address_in_ipv4s_form(self) -> None:
        with pytest.raises(ValueError, match="not an IPv4"):
            sockaddr.build(Address(2, bytes(16), 1))

    def test_a_family_takes_two_bytes(self) -> None:
        for raw in (b"", b"\2"):
            with pytest.raises(ProtocolError):
                sockaddr.family(raw)


class TestMessage:
    @WIDTHS
    def test_sizes_are_cs(self, wide: bool) -> None:
        kind = message_type(wide)

        class Several(ctypes.Structure):
            _fields_ = (("header", kind), ("length", ctypes.c_uint32))

        assert sockaddr.MESSAGE_SIZE[wide] == ctypes.sizeof(kind)
        assert sockaddr.MESSAGES_STEP[wide] == ctypes.sizeof(Several)
        assert sockaddr.NAME_LENGTH_OFFSET[wide] == kind.name_length.offset
        assert Several.length.offset == sockaddr.MESSAGE_SIZE[wide]

    @WIDTHS
    @given(st.data())
    def test_every_field(self, wide: bool, data: st.DataObject) -> None:
        word = st.integers(0, 2 ** (64 if wide else 32) - 1)
        values = Message(*(data.draw(each) for each in (word, words, word, word, word, word, words)))
        header = message_type(wide)(*values)
        assert sockaddr.parse_message(bytes(header), wide=wide) == values
        assert sockaddr.parse_message(bytes(header) + b"more", wide=wide) == values

    @WIDTHS
    @given(st.binary(max_size=80))
    def test_any_bytes(self, wide: bool, raw: bytes) -> None:
        if len(raw) < sockaddr.MESSAGE_SIZE[wide]:
            with pytest.raises(ProtocolError):
                sockaddr.parse_message(raw, wide=wide)
        else:
            sockaddr.parse_message(raw, wide=wide)


class TestVectors:
    @WIDTHS
    @given(st.data())
    def test_whatever_is_put_in(self, wide: bool, data: st.DataObject) -> None:
        word = st.integers(0, 2 ** (64 if wide else 32) - 1)
        vectors = data.draw(st.lists(st.tuples(word, word), max_size=20))
        raw = b"".join(struct.pack("=QQ" if wide else "=II", *each) for each in vectors)
        assert sockaddr.parse_vectors(raw, wide=wide) == vectors
        assert len(raw) == len(vectors) * sockaddr.VECTOR_SIZE[wide]
        with pytest.raises(ProtocolError):
            sockaddr.parse_vectors(raw + b"x", wide=wide)

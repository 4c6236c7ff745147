"""SYN frames taken apart and refused, beside frames built by the tests' own reading of the RFCs (ground/frames.py)."""

from __future__ import annotations

import errno
import socket

import pytest
from ground.frames import ACK, FIN, PSH, RST, SYN, VNET, ethernet, ipv4, ipv6, packed, take_apart, tcp
from hypothesis import given
from hypothesis import strategies as st

from netns_graft.wire import ProtocolError
from netns_graft.wire.packet import Syn, marked, parse_syn, refusal, sequence

FORWARDER, WORKLOAD = bytes.fromhex("026772616601"), bytes.fromhex("026772616602")
V4 = packed("198.18.0.1"), packed("93.184.216.34")
V6 = packed("fd6e:6574:6772::1"), packed("2606:2800:220:1::1")
OPTIONS = bytes.fromhex("020405b40402080a00000001000000000103030a")  # what Linux puts into a SYN
ERRNOS = [errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EACCES, errno.ECONNRESET]

# What Linux 6.18 sent, as a packet socket with PACKET_VNET_HDR on the veth's other end saw it. The first byte, 1, says
# that the TCP checksum is only partial.
KERNELS_V4 = bytes.fromhex(
    "01000000000022001000" "026772616601" "026772616602" "0800"
    "4500003c5ff940004006ded4c61200015db8d822"
    "c6960050bc17baf800000000a002ffd7fc1c00000204ffd70402080a284e1084000000000103030a"
)  # fmt: skip
KERNELS_V6 = bytes.fromhex(
    "01000000000036001000" "026772616601" "026772616602" "86dd"
    "600a713800280640fd6e657467720000000000000000000126062800022000010000000000000001"
    "c91e00505252c49e00000000a002ffc31aad00000204ffc30402080ace677d7f000000000103030a"
)  # fmt: skip


def frame(
    ends: tuple[bytes, bytes] = V4, source_port: int = 40898, target_port: int = 443, *, sequence: int = 1000,
    flags: int = SYN, options: bytes = b"", ip_options: bytes = b"", data: bytes = b"", protocol: int = 6,
) -> bytes:  # fmt: skip
    segment = tcp(*_interleaved(ends, source_port, target_port), sequence, 0, flags, options=options, data=data)
    v4 = len(ends[0]) == 4
    packet = ipv4(*ends, protocol, segment, options=ip_options) if v4 else ipv6(*ends, protocol, segment)
    return VNET + ethernet(FORWARDER, WORKLOAD, packet)


def _interleaved(ends: tuple[bytes, bytes], source_port: int, target_port: int) -> tuple[bytes, int, bytes, int]:
    return ends[0], source_port, ends[1], target_port


ports = st.integers(0, 65535)
sequences = st.integers(0, 2**32 - 1)
addresses4 = st.tuples(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4))
addresses6 = st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
ip_options = st.integers(0, 10).flatmap(lambda words: st.binary(min_size=words * 4, max_size=words * 4))
tcp_options = st.integers(0, 10).flatmap(lambda words: st.binary(min_size=words * 4, max_size=words * 4))

changes = st.lists(st.tuples(st.integers(10, 120), st.integers(0, 255)), max_size=6)  # (place, value)


@st.composite
def syn_frames(draw: st.DrawFn) -> tuple[bytes, Syn, int]:
    """Any SYN: the frame, what it says, and its sequence number."""
    version4 = draw(st.booleans())
    ends = draw(addresses4 if version4 else addresses6)
    source_port, target_port, sequence = draw(ports), draw(ports), draw(sequences)
    built = frame(
        ends, source_port, target_port, sequence=sequence, options=draw(tcp_options), data=draw(st.binary(max_size=40)),
        ip_options=draw(ip_options) if version4 else b"", flags=SYN | draw(st.sampled_from([0, PSH, 0xC0])),
    )  # fmt: skip
    return built, Syn(ends[0], source_port, ends[1], target_port), sequence


class TestParse:
    def test_ipv4(self) -> None:
        assert parse_syn(frame()) == Syn(*_interleaved(V4, 40898, 443))

    def test_ipv6(self) -> None:
        assert parse_syn(frame(V6)) == Syn(*_interleaved(V6, 40898, 443))

    def test_the_kernels_own_frames(self) -> None:
        assert parse_syn(KERNELS_V4) == Syn(*_interleaved(V4, 0xC696, 80))
        assert parse_syn(KERNELS_V6) == Syn(*_interleaved(V6, 0xC91E, 80))

    @given(syn_frames())
    def test_whatever_was_put_in_comes_out(self, built: tuple[bytes, Syn, int]) -> None:
        assert parse_syn(built[0]) == built[1]

    @pytest.mark.parametrize("flags", [SYN | ACK, ACK, RST, FIN, FIN | ACK, 0, RST | ACK])
    def test_other_segments_are_none(self, flags: int) -> None:
        for ends in (V4, V6):
            with pytest.raises(ProtocolError):
                parse_syn(frame(ends, flags=flags))

    @pytest.mark.parametrize("protocol", [1, 17, 58, 132, 0, 43, 44])
    def test_other_protocols_are_none(self, protocol: int) -> None:
        for ends in (V4, V6):
            with pytest.raises(ProtocolError):
                parse_syn(frame(ends, protocol=protocol))

    @pytest.mark.parametrize("ethertype", ["0806", "8100", "88a8", "0000", "86de"])
    def test_other_ethertypes_are_none(self, ethertype: str) -> None:
        whole = frame()
        with pytest.raises(ProtocolError):
            parse_syn(whole[:22] + bytes.fromhex(ethertype) + whole[24:])

    def test_an_ethertype_that_does_not_fit_the_packet(self) -> None:
        four, six = frame(V4), frame(V6)
        for whole, kind in ((four, b"\x86\xdd"), (six, b"\x08\0")):
            with pytest.raises(ProtocolError):
                parse_syn(whole[:22] + kind + whole[24:])

    def test_a_header_shorter_than_a_header(self) -> None:
        whole = bytearray(frame())
        whole[24] = 0x44
        with pytest.raises(ProtocolError):
            parse_syn(bytes(whole))

    @pytest.mark.parametrize("ends", [V4, V6])
    def test_cut_short_anywhere(self, ends: tuple[bytes, bytes]) -> None:
        whole = frame(ends)
        for length in range(len(whole)):
            with pytest.raises(ProtocolError):
                parse_syn(whole[:length])

    @given(st.binary(max_size=200))
    def test_any_bytes_give_a_syn_or_our_one_error(self, data: bytes) -> None:
        _parse_and_refuse(data)

    @given(syn_frames(), changes, st.integers(0, 160))
    def test_any_spoilt_syn_does_too(
        self, built: tuple[bytes, Syn, int], changes: list[tuple[int, int]], length: int
    ) -> None:
        spoilt = bytearray(built[0])
        for place, value in changes:
            if place < len(spoilt):
                spoilt[place] = value
        _parse_and_refuse(bytes(spoilt[:length]))
        _parse_and_refuse(bytes(spoilt))


def _parse_and_refuse(data: bytes) -> None:
    """A parser's invariant; and what parses can be refused in every way, by a packet that verifies."""
    try:
        syn = parse_syn(data)
    except ProtocolError:
        return
    assert len(syn.source) == len(syn.target) in (4, 16)
    for number in ERRNOS:
        answer = refusal(data, number)
        assert take_apart(answer[10:]).checksums == (True, True)
        assert marked(data, b"\2marks")[22:] == data[22:]


class TestSequence:
    @given(syn_frames())
    def test_it_is_the_syns(self, built: tuple[bytes, Syn, int]) -> None:
        assert sequence(built[0]) == built[2]

    def test_of_the_kernels_own_frames(self) -> None:
        assert (sequence(KERNELS_V4), sequence(KERNELS_V6)) == (0xBC17BAF8, 0x5252C49E)


class TestMarked:
    def test_only_the_source_address_changes(self) -> None:
        before, mark = frame(), b"\x02\1\2\3\4\5"
        after = marked(before, mark)
        assert after[:16] == before[:16] and after[16:22] == mark and after[22:] == before[22:]

    def test_the_virtio_header_stays(self) -> None:
        for kernels in (KERNELS_V4, KERNELS_V6):
            assert marked(kernels, b"\x02\1\2\3\4\5")[:10] == kernels[:10] != bytes(10)


class TestReset:
    @given(syn_frames())
    def test_it_answers_this_syn_and_no_other(self, built: tuple[bytes, Syn, int]) -> None:
        data, syn, sequence = built
        answer = refusal(data, errno.ECONNREFUSED)
        assert answer[:10] == VNET  # no offload is wanted of the kernel: the checksums are whole
        seen = take_apart(answer[10:])
        family = socket.AF_INET if len(syn.source) == 4 else socket.AF_INET6
        assert (seen.target_mac, seen.source_mac) == (WORKLOAD, FORWARDER)
        assert (seen.source, seen.target) == (
            socket.inet_ntop(family, syn.target), socket.inet_ntop(family, syn.source)
        )  # fmt: skip
        assert (seen.protocol, seen.ports) == (6, (syn.target_port, syn.source_port))
        assert seen.flags == RST | ACK
        assert seen.sequence == (0, (sequence + 1) % 2**32)
        assert len(seen.payload) == 20 and seen.payload[12] == 5 << 4
        assert seen.checksums == (True, True)

    @pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, 0, 99999])
    def test_is_what_every_other_errno_gives(self, number: int) -> None:
        assert take_apart(refusal(frame(), number)[10:]).flags == RST | ACK


class TestUnreachable:
    # RFC 792 and RFC 1812; RFC 4443.
    KINDS = [  # noqa: RUF012
        (V4, errno.ENETUNREACH, (3, 6)), (V4, errno.EHOSTUNREACH, (3, 12)), (V4, errno.EACCES, (3, 13)),
        (V4, errno.ETIMEDOUT, (3, 12)),
        (V6, errno.ENETUNREACH, (1, 0)), (V6, errno.EACCES, (1, 1)), (V6, errno.EHOSTUNREACH, (1, 3)),
        (V6, errno.ETIMEDOUT, (1, 3)),
    ]  # fmt: skip

    @pytest.mark.parametrize(("ends", "number", "kind"), KINDS)
    def test_type_and_code(self, ends: tuple[bytes, bytes], number: int, kind: tuple[int, int]) -> None:
        seen = take_apart(refusal(frame(ends, options=OPTIONS), number)[10:])
        assert seen.protocol == (1 if ends is V4 else 58)
        assert (seen.payload[0], seen.payload[1]) == kind
        assert seen.payload[4:8] == bytes(4)

    @given(syn_frames(), st.sampled_from([errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.ETIMEDOUT]))
    def test_it_quotes_the_packet_and_comes_from_its_destination(
        self, built: tuple[bytes, Syn, int], number: int
    ) -> None:
        data, syn, _ = built
        seen = take_apart(refusal(data, number)[10:])
        assert packed(seen.source) == syn.target and packed(seen.target) == syn.source
        assert (seen.target_mac, seen.source_mac) == (WORKLOAD, FORWARDER)
        quoted = seen.payload[8:]
        assert len(quoted) >= 28 and data[24:].startswith(quoted)  # IP header and 8 bytes at the least
        head = (data[24] & 15) * 4 if len(syn.source) == 4 else 40
        assert len(quoted) >= head + 8
        assert seen.checksums == (True, True)

    @pytest.mark.parametrize("kernels", [KERNELS_V4, KERNELS_V6])
    def test_of_the_kernels_own_frames(self, kernels: bytes) -> None:
        """The answer has nothing of a partial checksum, though the question had."""
        for number in ERRNOS:
            answer = refusal(kernels, number)
            assert answer[:10] == VNET and take_apart(answer[10:]).checksums == (True, True)

    def test_it_is_no_longer_than_any_link_takes(self) -> None:
        """RFC 4443: 1280 bytes. With the longest options and data in the SYN."""
        long = frame(ip_options=bytes(40), options=bytes(40), data=bytes(1400))
        assert len(refusal(long, errno.EHOSTUNREACH)) - 24 <= 576

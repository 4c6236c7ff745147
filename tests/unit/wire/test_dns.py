"""Questions are read or refused with our one error; replies are what dnspython reads from them."""

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_graft.wire import ProtocolError
from netns_graft.wire import dns as wire


def query(name="www.example.com", rdtype="A", **options):
    return dns.message.make_query(name, rdtype, **options)


def question(*args, **options):
    return wire.parse_query(query(*args, **options).to_wire())


def resolver_reply(text_records, name="www.example.com", rdtype="A"):
    reply = dns.message.make_response(query(name, rdtype))
    reply.answer += [dns.rrset.from_text(*record) for record in text_records]
    return reply.to_wire()


def test_a_question_is_read():
    asked = query("WwW.Example.COM", "AAAA", id=4711)
    read = wire.parse_query(asked.to_wire())
    assert (read.id, read.name, read.qtype, read.qtype_text) == (4711, "www.example.com", 28, "AAAA")
    assert read.message.question[0].name.to_text() == "WwW.Example.COM."


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".", "."),
        ("localhost", "localhost"),
        ("a\\032b.example", "a\\032b.example"),
        ("x\\\\.org", "x\\\\.org"),
    ],
)
def test_names_as_text(name, text):
    assert question(name).name == text


@pytest.mark.parametrize("number, text", [(65, "HTTPS"), (62347, "TYPE62347"), (0, "TYPE0"), (255, "ANY")])
def test_types_known_and_unknown(number, text):
    read = wire.parse_query(query().to_wire()[:-4] + number.to_bytes(2, "big") + b"\0\1")
    assert (read.qtype, read.qtype_text) == (number, text)


def changed(at, value):
    data = bytearray(query().to_wire())
    data[at] = value
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 11,
        query().to_wire()[:-1],
        query().to_wire() + b"\0",
        changed(2, 0x81),  # a reply
        changed(2, 0x29),  # an update
        changed(5, 0),
        changed(5, 2),
        changed(7, 1),
        changed(9, 1),
        changed(11, 1),
        changed(12, 64),  # a label type that does not exist
        b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c" + b"\0\1\0\1",  # a name that points at itself
        b"\0\0\1\0\0\1\0\0\0\0\0\0" + b"\xc0\x00" + b"\0\1\0\1",  # a name in the header
        b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\x0eevil.com.\\.good\3org\0" + b"\0\1\0\1",  # dots inside a label
    ],
)
def test_what_is_no_question_is_a_protocol_error(data):
    with pytest.raises(ProtocolError):
        wire.parse_query(data)


def test_a_dot_inside_a_label_never_passes_for_a_border_between_labels():
    with pytest.raises(ProtocolError, match="dot inside a label"):
        wire.parse_query(query("attacker\\.example.org").to_wire())


@pytest.mark.parametrize("edns", [False, True])
@pytest.mark.parametrize("rdtype, expected", [("A", ["198.18.1.0"]), ("AAAA", ["fd6e:6574:6772::100"])])
def test_addresses_of_the_type_asked_for(rdtype, expected, edns):
    asked = query("Www.Example.com", rdtype, use_edns=edns)
    read = wire.parse_query(asked.to_wire())
    reply = dns.message.from_wire(wire.answer_addresses(read, ["198.18.1.0", "fd6e:6574:6772::100"], 10))
    assert asked.is_response(reply)
    (rrset,) = reply.answer
    assert rrset.name == asked.question[0].name
    assert rrset.ttl == 10
    assert [record.address for record in rrset] == expected
    assert reply.question[0].name.to_text() == "Www.Example.com."  # as asked: some clients check the case


def test_flags_and_edns_mirror_the_question():
    for asked in (
        query(),
        query(flags=0),
        query(flags=dns.flags.RD | dns.flags.CD | dns.flags.AD),
        query(use_edns=0),
        query(want_dnssec=True, payload=4096),
        query(use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")]),
    ):
        reply = dns.message.from_wire(wire.answer_nodata(wire.parse_query(asked.to_wire())))
        copied = dns.flags.RD | dns.flags.CD
        assert reply.flags == dns.flags.QR | dns.flags.RA | asked.flags & copied
        assert (reply.edns, reply.ednsflags) == (asked.edns, asked.ednsflags & dns.flags.DO)
        assert reply.options == ()


def test_an_edns_version_to_come_is_told_so():
    reply = dns.message.from_wire(wire.answer_addresses(question(use_edns=1), ["198.18.1.0"], 10))
    assert (reply.rcode(), reply.edns, reply.answer) == (dns.rcode.BADVERS, 0, [])


@pytest.mark.parametrize("build", [wire.answer_nodata, lambda q: wire.answer_error(q, wire.NXDOMAIN)])
def test_no_such_name_or_type_may_be_cached_for_a_moment(build):
    reply = dns.message.from_wire(build(question("nothing.example", "TXT")))
    assert reply.answer == []
    (soa,) = reply.authority
    assert (soa.name.to_text(), soa.rdtype, soa.ttl, soa[0].minimum) == (".", dns.rdatatype.SOA, 10, 10)


def test_an_error_for_a_question():
    reply = dns.message.from_wire(wire.answer_error(question(id=77), wire.REFUSED))
    assert (reply.id, reply.rcode(), len(reply.question), reply.authority) == (77, 5, 1, [])
    assert dns.message.from_wire(wire.answer_error(question(use_edns=0), 23)).rcode() == 23
    assert dns.message.from_wire(wire.answer_error(question(), 23)).rcode() == wire.SERVFAIL


def test_an_error_for_bytes_that_are_no_question():
    reply = dns.message.from_wire(wire.answer_error(b"\x12\x34\x01\x00" + b"\xff" * 30, wire.FORMERR))
    assert (reply.id, reply.rcode(), reply.question) == (0x1234, wire.FORMERR, [])
    assert wire.answer_error(b"\x12\x34\x01\x00\0\0\0\0\0\0\0", wire.FORMERR) is None
    assert wire.answer_error(wire.answer_nodata(question()), wire.FORMERR) is None  # a reply: no ping-pong
    assert wire.error_for(changed(2, 0x29)) == wire.NOTIMP
    assert wire.error_for(b"\xff\xff\xff") == wire.FORMERR


@pytest.mark.parametrize(
    ("payload", "room"), [(None, 512), (0, 512), (400, 512), (1232, 1232), (4096, 4096), (65535, 65535)]
)
def test_udp_replies_fit_what_the_asker_takes(payload, room):
    asked = query() if payload is None else query(use_edns=0, payload=payload)
    read = wire.parse_query(asked.to_wire())
    base = len(wire.answer_addresses(read, ["10.0.0.1"], 1)) - 16
    most = min((room - base) // 16, 1000)
    addresses = [f"10.0.{i // 256}.{i % 256}" for i in range(most + 1)]
    fitting = wire.answer_addresses(read, addresses[:most], 1)
    assert wire.fit_udp(fitting, read) == fitting
    if most == 1000:  # more is never sent
        return
    cut = dns.message.from_wire(wire.fit_udp(wire.answer_addresses(read, addresses, 1), read))
    assert cut.flags & dns.flags.TC
    assert asked.is_response(cut)
    assert (cut.answer, cut.edns) == ([], asked.edns)


def test_a_reply_of_ours_stays_below_64_kib():
    reply = wire.answer_addresses(question(rdtype="AAAA"), [f"fd00::{i:x}" for i in range(70000)], 1)
    assert len(dns.message.from_wire(reply).answer[0]) == 1000


def test_names_of_an_address():
    read = question("1.0.0.10.in-addr.arpa", "PTR")
    reply = dns.message.from_wire(wire.answer_names(read, ["a..b", "x" * 64, "printer.lan"], 5))
    assert [record.target.to_text() for record in reply.answer[0]] == ["printer.lan."]
    assert dns.message.from_wire(wire.answer_names(read, ["a..b"], 5)).answer == []


@pytest.mark.parametrize(
    "name, address",
    [
        ("1.0.18.198.in-addr.arpa", "198.18.0.1"),
        (f"{'0.' * 31}2.ip6.arpa".replace("0.", "1.", 1), "2000::1"),
        ("0.18.198.in-addr.arpa", None),
        ("256.0.18.198.in-addr.arpa", None),
        ("x." * 32 + "ip6.arpa", None),
        ("12." * 32 + "ip6.arpa", None),
        ("example.org", None),
        (".", None),
    ],
)
def test_reverse_names(name, address):
    assert wire.address_of_reverse(name) == address


def test_addresses_are_learnt_for_the_question_name_through_its_cnames_only():
    reply = resolver_reply(
        [
            ("www.example.com.", 60, "IN", "CNAME", "Edge.cdn.example."),
            ("edge.cdn.example.", 60, "IN", "CNAME", "a.cdn.example."),
            ("a.cdn.example.", 60, "IN", "A", "192.0.2.1", "192.0.2.2"),
            ("bank.example.", 60, "IN", "A", "192.0.2.66"),
        ]
    )
    assert sorted(wire.addresses_in_reply(reply)) == [
        ("www.example.com", "192.0.2.1"),
        ("www.example.com", "192.0.2.2"),
    ]


def test_addresses_of_both_families_and_a_loop_of_cnames():
    assert wire.addresses_in_reply(
        resolver_reply([("www.example.com.", 1, "IN", "AAAA", "2001:db8::1")], rdtype="AAAA")
    ) == [("www.example.com", "2001:db8::1")]
    loop = [
        ("www.example.com.", 1, "IN", "CNAME", "b.example."),
        ("b.example.", 1, "IN", "CNAME", "www.example.com."),
    ]
    assert wire.addresses_in_reply(resolver_reply(loop)) == []
    assert wire.addresses_in_reply(resolver_reply([])) == []
    with pytest.raises(ProtocolError):
        wire.addresses_in_reply(query().to_wire())


def test_a_reply_answers_its_query_alone():
    asked = query("www.example.com", id=1)
    data, read = asked.to_wire(), wire.parse_query(asked.to_wire())
    good = dns.message.make_response(asked).to_wire()
    assert wire.answers(good, data, read)
    assert wire.answers(good.replace(b"www", b"WwW"), data, read)
    assert not wire.answers(b"\0\2" + good[2:], data, read)
    assert not wire.answers(good.replace(b"www", b"wwx"), data, read)
    assert not wire.answers(good[:-4] + b"\0\x1c\0\1", data, read)
    assert not wire.answers(data, data, read)
    assert not wire.answers(good[:11], data, read)
    bare = lambda rcode: b"\0\1\x81" + bytes([0x80 | rcode]) + b"\0" * 8  # noqa: E731
    assert wire.answers(bare(wire.FORMERR), data, read)
    assert not wire.answers(bare(wire.NOERROR), data, read)
    assert not wire.answers(bare(wire.NXDOMAIN), data, read)


# Any bytes; header-like ones; real messages with a few bytes changed, cut off, or added.
SEEDS = [
    query().to_wire(),
    query("x.y.z", "AAAA", want_dnssec=True, options=[dns.edns.ECSOption("192.0.2.0", 24)]).to_wire(),
    query("_sip._tcp.example", "SRV", use_edns=0, pad=128).to_wire(),
    resolver_reply([("www.example.com.", 60, "IN", "CNAME", "b."), ("b.", 1, "IN", "A", "192.0.2.1")]),
    resolver_reply([("www.example.com.", 9, "IN", "HTTPS", "1 . alpn=h2 ipv4hint=192.0.2.1")], rdtype="HTTPS"),
]


@st.composite
def mangled(draw):
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data) + draw(st.binary(max_size=4))


header_like = st.tuples(st.binary(min_size=2, max_size=2), st.sampled_from([b"\1\0", b"\0\0", b"\x81\x80"])).flatmap(
    lambda start: st.binary(max_size=80).map(lambda rest: b"".join(start) + b"\0\1\0\0\0\0\0\1" + rest)
)
any_bytes = st.one_of(st.binary(max_size=600), header_like, mangled())


@settings(max_examples=500, deadline=None)
@given(any_bytes)
def test_fuzz_questions(data):
    try:
        read = wire.parse_query(data)
    except ProtocolError:
        reply = wire.answer_error(data, wire.error_for(data))
        assert reply is None or dns.message.from_wire(reply).id == int.from_bytes(data[:2], "big")
        return
    replies = [
        wire.answer_addresses(read, ["192.0.2.1", "2001:db8::1"], 10),
        wire.answer_nodata(read),
        wire.answer_names(read, ["a.example"], 1),
        *(wire.answer_error(read, rcode) for rcode in (1, 2, 3, 4, 5, 16)),
    ]
    for reply in replies:
        parsed = dns.message.from_wire(wire.fit_udp(reply, read))
        assert parsed.id == read.id
        assert parsed.question == read.message.question
        assert (parsed.edns >= 0) == (read.message.edns >= 0)


@settings(max_examples=500, deadline=None)
@given(any_bytes)
def test_fuzz_replies(data):
    read = question()
    assert wire.answers(data, data, read) in (True, False)
    try:
        pairs = wire.addresses_in_reply(data)
    except ProtocolError:
        return
    assert len({name for name, _ in pairs}) <= 1

"""DNS messages: a workload's questions in, replies out, and what a resolver's reply teaches.

Foreign bytes are read by dnspython; our own replies are packed here, because they are a header, the question
as it was asked (letter case kept: some clients check it), a few fixed records and an OPT. That is 10 times
faster than building a ``dns.message``, and a question for a name never seen before is what a build asks most.

Invariants: a reply carries an OPT record exactly when the question did (RFC 6891, 7), with the DO bit copied
(RFC 3225); RD and CD are copied, RA is set, AD never is: nothing was validated here. Nobody is answered who
did not ask: a message with QR set gets no reply, so two of us can never talk to each other for ever.

Cost: importing dnspython's ``dns.message`` takes 55-65 ms on a 2-core cloud machine (a third of it
``importlib.metadata``), so ``netns_graft.dns.service`` imports this module at the first question or when told
to be ready, and ``import netns_graft.dns.service`` stays cheap.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import dns.exception
import dns.message
import dns.name
import dns.rdatatype

from . import ProtocolError

A, NS, CNAME, SOA, PTR, AAAA, OPT = 1, 2, 5, 6, 12, 28, 41
IXFR, AXFR, ANY = 251, 252, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

HEADER = 12
UDP_WITHOUT_EDNS = 512
OUR_PAYLOAD = 1232  # bytes that we say we take by UDP: the DNS flag day's advice, nobody fragments it

_QR, _TC, _RD, _RA, _CD = 0x8000, 0x0200, 0x0100, 0x0080, 0x0010
_OPCODE = 0x7800
_DO = 0x8000
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHHIH")  # owner as a pointer, type, class, TTL, length
_QUESTION_NAME = 0xC00C  # a pointer to the question's name, which always stands right after the header
_MOST_RECORDS = 1000  # in a reply of ours: it must stay below 64 KiB
_CHAIN_LIMIT = 32  # CNAMEs followed; real chains have fewer than 10

# Resolver libraries cache "no such name" and "no such type" for the smaller of the SOA's TTL and its last
# field (RFC 2308); without an SOA some ask again at once, others cache for a time of their own choosing. Root
# owns it: it is an ancestor of every name.
_NEGATIVE_TTL = 10
_SOA_DATA = (
    b"\x0bnetns-graft\x07invalid\0"  # primary server: none, by RFC 2606
    + b"\0"  # mailbox: none
    + struct.pack("!5I", 1, 3600, 600, 86400, _NEGATIVE_TTL)
)
_SOA_RECORD = b"\0" + struct.pack("!HHIH", SOA, IN, _NEGATIVE_TTL, len(_SOA_DATA)) + _SOA_DATA


@dataclass(slots=True, frozen=True)
class Question:
    """One well-formed question. ``name`` is lower case, without the last dot (root: ``"."``), RFC 4343
    escapes.

    No label of it holds a dot, so that comparing ``name`` as text ("ends with .example.org") is comparing
    labels. ``section`` is the question as asked, in bytes: name, type, class.
    """

    id: int
    name: str
    qtype: int
    qtype_text: str
    message: dns.message.Message
    qclass: int
    flags: int
    section: bytes

    @property
    def udp_limit(self) -> int:
        """Bytes that the asker takes in one UDP reply."""
        if self.message.edns < 0:
            return UDP_WITHOUT_EDNS
        return max(UDP_WITHOUT_EDNS, self.message.payload)


def parse_query(data: bytes) -> Question:
    """``data`` as a question; ``ProtocolError`` unless it is exactly one well-formed standard query."""
    if len(data) < HEADER:
        raise ProtocolError(f"DNS message of {len(data)} bytes, shorter than its header")
    ident, flags, questions, answers, authorities, _ = _HEADER.unpack_from(data)
    if flags & _QR:
        raise ProtocolError("DNS reply where a question was expected")
    if flags & _OPCODE:
        raise ProtocolError(f"DNS operation {(flags & _OPCODE) >> 11}, not a standard query")
    if questions != 1 or answers or authorities:
        counts = f"{questions} questions, {answers} answers, {authorities} authorities"
        raise ProtocolError(f"DNS query with {counts}")
    message = _read(data)
    asked = message.question[0]
    if any(b"." in label for label in asked.name.labels):
        raise ProtocolError("DNS name with a dot inside a label")
    section = _packed(asked.name) + struct.pack("!HH", asked.rdtype, asked.rdclass)
    if not data.startswith(section, HEADER):
        # A pointer here could only lead into the header.
        raise ProtocolError("compressed name in a DNS question")
    return Question(
        id=ident,
        name=asked.name.to_text(True).lower() if len(asked.name.labels) > 1 else ".",
        qtype=int(asked.rdtype),
        qtype_text=dns.rdatatype.to_text(asked.rdtype),
        message=message,
        qclass=int(asked.rdclass),
        flags=flags,
        section=section,
    )


def answer_addresses(question: Question, addresses: Sequence[str], ttl: int) -> bytes:
    """The reply with those ``addresses`` (text) that are of the type asked for, at most 1000 of them; NODATA
    when there is none. ``ttl`` is in seconds."""
    records = b""
    count = 0
    for text in addresses[:_MOST_RECORDS]:
        packed = ipaddress.ip_address(text).packed
        rdtype = A if len(packed) == 4 else AAAA
        if question.qtype in (rdtype, ANY):
            records += _RECORD.pack(_QUESTION_NAME, rdtype, IN, ttl, len(packed)) + packed
            count += 1
    return _reply(question, NOERROR, records, count) if count else answer_nodata(question)


def answer_names(question: Question, names: Sequence[str], ttl: int) -> bytes:
    """The reply to a PTR question. ``names`` that cannot be DNS names are left out."""
    records = b""
    count = 0
    for text in names:
        try:
            packed = _packed(dns.name.from_text(text))
        except (dns.exception.DNSException, ValueError):
            continue
        records += _RECORD.pack(_QUESTION_NAME, PTR, IN, ttl, len(packed)) + packed
        count += 1
    return _reply(question, NOERROR, records, count) if count else answer_nodata(question)


def answer_nodata(question: Question) -> bytes:
    """The name exists, but has nothing of the type asked for."""
    return _reply(question, NOERROR)


def answer_error(question: Question | bytes, rcode: int) -> bytes | None:
    """A reply with ``rcode`` alone. For raw bytes that could not be parsed, from as much of a header as there
    is; None where nothing may be answered: less than a header, or itself a reply."""
    if isinstance(question, Question):
        return _reply(question, rcode)
    if len(question) < HEADER:
        return None
    ident, flags = struct.unpack_from("!HH", question)
    if flags & _QR:
        return None
    return _HEADER.pack(ident, _QR | flags & (_OPCODE | _RD | _CD) | _RA | rcode & 15, 0, 0, 0, 0)


def error_for(data: bytes) -> int:
    """The rcode that bytes deserve which ``parse_query`` did not take: NOTIMP for other operations, else
    FORMERR."""
    return NOTIMP if len(data) >= HEADER and data[2] & (_OPCODE >> 8) else FORMERR


def fit_udp(reply: bytes, question: Question) -> bytes:
    """``reply``, or when it is longer than the asker takes by UDP the same without records and with TC
    set."""
    if len(reply) <= question.udp_limit:
        return reply
    ident, flags = struct.unpack_from("!HH", reply)
    opt = _opt_record(question, NOERROR)
    return _HEADER.pack(ident, flags | _TC, 1, 0, 0, 1 if opt else 0) + question.section + opt


def answers(reply: bytes, query: bytes, question: Question) -> bool:
    """Whether ``reply`` (from the address that was asked) belongs to ``query``: same ID, same question, QR
    set.

    Letter case of the name is not compared: some resolvers normalise it. A bare header is taken for an error
    only, from servers that understood so little that they could not even repeat the question.
    """
    if len(reply) < HEADER or reply[:2] != query[:2]:
        return False
    _, flags, questions, *_ = _HEADER.unpack_from(reply)
    if not flags & _QR or flags & _OPCODE:
        return False
    if questions == 0:
        return flags & 15 in (FORMERR, SERVFAIL, NOTIMP, REFUSED)
    asked = question.section
    echoed = reply[HEADER : HEADER + len(asked)]
    return questions == 1 and echoed[-4:] == asked[-4:] and echoed[:-4].lower() == asked[:-4].lower()


def rcode_of(reply: bytes) -> int:
    """The rcode in a reply's header (the 4 low bits: extended ones are the OPT record's business)."""
    return reply[3] & 15


def rcode_text(rcode: int) -> str:
    names = {NOERROR: "NOERROR", FORMERR: "FORMERR", SERVFAIL: "SERVFAIL", NXDOMAIN: "NXDOMAIN"}
    names |= {NOTIMP: "NOTIMP", REFUSED: "REFUSED"}
    return names.get(rcode, f"RCODE{rcode}")


def addresses_in_reply(data: bytes) -> list[tuple[str, str]]:
    """(question name, address) for each A and AAAA that the reply gives for its question, CNAMEs followed.

    Addresses of other names, however they came into the message, teach nothing: a resolver that is asked
    about one name must not be able to name the addresses of another.
    """
    if len(data) < HEADER or not data[2] & 0x80 or data[2] & 0x78:
        raise ProtocolError("not a reply to a standard DNS query")
    message = _read(data)
    if len(message.question) != 1:
        return []
    asked = message.question[0]
    if any(b"." in label for label in asked.name.labels):
        return []
    owners: dict[dns.name.Name, dns.name.Name] = {}
    found: dict[dns.name.Name, list[str]] = {}
    for rrset in message.answer:
        if rrset.rdclass != IN:
            continue
        if rrset.rdtype == CNAME:
            owners[rrset.name] = rrset[0].target
        elif rrset.rdtype in (A, AAAA):
            found.setdefault(rrset.name, []).extend(record.address for record in rrset)
    name = asked.name
    text = name.to_text(True).lower() if len(name.labels) > 1 else "."
    pairs: list[tuple[str, str]] = []
    for _ in range(_CHAIN_LIMIT):
        pairs += [(text, address) for address in found.pop(name, ())]
        if name not in owners:
            break
        name = owners.pop(name)
    return pairs


def address_of_reverse(name: str) -> str | None:
    """``"1.0.18.198.in-addr.arpa"`` -> ``"198.18.0.1"``; the same for ip6.arpa. None for any other name."""
    labels = name.split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
            return str(ipaddress.IPv4Address(".".join(reversed(labels[:4]))))
        nibbles = labels[:32]
        if labels[32:] == ["ip6", "arpa"] and all(len(nibble) == 1 for nibble in nibbles):
            return str(ipaddress.IPv6Address(bytes.fromhex("".join(reversed(nibbles)))))
    except ValueError:
        pass
    return None


def _read(data: bytes) -> dns.message.Message:
    try:
        return dns.message.from_wire(data, keyring=False)  # signatures (TSIG) are for the resolver to judge
    except Exception as error:  # whatever dnspython trips over, the sender wrote it
        raise ProtocolError(f"malformed DNS message: {error or type(error).__name__}") from error


def _packed(name: dns.name.Name) -> bytes:
    """``name`` uncompressed, in the letter case it came in."""
    return b"".join(len(label).to_bytes() + label for label in name.labels)


def _reply(question: Question, rcode: int, records: bytes = b"", count: int = 0) -> bytes:
    """``rcode`` over 15 needs the question's OPT to be said in; without one it becomes SERVFAIL."""
    if question.message.edns > 0:
        rcode, records, count = BADVERS, b"", 0
    elif rcode > 15 and question.message.edns < 0:
        rcode = SERVFAIL
    negative = not count and rcode in (NOERROR, NXDOMAIN)
    opt = _opt_record(question, rcode)
    flags = _QR | question.flags & (_RD | _CD) | _RA | rcode & 15
    header = _HEADER.pack(question.id, flags, 1, count, 1 if negative else 0, 1 if opt else 0)
    return header + question.section + records + (_SOA_RECORD if negative else b"") + opt


def _opt_record(question: Question, rcode: int) -> bytes:
    if question.message.edns < 0:
        return b""
    flags = question.message.ednsflags & _DO
    return b"\0" + struct.pack("!HHBBHH", OPT, OUR_PAYLOAD, rcode >> 4, 0, flags, 0)

"""The gate of F: what may come in from the workload's cable, as nftables rules, by netlink alone.

One table, three chains. *arriving* (before routing) drops SYNs that are held, hands TCP to its connection or to the
listener, lets DNS pass where we answer it, and rejects the rest with an ICMP error. *inward* lets in what arriving
accepted and nothing else. *through* drops everything: F forwards nothing, whatever its sysctls say.

All of it is one transaction, so there is never a part of it. Messages are packed by hand, for a library that can do
this takes 170 ms to load (linux/netfilter/nf_tables.h has the numbers).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable

from netns_graft.linux.cable import DNS_PORT
from netns_graft.linux.nlattr import attribute

_NETLINK_NETFILTER = 12
_NFPROTO_INET = 1
_SUBSYSTEM = 10  # nf_tables, in the upper byte of a message's type
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE, _NLM_F_APPEND = 0x1, 0x4, 0x400, 0x800
_NLMSG_ERROR = 2
_NESTED = 0x8000

_PREROUTING, _INPUT, _FORWARD = 0, 1, 2
_META_IIFNAME, _META_L4PROTO = 6, 16
_LL_HEADER, _TRANSPORT_HEADER = 0, 2
_EQ, _NEQ = 0, 1
_DROP, _ACCEPT = 0, 1
_REJECT_ICMPX = 2
_ICMPX_PORT_UNREACH, _ICMPX_ADMIN_PROHIBITED = 1, 3
_TABLE = "graft"
_NOBODYS_PORT = 1  # nobody listens there in F


def remove() -> None:
    _commit([_message(_DELETE_TABLE, _text(1, _TABLE))])


def put_up(interface: str, port: int, *, mark: bytes | None, dns: bool) -> None:
    """Set the rules for what arrives by ``interface`` (it need not be there yet): TCP goes to the TPROXY listeners on
    ``port``. ``mark``: hold SYNs but for those from this MAC. ``dns``: let UDP port 53 in. OSError."""
    from_cable = _meta(_META_IIFNAME) + _compare(interface.encode().ljust(16, b"\0"))
    tcp, udp = _protocol(socket.IPPROTO_TCP), _protocol(socket.IPPROTO_UDP)
    messages = [_message(_NEW_TABLE, _text(1, _TABLE)), _chain("arriving", _PREROUTING, _ACCEPT, -150)]
    flags = _payload(_TRANSPORT_HEADER, 13, 1) + _masked(b"\x12")  # of SYN and ACK
    syn_without_ack, later = tcp + flags + _compare(b"\x02"), tcp + flags + _compare(b"\x02", _NEQ)
    if mark is not None:
        not_ours = _payload(_LL_HEADER, 6, 6) + _compare(mark, _NEQ)
        messages.append(_rule("arriving", from_cable + syn_without_ack + not_ours + _verdict(_DROP)))
    messages.append(_rule("arriving", from_cable + syn_without_ack + _to_listener(port)))
    # What is no SYN must find its connection, and is dropped if not. While a connection takes its request's place in
    # the kernel's table, a packet that another processor handles at that very moment may find neither (Linux until
    # 6.18); the listener would answer it with a reset. Dropped, it comes again.
    messages.append(_rule("arriving", from_cable + later + _to_listener(_NOBODYS_PORT) + _verdict(_ACCEPT)))
    messages.append(_rule("arriving", from_cable + later + _verdict(_DROP)))

    to_dns = _payload(_TRANSPORT_HEADER, 2, 2) + _compare(struct.pack("!H", DNS_PORT))
    accepted = [tcp] + ([udp + to_dns] if dns else [])
    # A program that sends UDP learns at once that nobody is there; anything else, that it may not. This is done
    # before routing: an ICMP error for an AnyIP destination would need that address as its source, which the
    # kernel refuses; from here it comes from the gateway.
    messages += [_rule("arriving", from_cable + wanted + _verdict(_ACCEPT)) for wanted in accepted]
    messages.append(_rule("arriving", from_cable + udp + _reject(_ICMPX_PORT_UNREACH)))
    messages.append(_rule("arriving", from_cable + _reject(_ICMPX_ADMIN_PROHIBITED)))

    messages.append(_chain("inward", _INPUT, _DROP))
    messages += [_rule("inward", from_cable + wanted + _verdict(_ACCEPT)) for wanted in accepted]
    messages.append(_chain("through", _FORWARD, _DROP))
    _commit(messages)


# Expressions; register 1 carries each value from its load to its comparison.


def _expression(name: str, *attributes: bytes) -> bytes:
    body = _text(1, name) + attribute(2 | _NESTED, b"".join(attributes))
    return attribute(1 | _NESTED, body)  # an element of a list


def _meta(key: int) -> bytes:
    return _expression("meta", _number(2, key), _number(1, 1))


def _compare(value: bytes, operator: int = _EQ) -> bytes:
    return _expression("cmp", _number(1, 1), _number(2, operator), _data(3, value))


def _protocol(number: int) -> bytes:
    return _meta(_META_L4PROTO) + _compare(bytes([number]))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _number(1, 1), _number(2, base), _number(3, offset), _number(4, length))


def _masked(mask: bytes) -> bytes:
    zeros = bytes(len(mask))
    return _expression(
        "bitwise", _number(1, 1), _number(2, 1), _number(3, len(mask)), _data(4, mask), _data(5, zeros)
    )


def _verdict(code: int) -> bytes:
    """Register 0 is the verdict's."""
    verdict = attribute(2 | _NESTED, _number(1, code))
    return _expression("immediate", _number(1, 0), attribute(2 | _NESTED, verdict))


def _to_listener(port: int) -> bytes:
    """To the packet's own connection, else to the listener on ``port``; the rule ends where there is neither. Family 0:
    both, each to its own."""
    load = _expression("immediate", _number(1, 1), _data(2, struct.pack("!H", port)))
    return load + _expression("tproxy", _number(1, 0), _number(3, 1))


def _reject(code: int) -> bytes:
    return _expression("reject", _number(1, _REJECT_ICMPX), attribute(2, bytes([code])))


# Messages


def _chain(name: str, hook: int, policy: int, priority: int = 0) -> bytes:
    place = _number(1, hook) + attribute(2, struct.pack("!i", priority))
    body = _text(1, _TABLE) + _text(3, name) + attribute(4 | _NESTED, place)
    return _message(_NEW_CHAIN, body + _number(5, policy) + _text(7, "filter"), _NLM_F_CREATE)


def _rule(chain: str, expressions: bytes) -> bytes:
    body = _text(1, _TABLE) + _text(2, chain) + attribute(4 | _NESTED, expressions)
    return _message(_NEW_RULE, body, _NLM_F_CREATE | _NLM_F_APPEND)


def _message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("=HHIIBxH", _SUBSYSTEM << 8 | kind, flags | _NLM_F_REQUEST, 0, 0, _NFPROTO_INET, 0) + body


def _commit(messages: Iterable[bytes]) -> None:
    """As one transaction, in the network namespace that we are in. OSError; then nothing of it was done."""
    bracket = struct.pack("=IIBxH", 0, 0, 0, socket.htons(_SUBSYSTEM))
    begin, end = (struct.pack("=HH", kind, _NLM_F_REQUEST) + bracket for kind in (_BATCH_BEGIN, _BATCH_END))
    *most, last = messages
    (flags,) = struct.unpack_from("=H", last, 2)
    last = last[:2] + struct.pack("=H", flags | _NLM_F_ACK) + last[4:]
    datagram = b"".join(struct.pack("=I", 4 + len(part)) + part for part in (begin, *most, last, end))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        sock.send(datagram)
        # The first answer is an error, or else the last message's acknowledgment, which is error 0.
        answer = sock.recv(65536)
    (kind,) = struct.unpack_from("=H", answer, 4)
    code = -struct.unpack_from("=i", answer, 16)[0] if kind == _NLMSG_ERROR else errno.EPROTO
    if code:
        raise OSError(code, os.strerror(code), "nf_tables")


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _data(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, attribute(1, value))

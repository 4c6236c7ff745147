"""Targets and matches of xtables, as legacy iptables and iptables-nft keep them: structures in host byte order.

linux/netfilter/nf_nat.h and xt_addrtype.h. Bytes too short for their structure are told by name only.
"""

from __future__ import annotations

import socket
import struct

from netns_graft.linux.nat_rules import Condition, Field

_TRANSLATING = {
    "SNAT": "snat",
    "DNAT": "dnat",
    "MASQUERADE": "masquerade",
    "REDIRECT": "redirect",
    "NETMAP": "netmap",
    "SAME": "same",
}
_MAP_IPS, _PROTO_SPECIFIED, _RANDOM, _PERSISTENT, _FULLY_RANDOM = 1, 2, 4, 8, 16
_RTN_LOCAL = 2


def translation(name: str, revision: int, data: bytes, ipv6: bool) -> str | None:
    """What a target does to addresses, in nft's words: "snat to 172.31.5.9"; None when it translates nothing."""
    word = _TRANSLATING.get(name)
    if word is None:
        return None
    if not ipv6 and revision == 0 and len(data) >= 20:
        # nf_nat_ipv4_multi_range_compat: count, flags, addresses, ports (both big-endian)
        flags = struct.unpack_from("=I", data, 4)[0]
        addresses, ports = (data[8:12], data[12:16]), struct.unpack_from("!HH", data, 16)
    elif len(data) >= 40:
        # nf_nat_range, nf_nat_range2: flags, addresses of 16 bytes, ports
        flags = struct.unpack_from("=I", data)[0]
        size = 16 if ipv6 else 4
        addresses, ports = (data[4 : 4 + size], data[20 : 20 + size]), struct.unpack_from("!HH", data, 36)
    else:
        return word
    where = "-".join(dict.fromkeys(address_text(one) for one in addresses)) if flags & _MAP_IPS else ""
    if flags & _PROTO_SPECIFIED:
        where += ":" + "-".join(dict.fromkeys(str(port) for port in ports))
    return word + (f" to {where}" if where else "") + flags_text(flags)


def flags_text(flags: int) -> str:
    words = ((_RANDOM, " random"), (_PERSISTENT, " persistent"), (_FULLY_RANDOM, " fully-random"))
    return "".join(word for bit, word in words if flags & bit)


def address_type_local(name: str, revision: int, data: bytes) -> list[Condition] | None:
    """``-m addrtype --src-type LOCAL`` and ``--dst-type LOCAL``, the common ones; None for any other match."""
    if name != "addrtype" or len(data) < 8:
        return None
    source, destination, *more = struct.unpack_from("=HHI" if revision else "=HHII", data.ljust(12, b"\0"))
    if revision:
        negated_source, negated_destination = bool(more[0] & 1), bool(more[0] & 2)
        if more[0] & ~3:
            return None  # limited to an interface: may hold or not
    else:
        negated_source, negated_destination = bool(more[0]), bool(more[1])
    if source not in (0, 1 << _RTN_LOCAL) or destination not in (0, 1 << _RTN_LOCAL):
        return None
    found = []
    for types, negated, field, word in (
        (source, negated_source, Field.SOURCE_IS_LOCAL, "saddr"),
        (destination, negated_destination, Field.DESTINATION_IS_LOCAL, "daddr"),
    ):
        if types:
            found.append(Condition(field, f"fib {word} type {'!= ' if negated else ''}local", negated))
    return found


def address_text(value: bytes) -> str:
    if len(value) == 4:
        return socket.inet_ntop(socket.AF_INET, value)
    if len(value) == 16:
        return socket.inet_ntop(socket.AF_INET6, value)
    return "0x" + value.hex()

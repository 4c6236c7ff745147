"""nftables as the kernel keeps it, by netlink dumps; no ``nft`` binary, and without a netlink library's 170 ms.

Three dumps (tables, chains, rules) and one per set that a rule looks up in. iptables-nft keeps its rules here too,
with targets in xtables' own structures. A rule is a list of expressions that load registers and compare them
(linux/netfilter/nf_tables.h); ``_Reader`` follows the registers and turns comparisons back into conditions. What it
does not know becomes ``Field.OTHER``, so no bytes can make it fail: fuzzed in tests/unit/doctor.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator

from netns_graft.linux import nft_expressions
from netns_graft.linux.nat_rules import Chain, Table
from netns_graft.linux.nft_expressions import Sets
from netns_graft.linux.nlattr import attributes, nested_list, number, text

_NETLINK_NETFILTER = 12
_SUBSYS_NFTABLES = 10
_GETTABLE, _GETCHAIN, _GETRULE, _GETSETELEM = 1, 4, 7, 13
_NLM_F_REQUEST, _NLM_F_DUMP = 1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP_INTR = 0x10
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_FAMILY_NUMBERS = {name: key for key, name in _FAMILIES.items()}
_HOOKS = {3: "output", 4: "postrouting"}
_DORMANT = 1
_MESSAGES_LIMIT = 200_000

Message = tuple[int, bytes]  # address family, attributes


def read() -> list[Table]:
    """The tables that translate addresses on output or postrouting, with every chain of theirs.

    Of the network namespace that the caller is in. Raises OSError: EPERM without CAP_NET_ADMIN in its owner.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    with sock:
        sock.settimeout(2.0)
        sock.bind((0, 0))
        found = tables(_dump(sock, _GETTABLE), _dump(sock, _GETCHAIN))
        if not found:
            return []
        rules = _dump(sock, _GETRULE)

        def ask(family: int, table: str, name: str) -> list[Message]:
            return _dump(sock, _GETSETELEM, family, _attribute(1, table) + _attribute(2, name))

        add_rules(found, rules, ask)
    return found


def tables(table_messages: list[Message], chain_messages: list[Message]) -> list[Table]:
    """Tables with a translating base chain, and their chains, still without rules. Dormant tables do nothing."""
    dormant = set()
    for family, data in table_messages:
        fields = attributes(data)
        if number(fields.get(2)) & _DORMANT:
            dormant.add((family, text(fields.get(1))))
    found: dict[tuple[int, str], Table] = {}
    for family, data in chain_messages:
        fields = attributes(data)
        name, table = text(fields.get(3)), text(fields.get(1))
        if family not in _FAMILIES or (family, table) in dormant:
            continue
        place = found.setdefault((family, table), Table(_FAMILIES[family], table, {}))
        chain = Chain(name, [])
        if 4 in fields and text(fields.get(7)) == "nat":
            hook = attributes(fields[4])
            chain.hook = _HOOKS.get(number(hook.get(1)))
            priority = number(hook.get(2))
            chain.priority = priority - (1 << 32) if priority >> 31 else priority
        place.chains[name] = chain
    return [table for table in found.values() if any(chain.hook for chain in table.chains.values())]


def add_rules(found: list[Table], rule_messages: list[Message], ask: Callable[[int, str, str], list[Message]]) -> None:
    """Put each rule into its chain. ``ask(family, table, set)`` dumps the elements of a set."""
    by_name = {(table.family, table.name): table for table in found}
    sets: dict[tuple[int, str], Sets] = {}
    for family, data in rule_messages:
        fields = attributes(data)
        name = text(fields.get(1))
        table = by_name.get((_FAMILIES.get(family, ""), name))
        chain = table.chains.get(text(fields.get(2))) if table else None
        if table is None or chain is None:
            continue
        known = sets.setdefault((family, name), Sets(_set_reader(family, name, ask)))
        chain.rules.append(nft_expressions.rule(table.family, nested_list(fields.get(4, b"")), known))


def _set_reader(
    family: int, table: str, ask: Callable[[int, str, str], list[Message]]
) -> Callable[[str], list[bytes] | None]:
    def elements(name: str) -> list[bytes] | None:
        try:
            messages = ask(family, table, name)
        except OSError:
            return None
        found: list[bytes] = []
        for _family, data in messages:
            found += nested_list(attributes(data).get(3, b""))
        return found

    return elements


def _attribute(kind: int, value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape") + b"\0"
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _dump(sock: socket.socket, message: int, family: int = 0, body: bytes = b"") -> list[Message]:
    kind = _SUBSYS_NFTABLES << 8 | message
    head = struct.pack("=IHHII", 20 + len(body), kind, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    sock.send(head + struct.pack("=BBH", family, 0, 0) + body)
    found: list[Message] = []
    while len(found) < _MESSAGES_LIMIT:
        for kind_seen, data in messages(sock.recv(1 << 20)):
            if kind_seen == _NLMSG_DONE:
                return found
            if kind_seen == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", data.ljust(4, b"\0"))[0]
                raise OSError(code, os.strerror(code), "nf_tables")
            if data:
                found.append((data[0], data[4:]))
    return found


def messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, payload) of each netlink message; what is cut short ends the walk."""
    offset = 0
    while offset + 16 <= len(datagram):
        length, kind = struct.unpack_from("=IH", datagram, offset)
        if length < 16 or offset + length > len(datagram):
            return
        yield kind, datagram[offset + 16 : offset + length]
        offset += (length + 3) & ~3

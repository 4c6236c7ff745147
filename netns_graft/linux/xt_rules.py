"""Legacy iptables (ip_tables, ip6_tables) as the kernel keeps it, without its binary.

The table is one blob: entries one after the other, each with an IP part, matches and a target; jumps are offsets into
the blob, and the chains of the user start with an entry whose target is "ERROR" and carries their name.
linux/netfilter_ipv4/ip_tables.h, x86-64 and arm64 layout (64-bit counters, aligned to 8).

Asking for a table that a network namespace does not have yet would *make* it, so only tables that
/proc/net/ip_tables_names lists are asked for: looking changes nothing.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from netns_graft.linux import xt_targets
from netns_graft.linux.nat_rules import Action, Chain, Condition, Field, Rule, Table, prefix_range

_GET_INFO, _GET_ENTRIES = 64, 65  # of SOL_IP and SOL_IPV6 alike
_HOOKS = {3: "output", 4: "postrouting"}
_HOOK_NAMES = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_RETURN_VERDICT = -5
_GOTO = 2
_INV_IN, _INV_OUT, _INV_SOURCE, _INV_DESTINATION, _INV_PROTOCOL = 1, 2, 8, 16, 64
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_BLOB_LIMIT = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True, frozen=True)
class Layout:
    """Where things stand in an entry: offsets in bytes."""

    family: str
    names: str  # the file that lists the tables
    address: int  # bytes of an address
    interfaces: int
    protocol: int
    flags: int
    offsets: int  # of target_offset and next_offset
    entry: int  # size of the head

    @property
    def level(self) -> int:
        return socket.IPPROTO_IP if self.address == 4 else socket.IPPROTO_IPV6


IPV4 = Layout("ip", "ip_tables_names", 4, 16, 80, 82, 88, 112)
IPV6 = Layout("ip6", "ip6_tables_names", 16, 64, 128, 131, 140, 168)


def read(layout: Layout) -> Table | None:
    """The nat table of the network namespace that the caller is in, or None when it has none.

    Raises OSError: EACCES or EPERM without CAP_NET_ADMIN in its owner, ENOENT where the kernel has no ip_tables.
    """
    with open(f"/proc/net/{layout.names}", encoding="ascii", errors="replace") as file:
        if "nat" not in file.read().split():
            return None
    family = socket.AF_INET if layout.address == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
        info = _get(sock.fileno(), layout, _GET_INFO, b"nat".ljust(32, b"\0"), 84)
        size = struct.unpack_from("=I", info, 80)[0]
        if size > _BLOB_LIMIT:
            raise OSError(27, "the nat table is too large to look at")
        head = b"nat".ljust(32, b"\0") + struct.pack("=II", size, 0)
        blob = _get(sock.fileno(), layout, _GET_ENTRIES, head, len(head) + size)[len(head) :]
    return parse(layout, info, blob)


def _get(fd: int, layout: Layout, option: int, question: bytes, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(question, size)
    length = ctypes.c_uint32(size)
    if _libc.getsockopt(fd, layout.level, option, buffer, ctypes.byref(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "getsockopt")
    return buffer.raw


def parse(layout: Layout, info: bytes, blob: bytes) -> Table:
    """The table in ``info`` (ipt_getinfo) and ``blob``. Any bytes give some table."""
    table = Table(layout.family, "nat", {})
    words = struct.unpack_from("=12I", info.ljust(84, b"\0"), 32)
    valid, hooks = words[0], words[1:6]
    starts = {hooks[number]: number for number in range(5) if valid >> number & 1}
    names: dict[int, str] = {offset: _HOOK_NAMES[number] for offset, number in starts.items()}
    entries = list(_entries(layout, blob))
    for offset, entry in entries:
        name, _revision, data = _target(layout, entry)
        if name == "ERROR" and offset + len(entry) < len(blob):
            names[offset + len(entry)] = _name(data)
    chain: Chain | None = None
    for offset, entry in entries:
        if offset in names:
            hook = starts.get(offset)
            chain = Chain(names[offset], [], _HOOKS.get(hook) if hook is not None else None)
            table.chains[chain.name] = chain
        if chain is not None and _target(layout, entry)[0] != "ERROR":
            chain.rules.append(_rule(layout, entry, offset, names))
    return table


def _entries(layout: Layout, blob: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + layout.entry <= len(blob):
        size = struct.unpack_from("=H", blob, offset + layout.offsets + 2)[0]
        if size < layout.entry or offset + size > len(blob):
            return
        yield offset, blob[offset : offset + size]
        offset += size


def _part(data: bytes, offset: int) -> tuple[str, int, bytes, int]:
    """xt_entry_match and xt_entry_target are alike: size, name, revision, data. Returns the size too, 0 if absent."""
    if offset + 32 > len(data):
        return "", 0, b"", 0
    size = struct.unpack_from("=H", data, offset)[0]
    return _name(data[offset + 2 : offset + 31]), data[offset + 31], data[offset + 32 : offset + size], size


def _target(layout: Layout, entry: bytes) -> tuple[str, int, bytes]:
    name, revision, data, _size = _part(entry, struct.unpack_from("=H", entry, layout.offsets)[0])
    return name, revision, data


def _rule(layout: Layout, entry: bytes, offset: int, names: dict[int, str]) -> Rule:
    conditions = _ip_conditions(layout, entry)
    place, end = layout.entry, struct.unpack_from("=H", entry, layout.offsets)[0]
    while place < end:
        name, revision, data, size = _part(entry, place)
        if size < 32:
            break
        local = xt_targets.address_type_local(name, revision, data)
        if local:
            conditions += local
        elif name != "comment":
            conditions.append(Condition(Field.OTHER, f"-m {name}"))
        place += size
    action, words, targets = _action(layout, entry, offset, names)
    text = " ".join(part for part in (*(one.text for one in conditions), words) if part)
    return Rule(text, tuple(conditions), action, targets)


def _action(
    layout: Layout, entry: bytes, offset: int, names: dict[int, str]
) -> tuple[Action, str, tuple[str, ...]]:
    name, revision, data = _target(layout, entry)
    if name:
        words = xt_targets.translation(name, revision, data, layout.address == 16)
        return (Action.TRANSLATE, words, ()) if words is not None else (Action.NONE, f"-j {name}", ())
    verdict = struct.unpack_from("=i", data.ljust(4, b"\0"))[0]
    if verdict == _RETURN_VERDICT:
        return Action.RETURN, "return", ()
    if verdict < 0:
        return Action.ACCEPT, "accept", ()
    if verdict in names:
        goto = bool(entry[layout.flags] & _GOTO)
        action = Action.GOTO if goto else Action.JUMP
        return action, f"{action.value} {names[verdict]}", (names[verdict],)
    return Action.NONE, "", ()  # to the next entry, whatever it is


def _ip_conditions(layout: Layout, entry: bytes) -> list[Condition]:
    size, place = layout.address, layout.interfaces
    inverted = entry[layout.flags + 1]
    found: list[Condition] = []
    for index, field, bit in ((0, Field.SOURCE, _INV_SOURCE), (1, Field.DESTINATION, _INV_DESTINATION)):
        address = entry[index * size : (index + 1) * size]
        mask = entry[(index + 2) * size : (index + 3) * size]
        negated = bool(inverted & bit)
        if not mask.strip(b"\0") and not negated:
            continue
        span = prefix_range(address, mask)
        words = f"{layout.family} {field.value} {'!= ' if negated else ''}"
        if span is None:
            found.append(Condition(Field.OTHER, words + "with a mask"))
        else:
            found.append(Condition(field, words + span.text(), negated, addresses=(span,)))
    for index, field, bit in ((0, Field.IN_INTERFACE, _INV_IN), (1, Field.OUT_INTERFACE, _INV_OUT)):
        name = entry[place + index * 16 : place + index * 16 + 16]
        mask = entry[place + 32 + index * 16 : place + 32 + index * 16 + 16]
        negated = bool(inverted & bit)
        if not mask.strip(b"\0") and not negated:
            continue
        compared = len(mask.rstrip(b"\0"))
        # When the NUL is not compared it is a prefix ("eth+", stored with its plus sign).
        shown = _name(name) if compared > len(_name(name)) else _name(name[:compared]) + "*"
        words = f'{field.value} {"!= " if negated else ""}"{shown}"'
        found.append(Condition(field, words, negated, interfaces=(shown,)))
    protocol = struct.unpack_from("=H", entry, layout.protocol)[0]
    if protocol:
        sign = "!= " if inverted & _INV_PROTOCOL else ""
        found.append(Condition(Field.OTHER, f"meta l4proto {sign}{_PROTOCOLS.get(protocol, protocol)}"))
    return found


def _name(data: bytes) -> str:
    return data.split(b"\0")[0].decode(errors="backslashreplace")

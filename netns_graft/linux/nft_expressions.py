"""One nftables rule, expression by expression: registers followed, comparisons turned back into conditions.

Kernel facts: nft shortens a match on a prefix of whole bytes to a load of just those bytes; any other prefix is a
bitwise AND before the comparison. An interface name compared with fewer than 16 bytes and no NUL is a prefix.
Registers 1 to 4 hold 16 bytes; a longer key (a concatenation) is not followed, and counts as a condition that may
hold. Numbers of attributes: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from netns_graft.linux import xt_targets
from netns_graft.linux.nat_rules import (
    Action,
    AddressRange,
    Condition,
    Field,
    Rule,
    conditions_text,
    interface_text,
    prefix_range,
)
from netns_graft.linux.nlattr import attributes, number, text

_EQ, _NEQ, _LT, _LTE, _GT, _GTE = range(6)
_OPERATORS = {_EQ: "==", _NEQ: "!=", _LT: "<", _LTE: "<=", _GT: ">", _GTE: ">="}
_META = {
    6: Field.IN_INTERFACE,
    7: Field.OUT_INTERFACE,
    15: Field.IP_VERSION,
}
_META_NAMES = {3: "mark", 4: "iif", 5: "oif", 8: "iiftype", 9: "oiftype", 10: "skuid", 11: "skgid", 16: "l4proto"}
_CT_NAMES = {0: "ct state", 1: "ct direction", 2: "ct status", 3: "ct mark"}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
_NFPROTO_VERSIONS = {2: 4, 10: 6}
_FIB_RESULT_ADDRESS_TYPE = 3
_ADDRESS_TYPE_LOCAL = 2
_INTERVAL_END = 1
# NF_DROP, NF_ACCEPT, …; then nf_tables' own, negative
_JUMP, _GOTO, _RETURN, _CONTINUE, _BREAK = -3, -4, -5, -1, -2
_VERDICTS = {
    _JUMP: Action.JUMP,
    _GOTO: Action.GOTO,
    _RETURN: Action.RETURN,
    _CONTINUE: Action.NONE,
    _BREAK: Action.NONE,
}


class Sets:
    """Elements of a table's sets, each asked for once. ``read`` gives None when the kernel would not tell."""

    def __init__(self, read: Callable[[str], list[bytes] | None]) -> None:
        self._read = read
        self._known: dict[str, list[bytes] | None] = {}

    def elements(self, name: str) -> list[bytes] | None:
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]


@dataclass(slots=True)
class _Loaded:
    """What a register holds: a packet's field, or ``value`` when it was set to a constant."""

    field: Field
    name: str
    length: int = 0
    mask: bytes | None = None
    value: bytes | None = None


def rule(family: str, expressions: list[bytes], sets: Sets) -> Rule:
    """The rule that these expressions make."""
    reader = _Reader(family, sets)
    for expression in expressions:
        fields = attributes(expression)
        reader.take(text(fields.get(1)), attributes(fields.get(2, b"")))
    return reader.finish()


class _Reader:
    def __init__(self, family: str, sets: Sets) -> None:
        self._family = family
        self._sets = sets
        self._registers: dict[int, _Loaded] = {}
        self._conditions: list[Condition] = []
        self._action = Action.NONE
        self._targets: tuple[str, ...] = ()
        self._action_text = ""

    def finish(self) -> Rule:
        words = f"{conditions_text(self._conditions)} {self._action_text}".strip()
        return Rule(words, tuple(self._conditions), self._action, self._targets)

    def take(self, name: str, fields: dict[int, bytes]) -> None:
        step = _STEPS.get(name)
        if step is not None:
            step(self, fields)
        elif name not in _WITHOUT_CONDITION:
            self._other(name)

    # Loads

    def _meta(self, fields: dict[int, bytes]) -> None:
        if 1 not in fields:
            return  # it sets a mark and the like
        key = number(fields.get(2))
        field = _META.get(key, Field.OTHER)
        name = field.value if field is not Field.OTHER else f"meta {_META_NAMES.get(key, str(key))}"
        self._registers[number(fields[1])] = _Loaded(field, name)

    def _payload(self, fields: dict[int, bytes]) -> None:
        if 1 not in fields:
            return
        base, offset, length = (number(fields.get(kind)) for kind in (2, 3, 4))
        field, name = Field.OTHER, f"@{base},{offset * 8},{length * 8}"
        # IPv4 addresses lie at 12 and 16 of the network header, IPv6 addresses at 8 and 24.
        if base == 1 and length <= 4 and offset in (12, 16) and not self._is_ipv6():
            field = Field.SOURCE if offset == 12 else Field.DESTINATION
            name = f"ip {field.value}"
        elif base == 1 and offset in (8, 24) and self._is_ipv6():
            field = Field.SOURCE if offset == 8 else Field.DESTINATION
            name = f"ip6 {field.value}"
        elif base == 2 and length == 2 and offset in (0, 2):
            name = "sport" if offset == 0 else "dport"
        self._registers[number(fields[1])] = _Loaded(field, name, length)

    def _is_ipv6(self) -> bool:
        # In a table of both families the version stands in the rule, before any address.
        asked = [one for one in self._conditions if one.field is Field.IP_VERSION and not one.negated]
        return self._family == "ip6" or any(one.version == 6 for one in asked)

    def _fib(self, fields: dict[int, bytes]) -> None:
        flags, result = number(fields.get(3)), number(fields.get(2))
        field, name = Field.OTHER, "fib"
        if result == _FIB_RESULT_ADDRESS_TYPE and flags in (1, 2):
            field = Field.SOURCE_IS_LOCAL if flags == 1 else Field.DESTINATION_IS_LOCAL
            name = f"fib {'saddr' if flags == 1 else 'daddr'} type"
        self._registers[number(fields.get(1))] = _Loaded(field, name)

    def _bitwise(self, fields: dict[int, bytes]) -> None:
        source = self._registers.get(number(fields.get(1)))
        mask, flip = _value(fields.get(4, b"")), _value(fields.get(5, b""))
        if source is None or source.mask is not None or flip.strip(b"\0") or not mask:
            self._registers[number(fields.get(2))] = _Loaded(Field.OTHER, "bits")
            return
        if source.field is Field.OTHER:
            words = f"{source.name} & 0x{mask.hex()}"
            self._registers[number(fields.get(2))] = _Loaded(Field.OTHER, words, source.length, mask)
            return
        self._registers[number(fields.get(2))] = _Loaded(source.field, source.name, source.length, mask)

    def _ct(self, fields: dict[int, bytes]) -> None:
        key = number(fields.get(2))
        self._registers[number(fields.get(1))] = _Loaded(Field.OTHER, _CT_NAMES.get(key, "ct"))

    # Comparisons

    def _cmp(self, fields: dict[int, bytes]) -> None:
        loaded = self._registers.get(number(fields.get(1)))
        operator, value = number(fields.get(2)), _value(fields.get(3, b""))
        if loaded is None or operator not in _OPERATORS or not value:
            self._other(loaded.name if loaded else "cmp")
        elif operator in (_EQ, _NEQ):
            self._compare(loaded, value, operator == _NEQ)
        else:
            self._order(loaded, value, operator)

    def _order(self, loaded: _Loaded, value: bytes, operator: int) -> None:
        """Two of these make a range: ``>= first`` and ``<= last``."""
        bound = int.from_bytes(value)
        if loaded.field not in (Field.SOURCE, Field.DESTINATION) or len(value) not in (4, 16) or loaded.mask:
            self._other(f"{loaded.name} {_OPERATORS[operator]} {bound}")
            return
        end = (1 << len(value) * 8) - 1
        first, last = {
            _LT: (0, bound - 1), _LTE: (0, bound), _GT: (bound + 1, end), _GTE: (bound, end)
        }[operator]  # fmt: skip
        span = AddressRange(4 if len(value) == 4 else 6, first, last)
        words = f"{loaded.name} {_OPERATORS[operator]} {xt_targets.address_text(value)}"
        self._conditions.append(Condition(loaded.field, words, addresses=(span,)))

    def _compare(self, loaded: _Loaded, value: bytes, negated: bool) -> None:
        sign = "!= " if negated else ""
        if loaded.field in (Field.IN_INTERFACE, Field.OUT_INTERFACE) and loaded.mask is None:
            name = interface_text(value)
            self._conditions.append(
                Condition(loaded.field, f'{loaded.name} {sign}"{name}"', negated, interfaces=(name,))
            )
        elif loaded.field is Field.IP_VERSION and value[0] in _NFPROTO_VERSIONS:
            version = _NFPROTO_VERSIONS[value[0]]
            self._conditions.append(Condition(loaded.field, "", negated, version=version))
        elif loaded.field in (Field.SOURCE, Field.DESTINATION) and (found := _prefix(loaded, value)):
            words = f"{loaded.name} {sign}{found.text()}"
            self._conditions.append(Condition(loaded.field, words, negated, addresses=(found,)))
        elif (
            loaded.field in (Field.SOURCE_IS_LOCAL, Field.DESTINATION_IS_LOCAL)
            and int.from_bytes(value, sys.byteorder) == _ADDRESS_TYPE_LOCAL
        ):
            self._conditions.append(Condition(loaded.field, f"{loaded.name} {sign}local", negated))
        elif loaded.name == "meta l4proto":
            self._other(f"meta l4proto {sign}{_PROTOCOLS.get(value[0], value[0])}")
        elif loaded.name in ("sport", "dport"):
            self._other(f"{loaded.name} {sign}{int.from_bytes(value)}")
        elif loaded.name.startswith("meta ") and len(value) == 4:
            self._other(f"{loaded.name} {sign}{int.from_bytes(value, sys.byteorder)}")
        else:
            self._other(f"{loaded.name} {sign}0x{value.hex()}")

    def _range(self, fields: dict[int, bytes]) -> None:
        loaded = self._registers.get(number(fields.get(1)))
        first, last = _value(fields.get(3, b"")), _value(fields.get(4, b""))
        if loaded is None or not first or len(first) != len(last):
            self._other("range")
        elif loaded.field in (Field.SOURCE, Field.DESTINATION) and len(first) in (4, 16):
            negated = number(fields.get(2)) == _NEQ
            found = AddressRange(4 if len(first) == 4 else 6, int.from_bytes(first), int.from_bytes(last))
            words = f"{loaded.name} {'!= ' if negated else ''}{found.text()}"
            self._conditions.append(Condition(loaded.field, words, negated, addresses=(found,)))
        else:
            self._other(f"{loaded.name} {int.from_bytes(first)}-{int.from_bytes(last)}")

    def _lookup(self, fields: dict[int, bytes]) -> None:
        loaded = self._registers.get(number(fields.get(2)))
        name, negated = text(fields.get(1)), bool(number(fields.get(5)) & 1)
        words = f"{loaded.name if loaded else ''} {'!= ' if negated else ''}@{name}".strip()
        elements = self._sets.elements(name)
        if 3 in fields:
            self._map(fields, words, elements)
        elif loaded is None or elements is None or loaded.mask is not None:
            self._other(words)
        elif loaded.field in (Field.IN_INTERFACE, Field.OUT_INTERFACE) and not _has_intervals(elements):
            names = tuple(sorted(interface_text(key) for key in map(_key, elements) if key))
            shown = ", ".join(f'"{one}"' for one in names)
            words = f"{loaded.name} {'!= ' if negated else ''}{{ {shown} }}"
            self._conditions.append(Condition(loaded.field, words, negated, interfaces=names))
        elif loaded.field in (Field.SOURCE, Field.DESTINATION) and (found := _ranges(elements, loaded)) is not None:
            words = f"{loaded.name} {'!= ' if negated else ''}{{ {', '.join(one.text() for one in found)} }}"
            self._conditions.append(Condition(loaded.field, words, negated, addresses=found))
        else:
            self._other(words)

    def _map(self, fields: dict[int, bytes], words: str, elements: list[bytes] | None) -> None:
        """A map. With the verdict register as its end, it decides between chains: each may be the one."""
        if number(fields[3]) != 0:
            self._registers[number(fields[3])] = _Loaded(Field.OTHER, words)
            return
        targets = []
        for element in elements or ():
            action, chain = _verdict(attributes(attributes(element).get(2, b"")).get(2, b""))
            if action in (Action.JUMP, Action.GOTO):
                targets.append(chain)
        self._other(words)
        self._act(Action.JUMP, f"vmap {{ {', '.join(dict.fromkeys(targets))} }}", tuple(dict.fromkeys(targets)))

    def _match(self, fields: dict[int, bytes]) -> None:
        name = text(fields.get(1))
        if name == "comment":
            return
        local = xt_targets.address_type_local(name, number(fields.get(2)), fields.get(3, b""))
        if local:
            self._conditions.extend(local)
        else:
            self._other(f"-m {name}")

    # What happens

    def _immediate(self, fields: dict[int, bytes]) -> None:
        data = attributes(fields.get(2, b""))
        if 2 in data:
            action, chain = _verdict(data[2])
            self._act(action, f"{action.value} {chain}".strip(), (chain,) if chain else ())
        else:
            value = data.get(1, b"")
            self._registers[number(fields.get(1))] = _Loaded(Field.OTHER, "", value=value)

    def _nat(self, fields: dict[int, bytes]) -> None:
        words = "dnat" if number(fields.get(1)) else "snat"
        self._act(Action.TRANSLATE, words + self._to(fields.get(3), fields.get(4), fields.get(5), fields.get(6)))

    def _masq(self, fields: dict[int, bytes]) -> None:
        flags = number(fields.get(1))
        words = "masquerade" + self._to(None, None, fields.get(2), fields.get(3))
        self._act(Action.TRANSLATE, words + xt_targets.flags_text(flags))

    def _redir(self, fields: dict[int, bytes]) -> None:
        self._act(Action.TRANSLATE, "redirect" + self._to(None, None, fields.get(1), fields.get(2)))

    def _target(self, fields: dict[int, bytes]) -> None:
        name = text(fields.get(1))
        words = xt_targets.translation(name, number(fields.get(2)), fields.get(3, b""), self._family == "ip6")
        if words is not None:
            self._act(Action.TRANSLATE, words)
        elif name in ("ERROR", "REJECT", "NFQUEUE"):
            self._act(Action.ACCEPT, name)

    def _to(
        self, first: bytes | None, last: bytes | None, port: bytes | None, last_port: bytes | None
    ) -> str:
        """" to 172.31.5.9:40000-40010", from registers that were set to constants."""
        addresses = [xt_targets.address_text(value) for value in self._constants(first, last)]
        ports = [str(int.from_bytes(value[:2])) for value in self._constants(port, last_port)]
        where = "-".join(dict.fromkeys(addresses)) + (":" + "-".join(dict.fromkeys(ports)) if ports else "")
        return f" to {where}" if where else ""

    def _constants(self, *registers: bytes | None) -> list[bytes]:
        values = [self._registers.get(number(register)) for register in registers if register is not None]
        return [loaded.value for loaded in values if loaded is not None and loaded.value]

    def _act(self, action: Action, words: str, targets: tuple[str, ...] = ()) -> None:
        if action is not Action.NONE and self._action is Action.NONE:
            self._action, self._action_text, self._targets = action, words, targets

    def _ends(self, _fields: dict[int, bytes]) -> None:
        self._act(Action.ACCEPT, "reject")

    def _other(self, words: str) -> None:
        self._conditions.append(Condition(Field.OTHER, words))


_STEPS: dict[str, Callable[[_Reader, dict[int, bytes]], None]] = {
    "meta": _Reader._meta,
    "payload": _Reader._payload,
    "fib": _Reader._fib,
    "bitwise": _Reader._bitwise,
    "ct": _Reader._ct,
    "cmp": _Reader._cmp,
    "range": _Reader._range,
    "lookup": _Reader._lookup,
    "match": _Reader._match,
    "immediate": _Reader._immediate,
    "nat": _Reader._nat,
    "masq": _Reader._masq,
    "redir": _Reader._redir,
    "target": _Reader._target,
    "reject": _Reader._ends,
    "queue": _Reader._ends,
}
_WITHOUT_CONDITION = frozenset({"counter", "log", "notrack", "last", "objref", "dup", "synproxy", "ct_timeout"})


def _value(data: bytes) -> bytes:
    return attributes(data).get(1, b"")


def _key(element: bytes) -> bytes:
    return _value(attributes(element).get(1, b""))


def _verdict(data: bytes) -> tuple[Action, str]:
    fields = attributes(data)
    code = number(fields.get(1))
    code -= (1 << 32) if code >> 31 else 0
    return _VERDICTS.get(code, Action.ACCEPT), text(fields.get(2))


def _prefix(loaded: _Loaded, value: bytes) -> AddressRange | None:
    size = 16 if loaded.name.startswith("ip6") else 4
    mask = (loaded.mask or b"\xff" * len(value)).ljust(size, b"\0")
    if len(value) > size or len(mask) > size:
        return None
    return prefix_range(value.ljust(size, b"\0"), mask)


def _has_intervals(elements: list[bytes]) -> bool:
    return any(number(attributes(element).get(3)) & _INTERVAL_END or 10 in attributes(element) for element in elements)


def _ranges(elements: list[bytes], loaded: _Loaded) -> tuple[AddressRange, ...] | None:
    """Addresses of a set. In an interval set each element starts a range that ends before the next end mark."""
    marks: list[tuple[int, bool]] = []
    size = 16 if loaded.name.startswith("ip6") else 4
    for element in elements:
        key, fields = _key(element), attributes(element)
        if len(key) != size or 10 in fields:
            return None  # a concatenation
        marks.append((int.from_bytes(key), bool(number(fields.get(3)) & _INTERVAL_END)))
    version = 4 if size == 4 else 6
    if not any(end for _, end in marks):
        return tuple(AddressRange(version, first, first) for first, _ in sorted(marks))
    found: list[AddressRange] = []
    start: int | None = None
    for mark, end in sorted(marks, key=lambda item: (item[0], not item[1])):
        if start is not None:
            found.append(AddressRange(version, start, mark - 1))
        start = None if end else mark
    if start is not None:
        found.append(AddressRange(version, start, (1 << size * 8) - 1))
    return tuple(found)



"""Rules that translate addresses, whoever keeps them: nftables (``nft_rules``) or legacy iptables (``xt_rules``).

The two readers reduce what the kernel keeps to the few things that decide whether a rule may touch a connection of
this host with itself: interfaces, addresses, and what happens then. Everything else is ``Field.OTHER``: a condition
that may hold or not. The text is kept beside it, for people.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum


class Field(Enum):
    """What a condition looks at."""

    OUT_INTERFACE = "oifname"
    IN_INTERFACE = "iifname"
    SOURCE = "saddr"
    DESTINATION = "daddr"
    SOURCE_IS_LOCAL = "saddr local"
    DESTINATION_IS_LOCAL = "daddr local"
    IP_VERSION = "version"
    OTHER = "other"


@dataclass(slots=True, frozen=True)
class AddressRange:
    """Addresses as numbers, both ends included; ``version`` 4 or 6."""

    version: int
    first: int
    last: int

    def text(self) -> str:
        bits = 32 if self.version == 4 else 128
        size = self.last - self.first + 1
        if size > 0 and size & (size - 1) == 0 and self.first % size == 0:
            length = bits - (size.bit_length() - 1)
            return _address(self.version, self.first) + (f"/{length}" if length < bits else "")
        return f"{_address(self.version, self.first)}-{_address(self.version, self.last)}"


def prefix_range(address: bytes, mask: bytes) -> AddressRange | None:
    """The range that ``mask`` leaves of ``address``; None for a mask with holes. 4 or 16 bytes each."""
    bits = len(address) * 8
    first, number = int.from_bytes(address), int.from_bytes(mask)
    hosts = (1 << bits) - 1 - number
    if hosts & (hosts + 1):
        return None
    first &= number
    return AddressRange(4 if bits == 32 else 6, first, first | hosts)


def _address(version: int, number: int) -> str:
    if version == 4:
        return socket.inet_ntop(socket.AF_INET, number.to_bytes(4))
    return socket.inet_ntop(socket.AF_INET6, number.to_bytes(16))


@dataclass(slots=True, frozen=True)
class Condition:
    """One thing that a rule asks of a packet. ``interfaces`` may end in "*"; ``version`` is for IP_VERSION."""

    field: Field
    text: str
    negated: bool = False
    interfaces: tuple[str, ...] = ()
    addresses: tuple[AddressRange, ...] = ()
    version: int = 0


class Action(StrEnum):
    TRANSLATE = "translate"
    ACCEPT = "accept"  # drop, queue and the like too: no later rule of this hook is asked
    RETURN = "return"
    JUMP = "jump"
    GOTO = "goto"
    NONE = "none"


@dataclass(slots=True, frozen=True)
class Rule:
    """``text`` is what follows the chain's name when the rule is printed. ``targets``: chains to jump to; more than
    one when a verdict map decides between them."""

    text: str
    conditions: tuple[Condition, ...]
    action: Action
    targets: tuple[str, ...] = ()


@dataclass(slots=True)
class Chain:
    """``hook``: "output" or "postrouting" for a base chain that translates there, else None."""

    name: str
    rules: list[Rule]
    hook: str | None = None
    priority: int = 0


@dataclass(slots=True)
class Table:
    """``family`` as nft prints it: "ip", "ip6" or "inet"."""

    family: str
    name: str
    chains: dict[str, Chain]


def interface_text(name: bytes) -> str:
    """An interface name as the kernel compares it: NUL-terminated means exact, else a prefix, shown with "*"."""
    text = name.split(b"\0")[0].decode(errors="backslashreplace")
    return text if b"\0" in name or len(name) >= 16 else f"{text}*"


def conditions_text(conditions: Iterable[Condition]) -> str:
    return " ".join(condition.text for condition in conditions if condition.text)

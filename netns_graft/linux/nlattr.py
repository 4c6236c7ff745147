"""Netlink attributes: type, length, value, padded to four bytes. Any bytes give a (perhaps empty) result."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_TYPE_MASK = 0x3FFF  # the two high bits say "nested" and "network byte order"
_HEAD = struct.Struct("=HH")


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _HEAD.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _walk(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _HEAD.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes by their type; of several with one type the last."""
    return dict(_walk(data))


def nested_list(data: bytes) -> list[bytes]:
    """The elements of a list attribute (type 1 each), in order."""
    return [value for kind, value in _walk(data) if kind == 1]


def number(value: bytes | None) -> int:
    """A number as nf_tables sends them, big-endian; 0 when absent."""
    return int.from_bytes(value or b"")


def text(value: bytes | None) -> str:
    """A NUL-terminated string; "" when absent. Bytes that are not UTF-8 survive as surrogates."""
    return (value or b"").split(b"\0")[0].decode("utf-8", "surrogateescape")

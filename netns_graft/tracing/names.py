"""Addresses written into a program's memory just as the kernel writes them, and a few that replace the kernel's."""

from __future__ import annotations

import struct
from errno import EFAULT, EINVAL, ESRCH

from netns_graft.tracing.call import Call
from netns_graft.wire.sockaddr import Address, build

_INT = struct.Struct("=i")


def number_at(call: Call, address: int) -> int:
    """The int at ``address``. OSError."""
    number: int = _INT.unpack(call.read(address, 4))[0]
    return number


def number_to(call: Call, address: int, number: int) -> None:
    call.write(address, _INT.pack(number))


def has_room(call: Call, length_place: int) -> bool:
    """Is there a length, and not a negative one?"""
    try:
        return number_at(call, length_place) >= 0
    except OSError:
        return False


def give_bytes(call: Call, value: bytes, place: int, length_place: int, *, told: int | None = None) -> None:
    """Answer a getsockname(), getpeername() or getsockopt(): as much as there is room for, then the length (or what
    fits, when ``told`` says so); EINVAL for a negative room, EFAULT for memory that is not there.
    """
    try:
        room = number_at(call, length_place)
        if room < 0:
            call.answer(-EINVAL)
            return
        if room:
            call.write(place, value[:room])
        number_to(call, length_place, len(value) if told is None else min(room, told))
    except OSError as error:
        if error.errno != ESRCH:
            call.answer(-EFAULT)
        return
    call.answer(0)


def give_name(call: Call, address: Address) -> None:
    """Answer a getsockname() or getpeername()."""
    give_bytes(call, build(address), call.args[1], call.args[2])


def give_number(call: Call, number: int) -> None:
    """Answer a getsockopt() of an int: less of it where less fits, and that length."""
    give_bytes(call, _INT.pack(number), call.args[3], call.args[4], told=_INT.size)

"""Network calls just as C makes them, for what Python's ``socket`` smooths over: errors are negative results."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

_libc = ctypes.CDLL(None, use_errno=True)
BAD_ADDRESS = 16  # in the first page, which is never mapped


def called(name: str, *args: object) -> int:
    """The result of a libc function, or -errno."""
    ctypes.set_errno(0)
    result: int = getattr(_libc, name)(*args)
    return -ctypes.get_errno() if result < 0 else result


def inet(address: str, port: int, scope: int = 0) -> bytes:
    """A sockaddr_in or sockaddr_in6."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        return struct.pack("=H2sI", socket.AF_INET6, port.to_bytes(2), 0) + packed + struct.pack("=I", scope)
    return struct.pack("=H2s", socket.AF_INET, port.to_bytes(2)) + socket.inet_aton(address) + bytes(8)


UNSPECIFIED = bytes(16)


def connect(sock: socket.socket, name: bytes, length: int | None = None) -> int:
    return called("connect", sock.fileno(), name, len(name) if length is None else length)


def name_of(call: str, sock: socket.socket, room: int, *, place: int | None = None, told: bool = True) -> object:
    """getsockname() or getpeername() into ``room`` bytes: (result, length told, the bytes, untouched ones as U)."""
    buffer, length = ctypes.create_string_buffer(b"U" * 64, 64), ctypes.c_int(room)
    result = called(
        call, sock.fileno(),
        ctypes.c_void_p(place) if place else buffer,
        ctypes.byref(length) if told else ctypes.c_void_p(BAD_ADDRESS),
    )  # fmt: skip
    return result, length.value, buffer.raw


def error_of(sock: socket.socket, room: int = 4, *, place: int | None = None) -> object:
    """SO_ERROR: (result, length told, the bytes)."""
    buffer, length = ctypes.create_string_buffer(b"U" * 8, 8), ctypes.c_int(room)
    target = ctypes.c_void_p(place) if place else buffer
    result = called(
        "getsockopt", sock.fileno(), socket.SOL_SOCKET, socket.SO_ERROR, target, ctypes.byref(length)
    )
    return result, length.value, buffer.raw


class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("size", ctypes.c_size_t))


class Header(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("name_length", ctypes.c_uint), ("vectors", ctypes.POINTER(Vector)),
        ("count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )  # fmt: skip


class Message(ctypes.Structure):
    _fields_ = (("header", Header), ("length", ctypes.c_uint))


def sendmmsg(sock: socket.socket, *messages: tuple[bytes, bytes | None]) -> tuple[int, list[int]]:
    """(payload, name or None) each. Returns the result and each message's msg_len."""
    array = (Message * len(messages))()
    for one, (payload, name) in zip(array, messages, strict=True):
        one.header.vectors = (Vector * 2)(Vector(payload[:1], 1), Vector(payload[1:], len(payload) - 1))
        one.header.count = 2
        if name is not None:
            one.header.name, one.header.name_length = name, len(name)
    result = called("sendmmsg", sock.fileno(), array, len(messages), 0)
    return result, [one.length for one in array]


def recvmmsg(sock: socket.socket, count: int) -> list[tuple[bytes, bytes]]:
    """(payload, name) of each of ``count`` messages, all of which are waited for."""
    array, rooms = (Message * count)(), []
    for one in array:
        payload, name = ctypes.create_string_buffer(512), ctypes.create_string_buffer(28)
        rooms.append((payload, name))
        one.header.vectors = (Vector * 1)(Vector(ctypes.cast(payload, ctypes.c_char_p), 512))
        one.header.count = 1
        one.header.name, one.header.name_length = ctypes.cast(name, ctypes.c_char_p), 28
    result = called("recvmmsg", sock.fileno(), array, count, 0, None)
    assert result == count, os.strerror(-result)
    return [
        (payload.raw[: one.length], name.raw[: one.header.name_length])
        for one, (payload, name) in zip(array, rooms, strict=True)
    ]

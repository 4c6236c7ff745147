"""Two things about sockets that Python's ``socket`` does not offer: dissolving an association, and hearing nobody."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

_SO_ATTACH_FILTER = 26
_UNSPECIFIED = struct.pack("=H14x", socket.AF_UNSPEC)
_DROP = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # classic BPF: return 0, nothing passes

_libc = ctypes.CDLL(None, use_errno=True)
_libc.connect.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def drop_everything(sock: socket.socket) -> None:
    """No packet reaches ``sock`` from now on: a listener so filtered leaves every SYN without an answer. Needs no
    privilege. OSError.
    """
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(_DROP)))


def disconnect(sock: socket.socket) -> None:
    """``connect()`` with AF_UNSPEC: a TCP socket becomes a fresh one (bound as its program bound it), whatever it was
    doing; a UDP socket has no peer any more. Who waits on it is woken. OSError.
    """
    if _libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "connect")

"""What Python's ``socket`` does not offer: dissolving an association."""

from __future__ import annotations

import ctypes
import os
import socket
import struct

_UNSPECIFIED = struct.pack("=H14x", socket.AF_UNSPEC)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.connect.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def disconnect(sock: socket.socket) -> None:
    """``connect()`` with AF_UNSPEC: a TCP socket becomes a fresh one (bound as its program bound it), whatever it was
    doing; a UDP socket has no peer any more. Who waits on it is woken. OSError.
    """
    if _libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "connect")

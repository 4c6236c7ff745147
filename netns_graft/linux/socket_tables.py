"""/proc/net/{tcp,tcp6,udp,udp6} of one network namespace: who has these addresses, when sock_diag is not to be asked.

Milliseconds: the kernel walks its whole hash table to print them, some 90 bytes a socket, and Python looks for one
line in that. The text is therefore kept and serves every question that was pending before it was read.

Kernel facts: an open descriptor stays with the namespace in which it was opened. A table is read in pieces, between
which the kernel finds its place again by counting; a socket that is closed meanwhile can make it miss another. So a
miss is only believed after it has happened on several readings.
"""

from __future__ import annotations

import os
import socket
import struct
import time

from netns_graft.linux.conntrack import Tuple
from netns_graft.linux.sock_diag import SocketOwner

_NAMES = ("tcp", "tcp6", "udp", "udp6")
_READINGS = 4
_PIECE = 1 << 16
_MAPPED = b"\0" * 10 + b"\xff\xff"
_LISTENING = "0A"


class SocketTables:
    """The tables of the namespace that the calling thread is in when it makes this. Owns their descriptors."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._texts: dict[str, tuple[float, bytes]] = {}  # monotonic seconds before the reading
        for name in _NAMES:
            try:
                self._fds[name] = os.open(f"/proc/thread-self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pass  # a kernel without IPv6

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._texts.clear()

    def find(self, protocol: int, own: Tuple, since: float) -> list[SocketOwner]:
        """The sockets that may have sent a packet with these addresses: one, none, or for UDP several.

        ``since``: the packet had been sent by then (monotonic seconds), so a text that was read later will do.
        """
        ask = self._tcp if protocol == socket.IPPROTO_TCP else self._udp
        for _ in range(_READINGS):
            found = ask(own, since)
            if found:
                return found
            since = time.monotonic()
        return []

    def _tcp(self, own: Tuple, since: float) -> list[SocketOwner]:
        questions = [("tcp" if len(own.source) == 4 else "tcp6", own.source, own.target)]
        if len(own.source) == 4:
            questions.append(("tcp6", _MAPPED + own.source, _MAPPED + own.target))
        for name, source, target in questions:
            ends = f": {_hex(source)}:{own.source_port:04X} {_hex(target)}:{own.target_port:04X} "
            for fields in self._lines(name, ends.encode(), since):
                inode = int(fields[9])
                if inode and fields[3] != _LISTENING:
                    return [SocketOwner(inode, int(fields[7]))]
        return []

    def _udp(self, own: Tuple, since: float) -> list[SocketOwner]:
        """A socket connected to the target is the sender. Else any on the port that may use the address is."""
        port, far = f"{own.source_port:04X}", f"{own.target_port:04X}"
        tables = [("udp6", own.source, own.target)]
        if len(own.source) == 4:
            mapped = ("udp6", _MAPPED + own.source, _MAPPED + own.target)
            tables = [("udp", own.source, own.target), mapped]
        possible: dict[int, SocketOwner] = {}
        for name, source, target in tables:
            local, remote = _hex(source), _hex(target)
            nowhere = "0" * len(local)
            for fields in self._lines(name, f":{port} ".encode(), since):
                address, _, own_port = fields[1].partition(":")
                inode = int(fields[9])
                if own_port != port or address not in (local, nowhere) or not inode:
                    continue
                owner = SocketOwner(inode, int(fields[7]))
                if fields[2] == f"{remote}:{far}":
                    return [owner]
                possible[inode] = owner
        return list(possible.values())

    def _lines(self, name: str, part: bytes, since: float) -> list[list[str]]:
        """The lines that hold ``part``, split."""
        text = self._text(name, since)
        found = []
        at = text.find(part)
        while at >= 0:
            begin, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
            if end < 0:
                break
            fields = text[begin:end].decode("ascii", "replace").split()
            if len(fields) > 9:
                found.append(fields)
            at = text.find(part, end)
        return found

    def _text(self, name: str, since: float) -> bytes:
        known = self._texts.get(name)
        if known is not None and known[0] >= since:
            return known[1]
        fd = self._fds.get(name)
        if fd is None:
            return b""
        begin = time.monotonic()
        os.lseek(fd, 0, os.SEEK_SET)
        pieces = []
        while piece := os.read(fd, _PIECE):
            pieces.append(piece)
        text = b"".join(pieces)
        self._texts[name] = (begin, text)
        return text


def _hex(address: bytes) -> str:
    # The kernel prints each 32-bit word of the address in host byte order.
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(address) // 4}I", address))

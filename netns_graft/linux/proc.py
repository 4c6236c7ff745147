"""/proc: who holds a socket, what that process is, and the socket tables as text.

Processes come and go while we look. So every function says with None or an empty result that something was gone, and
only a /proc that cannot be read at all is an ``OSError``. File names and arguments are decoded with surrogateescape.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_TABLES = {
    (socket.IPPROTO_TCP, 4): "tcp",
    (socket.IPPROTO_TCP, 16): "tcp6",
    (socket.IPPROTO_UDP, 4): "udp",
    (socket.IPPROTO_UDP, 16): "udp6",
}
ARGV_LIMIT = 4096  # bytes of a command line that a record keeps


class Stat(NamedTuple):
    parent: int
    start: int  # clock ticks after boot: with the pid it names a process for good


def stat(pid: int) -> Stat | None:
    """Parent and start time of ``pid``. The name in parentheses may hold anything, parentheses included."""
    data = _read(f"/proc/{pid}/stat", 1024)
    if data is None:
        return None
    fields = data[data.rfind(b")") + 2 :].split()
    return Stat(int(fields[1]), int(fields[19]))


def exe(pid: int) -> str | None:
    """The program file of ``pid``, without the " (deleted)" that the kernel adds when the file is gone."""
    try:
        path = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None
    if path.endswith(" (deleted)"):
        # The name itself may end so. The link leads to the file whatever it is called: compare.
        try:
            real = os.stat(f"/proc/{pid}/exe")
            named = os.stat(path)
        except OSError:
            return path.removesuffix(" (deleted)")
        if (real.st_dev, real.st_ino) != (named.st_dev, named.st_ino):
            return path.removesuffix(" (deleted)")
    return path


def argv(pid: int) -> tuple[str, ...]:
    """The arguments of ``pid``, at most ``ARGV_LIMIT`` bytes of them; empty for a zombie or kernel thread."""
    data = _read(f"/proc/{pid}/cmdline", ARGV_LIMIT)
    if not data:
        return ()
    return tuple(os.fsdecode(part) for part in data.removesuffix(b"\0").split(b"\0"))


def pids() -> list[int]:
    """Every process of this PID namespace, newest numbers first."""
    return sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)


def children(pid: int) -> list[int]:
    """Direct children of ``pid``, of all its threads."""
    found: list[int] = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        data = _read(f"/proc/{pid}/task/{task}/children", 65536)
        if data:
            found += [int(child) for child in data.split()]
    return found


def network_namespace(pid: int) -> int | None:
    """The inode of the network namespace of ``pid``; None when it is gone or we may not know."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def descriptors(pid: int) -> list[int]:
    """Open descriptors of ``pid``, highest first: a socket just made is likely to be among the last."""
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/fd")), reverse=True)
    except OSError:
        return []


def holds_socket(pid: int, fd: int, inode: int) -> bool:
    """Is descriptor ``fd`` of ``pid`` the socket with ``inode``? One readlink, some 2 µs."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]"
    except OSError:
        return False


class TableRow(NamedTuple):
    inode: int
    uid: int


def find_in_tables(
    pid: int, protocol: int, source: bytes, source_port: int, target: bytes, target_port: int
) -> TableRow | None:
    """As ``sock_diag.find``, by the text tables of ``pid``'s network namespace. Milliseconds: the kernel walks its
    whole hash table for it. IPv4-mapped sockets stand in the "6" table. A UDP socket may be unconnected."""
    version = len(source)
    questions = [(_TABLES[protocol, version], source, target)]
    if version == 4:
        mapped = b"\0" * 10 + b"\xff\xff"
        questions.append((_TABLES[protocol, 16], mapped + source, mapped + target))
    for table, local, remote in questions:
        rows = list(_rows(pid, table))
        row = _match(rows, f"{_hex(local)}:{source_port:04X}", f"{_hex(remote)}:{target_port:04X}")
        if row is None and protocol == socket.IPPROTO_UDP:
            row = _match_unconnected(rows, _hex(local), f":{source_port:04X}")
        if row is not None and row.inode:
            return row
    return None


def _match(rows: list[list[str]], local: str, remote: str) -> TableRow | None:
    for fields in rows:
        if fields[1] == local and fields[2] == remote:
            return TableRow(int(fields[9]), int(fields[7]))
    return None


def _match_unconnected(rows: list[list[str]], local: str, port: str) -> TableRow | None:
    for fields in rows:
        address, _, own_port = fields[1].partition(":")
        peer = fields[2].partition(":")[0]
        if f":{own_port}" == port and not peer.strip("0") and (address == local or not address.strip("0")):
            return TableRow(int(fields[9]), int(fields[7]))
    return None


def _rows(pid: int, table: str) -> Iterator[list[str]]:
    try:
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as file:
            next(file, None)
            for line in file:
                fields = line.split()
                if len(fields) > 9:
                    yield fields
    except OSError:
        return


def _hex(address: bytes) -> str:
    # The kernel prints each 32-bit word of the address in host byte order.
    return "".join(f"{word:08X}" for word in struct.unpack(f"={len(address) // 4}I", address))


def _read(path: str, limit: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, limit)
    except OSError:
        return None
    finally:
        os.close(fd)

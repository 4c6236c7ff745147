"""/proc: who holds a socket, what that process is, and the socket tables as text.

Processes come and go while we look. So every function says with None or an empty result that something was gone, and
only a /proc that cannot be read at all is an ``OSError``. File names and arguments are decoded with surrogateescape.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import socket
import stat as stat_bits
import time
from collections.abc import Generator, Iterator
from typing import NamedTuple

_OCTAL = re.compile(rb"\\([0-7]{3})")  # how mountinfo writes a space, a tab, a newline and a backslash
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
    return undeleted(pid, path) if path.endswith(" (deleted)") else path


def undeleted(pid: int, path: str) -> str:
    """``path``, which the link to the program of ``pid`` gave, without what the kernel added to it."""
    # The name itself may end so. The link leads to the file whatever it is called: compare, where ``pid`` is.
    try:
        real = os.stat(f"/proc/{pid}/exe")
        named = os.stat(f"/proc/{pid}/root{path}")
    except OSError:
        return path.removesuffix(" (deleted)")
    return path if os.path.samestat(real, named) else path.removesuffix(" (deleted)")


def argv(pid: int) -> tuple[str, ...]:
    """The arguments of ``pid``, at most ``ARGV_LIMIT`` bytes of them; empty for a zombie or kernel thread."""
    return arguments(_read(f"/proc/{pid}/cmdline", ARGV_LIMIT))


def arguments(data: bytes | None) -> tuple[str, ...]:
    """From what /proc/PID/cmdline says."""
    if not data:
        return ()
    return tuple(os.fsdecode(data.removesuffix(b"\0")).split("\0"))


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


def effective_capabilities() -> int:
    """Of this process: bit N is capability N (capability.h). OSError when /proc is not there."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        masks = [line.split()[1] for line in file if line.startswith("CapEff:")]
    return int(masks[0], 16) if masks else 0


def network_namespace(pid: int) -> int | None:
    """The inode of the network namespace of ``pid``; None when it is gone or we may not know."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def pid_namespace(pid: int) -> int | None:
    """The inode of the PID namespace of ``pid``; None when it is gone or we may not know."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def network_namespaces(without: set[int | None]) -> Generator[int, None, None]:
    """A descriptor of every network namespace that we may see, but for those with these inodes. The caller closes
    each.

    First those that some process is in; then those that only a bind mount keeps (``ip netns add``), in the mount
    namespace of any process; then those that a process holds open. The later ones cost milliseconds.
    """
    seen: set[int | None] = {None, *without}
    every = pids()
    for places in (_inhabited, _mounted, _held):
        for inode, path in places(every):
            if inode in seen:
                continue
            try:
                ns_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            seen.add(inode)
            yield ns_fd


def _inhabited(every: list[int]) -> Iterator[tuple[int | None, str]]:
    for pid in every:
        yield network_namespace(pid), f"/proc/{pid}/ns/net"


def _mounted(every: list[int]) -> Iterator[tuple[int | None, str]]:
    mount_namespaces = set()
    for pid in every:
        try:
            mounts = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if mounts in mount_namespaces:
                continue
            mount_namespaces.add(mounts)
            with open(f"/proc/{pid}/mountinfo", "rb") as file:
                lines = file.read().splitlines()
        except OSError:
            continue
        for line in lines:
            fields = line.split(b" ")
            # ID PARENT DEVICE ROOT PLACE …: for a namespace the root is "net:[INODE]"
            if len(fields) > 4 and fields[3].startswith(b"net:["):
                place = os.fsdecode(_OCTAL.sub(lambda code: bytes([int(code[1], 8)]), fields[4]))
                yield int(fields[3][5:-1]), f"/proc/{pid}/root{place}"


def _held(every: list[int]) -> Iterator[tuple[int | None, str]]:
    for pid in every:
        try:
            descriptors = Descriptors(pid)
        except OSError:
            continue
        try:
            for fd in descriptors.numbers():
                target = descriptors.target(fd)
                if target.startswith("net:["):
                    yield int(target[5:-1]), f"/proc/{pid}/fd/{fd}"
        finally:
            descriptors.close()


def own_network_namespace() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def cpu_clock(pid: int) -> int:
    """The number of the clock that tells the CPU time of ``pid``, for time.clock_gettime (0.3 µs, and 7 ns for each of
    its threads). What it has used since it last got a CPU is added when it leaves it, or after some ms."""
    return ~pid << 3 | 2  # as clock_getcpuclockid(3) does it; CPUCLOCK_SCHED


class NewestPid:
    """The number that the kernel gave to a process or thread last, in our PID namespace. 2 µs, for /proc/loadavg is
    kept open. Owns a descriptor."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        return int(os.pread(self._fd, 128, 0).rpartition(b" ")[2])

    def close(self) -> None:
        os.close(self._fd)


def is_process(number: int) -> bool:
    """Does this number name a process, rather than one of its other threads, or nobody? 0.3 µs: only processes have a
    clock."""
    try:
        time.clock_gettime_ns(cpu_clock(number))
    except OSError:
        return False
    return True


def process_of_thread(tid: int) -> int | None:
    """The process that thread ``tid`` belongs to. /proc lists processes only, but opens for every thread."""
    numbers = _status_line(tid, b"Tgid:")
    return int(numbers[0]) if numbers else None


def innermost_pid(pid: int) -> int | None:
    """``pid`` as it is called in its own PID namespace; None when that is ours, too."""
    numbers = _status_line(pid, b"NSpid:")
    return int(numbers[-1]) if len(numbers) > 1 else None


def is_stopped(pid: int) -> bool:
    """By SIGSTOP, Ctrl-Z or the like, traced or not; False when it is gone."""
    data = _read(f"/proc/{pid}/stat", 512) or b""
    return data.rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])


def directory(pid: int) -> str:
    """Its working directory; "/" when it is gone or not to be seen."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return "/"


def effective_uid(pid: int) -> int:
    """In our user namespace's numbers; our overflow id where it has none, and for a process that is gone."""
    numbers = _status_line(pid, b"Uid:")
    return int(numbers[1]) if len(numbers) > 1 else 65534


def tracer(pid: int) -> int:
    """The process that traces ``pid`` by ptrace; 0: nobody, or nobody that is seen from here."""
    numbers = _status_line(pid, b"TracerPid:")
    return int(numbers[0]) if numbers else 0


def name(pid: int) -> str:
    """As ps shows it, at most 15 bytes; empty when the process is gone."""
    return (_read(f"/proc/{pid}/comm", 64) or b"").decode(errors="replace").rstrip("\n")


def runs_without_its_set_id(pid: int) -> bool:
    """Whether the program file of ``pid`` is set-uid or set-gid, and no_new_privs has kept it from becoming that. 3 µs
    when the file is an ordinary one."""
    try:
        file = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return False
    sets_uid = bool(file.st_mode & stat_bits.S_ISUID)
    sets_gid = file.st_mode & stat_bits.S_ISGID and file.st_mode & stat_bits.S_IXGRP  # alone: a mark for locking
    if not (sets_uid or sets_gid) or _status_line(pid, b"NoNewPrivs:") != [b"1"]:
        return False
    uids, gids = _status_line(pid, b"Uid:"), _status_line(pid, b"Gid:")  # real, effective, saved, file system's
    other_uid = sets_uid and uids and int(uids[1]) != file.st_uid
    return bool(other_uid or (sets_gid and gids and int(gids[1]) != file.st_gid))


def _status_line(pid: int, name: bytes) -> list[bytes]:
    data = _read(f"/proc/{pid}/status", 4096) or b""
    at = data.find(b"\n" + name)
    return data[at + 1 + len(name) : data.find(b"\n", at + 1)].split() if at >= 0 else []


def threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


# connect, sendto, sendmsg (TCP fast open connects in these), by machine: asm-generic's unless listed
_CONNECTING = {"x86_64": (42, 44, 46), "s390x": (362, 369, 370), "ppc64le": (328, 335, 341)}
_CONNECTING_HERE = frozenset(_CONNECTING.get(os.uname().machine, (203, 206, 211)))


def connecting(thread: int) -> int | None:
    """The descriptor on which ``thread`` is asleep in connect(2), or in a send that connects; None: it is not. 8 µs."""
    return connecting_by(_read(f"/proc/{thread}/syscall", 256))


def connecting_by(call: bytes | None) -> int | None:
    """The same, from what /proc/PID/syscall says."""
    if not call or not call[:1].isdigit():  # "running"; "-1 …" outside of any call
        return None
    number, _, rest = call.partition(b" ")
    if int(number) not in _CONNECTING_HERE:
        return None
    # An int argument: only the lower half of the register counts.
    return int(rest.partition(b" ")[0], 16) & 0xFFFFFFFF


def asleep(thread: int) -> bool:
    """Does ``thread`` wait for something that a signal may interrupt? Not for memory or a lock, not for its tracer."""
    data = _read(f"/proc/{thread}/stat", 1024)
    return data is not None and data[data.rfind(b")") + 2 :][:1] == b"S"


class Descriptors:
    """The open descriptors of one process, through its /proc/PID/fd kept open.

    Kept open it belongs to this very process: once that has ended, everything fails, whoever has its pid then. Owns
    the directory's descriptor, ``fd``.

    The /proc/PID/fd of a process that made itself undumpable (agents, browsers' sandboxes) is root's alone; where
    root is not in our user namespace, no capability opens it. /proc/PID/fdinfo asks only whether we could trace the
    process (Linux 5.14), and says as much of a socket: its inode, and the mount that all sockets are on.
    """

    __slots__ = ("_by_info", "fd", "pid")

    def __init__(self, pid: int) -> None:
        """Raises OSError when ``pid`` is gone or not ours to see."""
        self.pid = pid
        self._by_info = False
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self.fd = os.open(f"/proc/{pid}/fd", flags)
        except PermissionError:
            self.fd = os.open(f"/proc/{pid}/fdinfo", flags)
            self._by_info = True
            if not self.numbers():
                os.close(self.fd)
                raise

    def close(self) -> None:
        """From then on it is as if the process had ended: the number may soon be another directory's."""
        os.close(self.fd)
        self.fd = -1

    def count(self) -> int:
        """How many there are (1 µs); 0 where that is not told: before Linux 6.2, and of an undumpable process.
        OSError when the process has ended."""
        if self._by_info and not self.numbers():
            raise ProcessLookupError(errno.ESRCH, "the process has ended")
        return os.fstat(self.fd).st_size

    def target(self, fd: int) -> str:
        """What ``fd`` is: ``"socket:[INODE]"`` for a socket, ``""`` when it is not open. 3 µs."""
        try:
            return self._target_by_info(fd) if self._by_info else os.readlink(str(fd), dir_fd=self.fd)
        except OSError:
            return ""

    def _target_by_info(self, fd: int) -> str:
        info_fd = os.open(str(fd), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            fields = _fields(os.read(info_fd, 1024))
        finally:
            os.close(info_fd)
        is_socket = fields.get(b"mnt_id") == _sockets_mount() and b"ino" in fields
        return f"socket:[{int(fields[b'ino'])}]" if is_socket else "?"

    def numbers(self) -> list[int]:
        """All of them, highest first. Empty when the process has ended."""
        if self.fd < 0:
            return []  # closed; listdir(-1) would be the working directory's
        try:
            names = os.listdir(self.fd)
        except OSError:
            return []
        return sorted(map(int, names), reverse=True)


@functools.cache
def _sockets_mount() -> bytes | None:
    """The mount id of every socket there is: they are all on one mount of the kernel's own."""
    with socket.socket(socket.AF_UNIX) as sock:
        return _fields(_read(f"/proc/self/fdinfo/{sock.fileno()}", 1024) or b"").get(b"mnt_id")


def _fields(info: bytes) -> dict[bytes, bytes]:
    """Lines "name:<tab>value"."""
    return {name: value.strip() for name, _, value in (line.partition(b":") for line in info.splitlines())}


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

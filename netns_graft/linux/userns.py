"""A user namespace in which the caller stays who it is.

Identity mapping: a program in it sees the same uid and gid, and files of the caller's sub-ids keep their numbers.
Ids that are not mapped (root's among them) show as 65534 and give no power, so set-uid programs run without it.

Kernel facts (user_namespaces(7)): an unprivileged process may map one id, its own, and for the gid only after
"deny" was written to setgroups; ranges need newuidmap and newgidmap, which check /etc/subuid and /etc/subgid. The
maps must be written by a process in the parent namespace, so the supervisor does it for the forwarder.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class SubIds:
    """Ranges (first, count) from /etc/subuid and /etc/subgid; empty when the user has none."""

    uids: tuple[tuple[int, int], ...]
    gids: tuple[tuple[int, int], ...]


def sub_ids(uid: int) -> SubIds:
    """The ranges that newuidmap would grant to ``uid``. An unreadable or malformed line counts as absent."""
    owners = {str(uid)}
    try:
        owners.add(pwd.getpwuid(uid).pw_name)
    except KeyError:
        pass
    return SubIds(_ranges("/etc/subuid", owners), _ranges("/etc/subgid", owners))


def _ranges(path: str, owners: set[str]) -> tuple[tuple[int, int], ...]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in owners and _is_id(first) and _is_id(count) and int(count) > 0:
            found.append((int(first), int(count)))
    return tuple(found)


def _is_id(text: str) -> bool:
    # ASCII digits only, and no more than 32 bits have: str.isdigit and int() differ about the rest.
    return text.isascii() and text.isdigit() and len(text) <= 10


def write_maps(pid: int) -> str:
    """Map ids for the new user namespace of ``pid``, from its parent namespace. Returns "sub-ids" or "one id".

    Falls back to one id when newuidmap is missing or refuses: the workload then runs all the same, without sub-ids.
    """
    uid, gid = os.geteuid(), os.getegid()
    granted = sub_ids(uid)
    newuidmap, newgidmap = shutil.which("newuidmap"), shutil.which("newgidmap")
    # The gid map goes first: once newgidmap has refused, "deny" in setgroups is still ours to write.
    if (
        (granted.uids and granted.gids and newuidmap and newgidmap and uid != 0)
        and _run(newgidmap, pid, gid, granted.gids)
        and _run(newuidmap, pid, uid, granted.uids)
    ):
        return "sub-ids"
    if not _is_mapped(pid, "gid_map"):
        _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/gid_map", f"{gid} {gid} 1")
    _write(f"/proc/{pid}/uid_map", f"{uid} {uid} 1")
    return "one id"


def outside(uid: int) -> int:
    """The number that ``uid`` of our user namespace has in its parent: on the host, for an engine's. Unmapped: as it
    is.
    """
    for first, parent, count in _own_map():
        if first <= uid < first + count:
            return parent + uid - first
    return uid


@functools.cache
def _own_map() -> tuple[tuple[int, int, int], ...]:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        rows = [tuple(map(int, line.split())) for line in file]
    return tuple((row[0], row[1], row[2]) for row in rows)


def _is_mapped(pid: int, which: str) -> bool:
    with open(f"/proc/{pid}/{which}", encoding="ascii") as file:
        return bool(file.read().strip())


def _write(path: str, text: str) -> None:
    # One write(2): the kernel takes a map whole or not at all.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _run(program: str, pid: int, own: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    arguments = [program, str(pid), str(own), str(own), "1"]
    for first, count in ranges:
        if first <= own < first + count:
            continue  # overlaps our own id: the kernel would refuse the whole map
        arguments += [str(first), str(first), str(count)]
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, null_fd, number) for number in (0, 1, 2)]
        child = os.posix_spawn(program, arguments, os.environ, file_actions=actions, setsigmask=[])
    except OSError:
        return False
    finally:
        os.close(null_fd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

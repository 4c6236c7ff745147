"""What a host says about itself in files: sysctls, mounts, status, addresses, maps, sub-ids, file capabilities.

``root`` is where "/" is; tests give a tree of their own. Parsers take text and skip what they do not understand, for
nothing here may fail on a host that is odd: being odd is what is looked for. Readers raise OSError.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass

from netns_graft.linux.cable import GATEWAY_V4

LIMIT = 1 << 20  # bytes read of any file: a routing table or a mount list may be huge
_CAP_SETUID, _CAP_SETGID = 7, 6
_ST_NOSUID = 2


def read(root: str, path: str, limit: int = LIMIT) -> str:
    """At most ``limit`` bytes of a file, as text; bytes that are not UTF-8 are replaced."""
    fd = os.open(os.path.join(root, path.lstrip("/")), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        parts = []
        while limit > 0 and (part := os.read(fd, min(limit, 1 << 16))):
            parts.append(part)
            limit -= len(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode(errors="replace")


def sysctl(root: str, name: str) -> int | None:
    """A sysctl by its path below /proc/sys; None when this kernel has none of that name. Raises OSError otherwise."""
    try:
        words = read(root, f"/proc/sys/{name}", 4096).split()
    except FileNotFoundError:
        return None
    try:
        return int(words[0])
    except (IndexError, ValueError):
        return None


def per_interface(root: str, name: str) -> dict[str, int]:
    """The IPv4 sysctl ``name`` of each interface, with "all" and "default". Raises OSError when none may be listed."""
    found = {}
    for interface in sorted(os.listdir(os.path.join(root, "proc/sys/net/ipv4/conf"))):
        try:
            value = sysctl(root, f"net/ipv4/conf/{interface}/{name}")
        except OSError:
            continue
        if value is not None:
            found[interface] = value
    return found


@dataclass(slots=True, frozen=True)
class Mount:
    point: str
    kind: str
    options: frozenset[str]  # of the mount and of its file system


def mounts(root: str) -> list[Mount]:
    """/proc/self/mountinfo, in its order: of two mounts on one point the later one is seen."""
    return parse_mounts(read(root, "/proc/self/mountinfo"))


def parse_mounts(text: str) -> list[Mount]:
    found = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, more = left.split(" "), right.split(" ")
        if separator and len(fields) >= 6 and len(more) >= 3:
            options = frozenset(fields[5].split(",") + more[2].split(","))
            found.append(Mount(_unescaped(fields[4]), more[0], options))
    return found


def _unescaped(path: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, char)
    return path


def status(root: str) -> dict[str, str]:
    """/proc/self/status: "CapEff" and the like."""
    return parse_status(read(root, "/proc/self/status"))


def parse_status(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            found[name] = value.strip()
    return found


def has_capabilities(fields: dict[str, str], *numbers: int) -> bool:
    """Whether every one of these capabilities stands in CapEff."""
    try:
        effective = int(fields.get("CapEff", "0"), 16)
    except ValueError:
        return False
    return all(effective >> number & 1 for number in numbers)


def whole_user_namespace(text: str) -> bool:
    """Whether this uid_map is the initial one, in which every id stands for itself."""
    return text.split() == ["0", "0", "4294967295"]


def own_addresses(root: str) -> list[str]:
    """Every local address of this network namespace, of both families, without those of loopback."""
    found: list[str] = []
    for path, parse in (("/proc/net/fib_trie", parse_fib_trie), ("/proc/net/if_inet6", parse_if_inet6)):
        try:
            found += parse(read(root, path))
        except OSError:
            continue
    return list(dict.fromkeys(found))


def parse_fib_trie(text: str) -> list[str]:
    found = []
    leaf = ""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "|--":
            leaf = words[1]
        elif words[-1:] == ["LOCAL"] and words[:1] == ["/32"] and _is_ipv4(leaf) and not leaf.startswith("127."):
            found.append(leaf)
    return found


def _is_ipv4(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 4 and all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts)


def parse_if_inet6(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        digits = line.split(" ")[0]
        if len(digits) != 32 or digits == "0" * 31 + "1":
            continue
        try:
            bytes.fromhex(digits)
        except ValueError:
            continue
        found.append(":".join(digits[place : place + 4] for place in range(0, 32, 4)))
    return found


def default_gateways(root: str) -> list[tuple[str, str]]:
    """(interface, gateway) of each IPv4 default route. Raises OSError."""
    return parse_default_gateways(read(root, "/proc/net/route"))


def in_graft(root: str) -> bool:
    """Is the network namespace that ``root`` shows a graft's? Nobody else has that gateway. Raises OSError."""
    return ("eth0", GATEWAY_V4) in default_gateways(root)


def parse_default_gateways(text: str) -> list[tuple[str, str]]:
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":
            continue
        try:
            raw = struct.pack("=I", int(fields[2], 16))  # the kernel prints it in host byte order
        except (ValueError, struct.error):
            continue
        found.append((fields[0], ".".join(str(part) for part in raw)))
    return found


@dataclass(slots=True, frozen=True)
class SubIdLine:
    """One line of /etc/subuid or /etc/subgid that is for us; ``count`` 0: it cannot be used as it stands."""

    text: str
    first: int
    count: int


def sub_id_lines(text: str, owners: set[str]) -> list[SubIdLine]:
    found = []
    for line in text.splitlines():
        owner, _, rest = line.partition(":")
        if owner not in owners:
            continue
        first, _, count = rest.partition(":")
        usable = all(part.isascii() and part.isdigit() and len(part) < 11 for part in (first, count))
        found.append(SubIdLine(line, int(first) if usable else 0, int(count) if usable else 0))
    return found


def may_map_ids(path: str, capability: int) -> bool | None:
    """Whether a program is set-uid root, or has the file capability. None: by its file capability, but of a user
    namespace that is not ours to judge. Raises OSError when it cannot be looked at."""
    found = os.stat(path)
    if found.st_mode & stat.S_ISUID and found.st_uid == 0:
        return True
    try:
        data = os.getxattr(path, "security.capability")
    except OSError:
        return False
    return parse_file_capability(data, capability)


def may_map_uids(path: str) -> bool | None:
    return may_map_ids(path, _CAP_SETUID)


def may_map_gids(path: str) -> bool | None:
    return may_map_ids(path, _CAP_SETGID)


def parse_file_capability(data: bytes, capability: int) -> bool | None:
    """vfs_cap_data: magic and revision, then permitted and inheritable; revision 3 adds the namespace's root uid."""
    if len(data) < 20:
        return False
    magic, permitted = struct.unpack_from("<II", data)
    if not permitted >> capability & 1:
        return False
    return None if magic >> 24 == 3 and len(data) >= 24 and struct.unpack_from("<I", data, 20)[0] else True


def on_nosuid_mount(path: str) -> bool:
    """Whether the file system of ``path`` ignores set-uid bits and file capabilities. Raises OSError."""
    return bool(os.statvfs(path).f_flag & _ST_NOSUID)


def module_missing(root: str, name: str) -> bool:
    """Whether a kernel module is surely neither loaded nor built in. A question to a module that is not there would
    make the kernel load it, and looking must change nothing."""
    try:
        loaded = read(root, "/proc/modules")
        release = read(root, "/proc/sys/kernel/osrelease", 256).strip()
        built_in = read(root, f"/lib/modules/{release}/modules.builtin")
    except OSError:
        return False  # a kernel without modules, or a container: nobody can tell
    return not any(line.split(" ")[0] == name for line in loaded.splitlines()) and not any(
        line.rpartition("/")[2] == f"{name}.ko" for line in built_in.splitlines()
    )

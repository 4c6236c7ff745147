"""podman's ``--dns``, ``--dns-search`` and ``--dns-option``, carried by us: it refuses them where the network is none.

The container finds an ``/etc/resolv.conf`` with what podman itself would write into it; its nameservers are also whom
the forwarder asks where it forwards questions.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netns_graft.dns.resolv_conf import is_near, parse_resolv_conf
from netns_graft.engines.podman_options import Option
from netns_graft.errors import UsageError
from netns_graft.linux import places
from netns_graft.linux.cable import GATEWAY_V4

OPTIONS = frozenset({"dns", "dns-search", "dns-option", "dns-opt"})
_PATH = "/etc/resolv.conf"
_MODES = ("synthetic", "forward", "off")  # of netns-graft's own --dns


@dataclass(slots=True, frozen=True)
class Resolving:
    """What was asked for; an empty part is taken from the host, as podman does. A search list of "." is none at all."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def resolv_conf(self, host_text: str) -> str:
        """The container's file. The host's own loopback would be the container's there, so it is left out."""
        host = parse_resolv_conf(host_text)
        search = self.search or host.search
        servers = self.servers or tuple(
            server.address for server in host.nameservers if not is_near(server.address)
        )  # fmt: skip
        options = self.options or host.options
        lines = [f"search {' '.join(search)}"] if search and search != (".",) else []
        lines += [f"nameserver {server}" for server in servers or (GATEWAY_V4,)]
        lines += [f"options {' '.join(options)}"] if options else []
        return "\n".join(lines) + "\n"


def resolving(options: Iterable[Option]) -> Resolving | None:
    """What podman's options say; None when they say nothing. ``UsageError`` for what cannot be."""
    said: dict[str, list[str]] = {name: [] for name in OPTIONS}
    for option in options:
        if option.name in OPTIONS:
            said[option.name] += [word for word in (option.value or "").split(",") if word]
            if not option.value:
                raise UsageError(f"--{option.name} needs a value")
    servers = said["dns"]
    if "none" in servers:
        # The image's own file, which it has anyhow without a network of podman's.
        if servers != ["none"] or any(said[name] for name in OPTIONS - {"dns"}):
            raise UsageError("--dns none goes with no other option about names")
        return None
    for server in servers:
        check_server(server)
    found = Resolving(tuple(servers), tuple(said["dns-search"]), tuple(said["dns-option"] + said["dns-opt"]))
    for word in (*found.search, *found.options):
        if not (word.isascii() and word.isprintable()) or " " in word:
            raise UsageError(f"{word!r} does not fit into a resolv.conf")
    return found if found != Resolving() else None


def check_server(text: str) -> None:
    """``UsageError`` for what is no address of a resolver that both we and the container could mean."""
    try:
        near = is_near(text)
    except ValueError:
        mode = " (netns-graft's own --dns goes before podman's options)" if text in _MODES else ""
        raise UsageError(f"--dns {text}: not an IP address{mode}") from None
    if near:
        raise UsageError(
            f"--dns {text}: this address is the container's own",
            hint="without --dns, questions to its loopback are answered too",
        )


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def host_text() -> str:
    try:
        with open(_PATH, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def lasting_volume(text: str) -> str:
    """podman's option that lays ``text`` over the container's file. The file is called after its content and stays:
    a container that is started again looks for it. OSError.
    """
    directory = places.private_directory(f"{places.state_dir()}/resolv.conf")
    path = f"{directory}/{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not os.path.exists(path):
        begun = f"{path}.{os.getpid()}"
        _write(begun, text)
        os.rename(begun, path)
    return _volume(path)


def volume(text: str, directory: str) -> str:
    """As ``lasting_volume``, in a directory that lives as long as the container."""
    path = f"{directory}/resolv.conf"
    _write(path, text)
    return _volume(path)


def _volume(path: str) -> str:
    return f"--volume={path}:{_PATH}:ro,z"  # z: with SELinux, for containers to read


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with open(fd, "w", encoding="ascii") as file:
        os.fchmod(fd, 0o644)  # the container's users read it, whatever our umask
        file.write(text)


def settings(asked: Resolving | None) -> Sequence[tuple[str, str]]:
    """For the hook: whom the forwarder asks."""
    return [("nameserver", server) for server in asked.servers] if asked is not None else []

"""What a container's bundle says that a graft must know: its command, its resolvers, its name.

The files are read through the hook's own root directory, for a container engine may live in a mount namespace of its
own. What stands in an image is the image's word: its resolv.conf may say where libc will ask, and so where we must
answer, but never whom *we* ask.
"""

from __future__ import annotations

import ipaddress
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from netns_graft.broker.handover import STAGE
from netns_graft.dns.resolv_conf import Nameserver, ResolvConf, is_near, parse_resolv_conf
from netns_graft.errors import GraftError

_CONFIG_LIMIT = 16 << 20
_RESOLV_CONF_LIMIT = 1 << 20
_NAMES = (
    "io.kubernetes.cri-o.Name",
    "io.kubernetes.container.name",
    "io.kubernetes.cri.container-name",
    "nerdctl/name",
    "io.podman.annotations.name",
)


@dataclass(slots=True, frozen=True)
class Bundle:
    """``resolv_conf`` is what libc in the container will read; ``by_engine``: the engine wrote it, not the image."""

    args: tuple[str, ...]
    resolv_conf: str
    by_engine: bool
    hands_over: bool = False  # our hook is called at createContainer as well

    def loopback_resolvers(self) -> list[str]:
        """Where DNS must be answered inside W. libc asks 127.0.0.1 when no server is named, and musl ::1 too."""
        servers = parse_resolv_conf(self.resolv_conf).nameservers
        loopback = [server.address for server in servers if ipaddress.ip_address(server.address).is_loopback]
        return loopback if servers else ["127.0.0.1", "::1"]

    def chosen_resolvers(self, host_text: str, named: Sequence[str] = ()) -> ResolvConf | None:
        """The servers that the user chose for this container over the host's; None: the host's. ``named``: addresses
        of which we were told; else those in the file that its engine wrote, where they are not the host's.
        """
        here, host = parse_resolv_conf(self.resolv_conf if self.by_engine else ""), parse_resolv_conf(host_text)
        if named:
            return replace(here, nameservers=tuple(Nameserver(address) for address in named))
        if not self.by_engine:
            return None
        chosen = [server for server in here.nameservers if not is_near(server.address)]
        if not chosen or set(chosen) <= set(host.nameservers):
            return None
        return replace(here, nameservers=tuple(chosen))


def read_bundle(path: str, root: str) -> Bundle:
    """The bundle at ``path`` below ``root``. GraftError when its config.json cannot be read."""
    try:
        config = json.loads(_read(f"{root}{path}/config.json", _CONFIG_LIMIT))
        args = tuple(str(word) for word in (config.get("process") or {}).get("args") or ())
        source, by_engine = _resolv_conf_source(config, path)
        hands_over = _has_second_hook(config)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise GraftError(f"the bundle's config.json cannot be read: {error}") from None
    try:
        text = _read(f"{root}{source}", _RESOLV_CONF_LIMIT).decode(errors="replace") if source else ""
    except OSError:
        text = ""  # libc then asks its own loopback
    return Bundle(args, text, by_engine, hands_over)


def name_in(annotations: dict[str, str]) -> str | None:
    for key in _NAMES:
        if annotations.get(key):
            return annotations[key]
    return None


def _has_second_hook(config: dict[str, Any]) -> bool:
    hooks = (config.get("hooks") or {}).get(STAGE) or []
    return any({"--stage", STAGE} <= set(hook.get("args") or []) for hook in hooks)


def _resolv_conf_source(config: dict[str, Any], bundle: str) -> tuple[str, bool]:
    """(path, whether the engine mounts it there)"""
    for mount in reversed(config.get("mounts") or []):
        if mount.get("destination") == "/etc/resolv.conf" and mount.get("source"):
            return os.path.normpath(os.path.join(bundle, mount["source"])), True
    rootfs = (config.get("root") or {}).get("path")
    if not rootfs:
        return "", False
    return os.path.normpath(os.path.join(bundle, rootfs)) + "/etc/resolv.conf", False


def _read(path: str, limit: int) -> bytes:
    """A regular file, not by way of a link in its last part: an image may hold a link to anywhere. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is no regular file")
        data = b""
        while part := os.read(fd, limit + 1 - len(data)):
            data += part
            if len(data) > limit:
                raise OSError(f"{path} is longer than {limit} bytes")
        return data
    finally:
        os.close(fd)


"""Where we run: as whom, and what stands between us and the host."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from netns_graft.doctor.finding import Finding, Status
from netns_graft.linux import host_files

_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21


@dataclass(slots=True, frozen=True)
class Place:
    """``powerful``: root that may make network namespaces as it is, so that a graft needs no user namespace."""

    uid: int
    powerful: bool = False
    inside_graft: bool = False
    container: str | None = None
    own_user_namespace: bool = False  # not the host's first one
    chroot: bool = False
    seccomp: int | None = None  # 0 none, 1 strict, 2 a filter; None unknown
    no_new_privileges: bool = False


def look(root: str, environ: Mapping[str, str], uid: int) -> Place:
    try:
        status = host_files.status(root)
    except OSError:
        status = {}
    try:
        own_user_namespace = not host_files.whole_user_namespace(host_files.read(root, "/proc/self/uid_map"))
    except OSError:
        own_user_namespace = False
    try:
        chroot = not any(mount.point == "/" for mount in host_files.mounts(root))
    except OSError:
        chroot = False
    try:
        inside_graft = host_files.in_graft(root)
    except OSError:
        inside_graft = False
    seccomp = status.get("Seccomp", "")
    return Place(
        uid=uid,
        powerful=uid == 0 and host_files.has_capabilities(status, _CAP_NET_ADMIN, _CAP_SYS_ADMIN),
        inside_graft=inside_graft,
        container=_container(root, environ),
        own_user_namespace=own_user_namespace,
        chroot=chroot,
        seccomp=int(seccomp) if seccomp in ("0", "1", "2") else None,
        no_new_privileges=status.get("NoNewPrivs") == "1",
    )


def _container(root: str, environ: Mapping[str, str]) -> str | None:
    """The name of the engine in whose container we are, "container" when it does not tell, or None."""
    if os.path.exists(os.path.join(root, "run/.containerenv")):
        return "podman"
    if os.path.exists(os.path.join(root, ".dockerenv")):
        return "docker"
    named = environ.get("container", "")
    if not named:
        try:
            named = host_files.read(root, "/run/systemd/container", 256).strip()
        except OSError:
            return None
    return named.split()[0][:32] if named.split() else "container"


def finding(place: Place) -> Finding:
    words = ["running " + ("inside a graft" if place.inside_graft else "outside of any graft")]
    if place.container:
        words.append(f"inside a container ({place.container})")
    if place.chroot:
        words.append("inside a chroot")
    if place.uid == 0:
        words.append("as root" if place.powerful else "as root without the capabilities of root")
    else:
        words.append(f"as uid {place.uid}")
    if place.own_user_namespace:
        words.append("in a user namespace")
    return Finding("place", "where", Status.OK, ", ".join(words))

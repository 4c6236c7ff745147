"""What a graft is built of: user and network namespaces, id maps, veth, nftables, packet sockets, mounts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from netns_graft.doctor.finding import Finding, Status, reason
from netns_graft.doctor.place import Place
from netns_graft.linux import host_files
from netns_graft.linux.probes import Trial, Trials

_KEEP = "and a file in /etc/sysctl.d to keep it"
_NO_LIMIT = 2**31 - 1


def user_namespaces(root: str, place: Place, trials: Trials) -> Finding:
    """Tried; the sysctls tell why it failed. Root that may do without is only warned."""
    trial = trials.get("user-namespace")
    if trial is None:
        return _untried("user-namespaces", "user namespaces", trials)
    bad = Status.WARNING if place.powerful else Status.PROBLEM
    try:
        limit = host_files.sysctl(root, "user/max_user_namespaces")
        debian = host_files.sysctl(root, "kernel/unprivileged_userns_clone")
        apparmor = host_files.sysctl(root, "kernel/apparmor_restrict_unprivileged_userns")
    except OSError:
        limit = debian = apparmor = None
    status, cure = Status.OK, None
    if trial.ok:
        detail = "allowed" if limit is None else f"{limit} allowed"
        if limit is not None and limit >= _NO_LIMIT:
            detail = "allowed, without a limit of their own"
        after = trials.get("network-namespace")
        if apparmor and after is not None and after.errno in (errno.EPERM, errno.EACCES) and not place.powerful:
            status, detail = bad, "allowed, but AppArmor takes their capabilities away"
            cure = f"sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0  # {_KEEP}"
    else:
        status = bad
        detail, cure = _why_no_user_namespace(trial, place, limit, debian, apparmor)
        if place.powerful:
            detail += "; root needs none for `exec`, rootless engines do"
    return Finding("user-namespaces", "user namespaces", status, detail, cure)


def _why_no_user_namespace(
    trial: Trial, place: Place, limit: int | None, debian: int | None, apparmor: int | None
) -> tuple[str, str]:
    where = "on the host: " if place.container or place.own_user_namespace else ""
    if trial.errno in (errno.ENOSPC, errno.EUSERS):
        if limit == 0:
            return (
                "none allowed (user.max_user_namespaces=0)",
                f"{where}sudo sysctl -w user.max_user_namespaces=15000  # {_KEEP}",
            )
        return (
            f"used up: the limit is {limit}, here or further out, and at most 32 may be nested",
            f"{where}end what holds them (lsns -t user), or sudo sysctl -w user.max_user_namespaces=100000  # {_KEEP}",
        )
    if trial.errno in (errno.EPERM, errno.EACCES):
        if debian == 0:
            return (
                "only root may make them (kernel.unprivileged_userns_clone=0)",
                f"{where}sudo sysctl -w kernel.unprivileged_userns_clone=1  # {_KEEP}",
            )
        if apparmor:
            return (
                "AppArmor forbids them (kernel.apparmor_restrict_unprivileged_userns=1)",
                f"{where}sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0  # {_KEEP}",
            )
        if place.chroot:
            return (
                "refused: the kernel makes none inside a chroot",
                "leave the chroot, or enter it with pivot_root (bwrap, unshare --root, systemd-nspawn)",
            )
        if place.seccomp == 2:
            return (
                "refused, and a seccomp filter is in force: it is the likely one",
                "allow unshare and clone with CLONE_NEWUSER (podman, docker: --security-opt seccomp=unconfined)",
            )
        return (
            "refused, by a security module or because this is a chroot",
            "journalctl -k, or ausearch -m avc -ts recent, names the module; outside of a chroot it may work",
        )
    if trial.errno in (errno.ENOSYS, errno.EINVAL):
        return ("this kernel has none", "a kernel with CONFIG_USER_NS=y")
    return (f"refused: {trial.detail.lower()}", "netns-graft works as root without them")


def sub_ids(root: str, place: Place, owners: set[str], trials: Trials) -> Finding:
    """The ranges of the user, and whether they could be mapped."""
    name, title = "sub-ids", "sub-ids"
    if place.uid == 0:
        return Finding(name, title, Status.OK, "root needs none")
    mapped = trials.get("id-maps")
    if mapped is not None and not mapped.ok:
        return Finding(
            name, title, Status.PROBLEM, f"ids cannot be mapped: {mapped.detail.lower()}",
            "a security module may forbid it: journalctl -k names it",
        )  # fmt: skip
    counts: list[int] = []
    user = min(owners - {str(place.uid)}, default=str(place.uid))
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            lines = host_files.sub_id_lines(host_files.read(root, path), owners)
        except FileNotFoundError:
            lines = []
        except OSError as error:
            return Finding(name, title, Status.UNKNOWN, f"{path}: {reason(error)}")
        broken = [line.text for line in lines if line.count == 0]
        if broken:
            return Finding(
                name, title, Status.WARNING, f"{path} has a line that cannot be used",
                f"write it as {user}:100000:65536", tuple(broken),
            )  # fmt: skip
        if not lines:
            return Finding(
                name, title, Status.WARNING,
                f"none for {user} in {path}: a graft maps one id only, and rootless engines cannot start",
                f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )  # fmt: skip
        counts.append(sum(line.count for line in lines))
    detail = f"{counts[0]} uids, {counts[1]} gids for {user}"
    if mapped is not None and mapped.detail != "sub-ids":
        if place.own_user_namespace:
            return Finding(
                name, title, Status.OK, f"{detail}, of no use in this user namespace: a graft in here maps one id only"
            )
        return Finding(
            name, title, Status.WARNING, f"{detail}, but they could not be mapped: a graft maps one id only",
            "see newuidmap below; ranges that overlap another user's are refused as well",
        )  # fmt: skip
    return Finding(name, title, Status.OK, detail)


def newuidmap(place: Place, which: Callable[[str], str | None]) -> Finding:
    """newuidmap and newgidmap: there, and with the power to map ids."""
    name, title = "newuidmap", "newuidmap"
    if place.uid == 0:
        return Finding(name, title, Status.OK, "root needs none")
    ways = []
    for program, may_map in (("newuidmap", host_files.may_map_uids), ("newgidmap", host_files.may_map_gids)):
        path = which(program)
        if path is None:
            return Finding(
                name, title, Status.WARNING, f"{program} is not installed: a graft maps one id only",
                "install uidmap (Debian, Ubuntu) or shadow-utils (Fedora, SUSE, Arch: shadow)",
            )  # fmt: skip
        try:
            able, nosuid = may_map(path), host_files.on_nosuid_mount(path)
        except OSError as error:
            return Finding(name, title, Status.UNKNOWN, f"{path}: {reason(error)}")
        if able is False and place.own_user_namespace:
            return Finding(name, title, Status.OK, f"{path} has no power in this user namespace, and none is needed")
        if able is False:
            return Finding(
                name, title, Status.WARNING, f"{path} has neither the set-uid bit nor the file capability",
                f"sudo chmod u+s {path}",
            )  # fmt: skip
        if nosuid:
            return Finding(
                name, title, Status.WARNING, f"{path} lies on a file system mounted nosuid: it has no power",
                f"sudo mount -o remount,suid {_mount_hint(path)}",
            )  # fmt: skip
        ways.append(path)
    if place.no_new_privileges:
        return Finding(
            name, title, Status.WARNING, f"{ways[0]} has no power here: this process may gain no privileges",
            "start it without no_new_privs (podman, docker: --security-opt no-new-privileges)",
        )  # fmt: skip
    return Finding(name, title, Status.OK, f"{ways[0]} may map ids")


def _mount_hint(path: str) -> str:
    while path != "/" and not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def trial_findings(place: Place, trials: Trials) -> list[Finding]:
    """What was really built, in the order of the building."""
    inside = "in the container's settings: " if place.container else ""
    return [
        _tried(trials, "network-namespace", "network namespaces", Status.PROBLEM, "can be made", inside
               + "allow CLONE_NEWNET; sysctl user.max_net_namespaces must not be 0"),
        _tried(trials, "mounts", "mount namespaces", Status.PROBLEM, "can be made, with a mount in them", inside
               + "allow mount and CLONE_NEWNS (podman, docker: --security-opt apparmor=unconfined)"),
        _tried(trials, "pyroute2", "pyroute2", Status.PROBLEM, "", "pip install 'pyroute2>=0.9.5'"),
        _tried(trials, "veth", "veth", Status.PROBLEM, "can be made,", "sudo modprobe veth (CONFIG_VETH)"),
        _tproxy(trials),
        _tried(trials, "packet-sockets", "packet sockets", Status.WARNING, "allowed",
               "sudo modprobe af_packet; until then connections are accepted first, and refused later"),
        _tried(trials, "graft", "a whole graft", Status.PROBLEM, "built and taken down again; a SYN went through,",
               "NETNS_GRAFT_DEBUG=1 netns-graft exec true shows where it fails"),
    ]  # fmt: skip


def _tproxy(trials: Trials) -> Finding:
    name, title = "tproxy", "nft tproxy"
    tproxy, redirect = trials.get("tproxy"), trials.get("redirect")
    if tproxy is None:
        return _untried(name, title, trials)
    if tproxy.ok:
        return Finding(name, title, Status.OK, "works" + ("; redirect too" if redirect and redirect.ok else ""))
    detail = f"refused: {tproxy.detail.lower()}"
    if redirect is not None and redirect.ok:
        return Finding(
            name, title, Status.WARNING, f"{detail}; redirect works", "sudo modprobe nft_tproxy (CONFIG_NFT_TPROXY)"
        )
    return Finding(
        name, title, Status.PROBLEM, f"{detail}; redirect too",
        "sudo modprobe -a nf_tables nft_tproxy (CONFIG_NF_TABLES_INET, CONFIG_NFT_TPROXY)",
    )  # fmt: skip


def _tried(trials: Trials, name: str, title: str, bad: Status, good: str, cure: str) -> Finding:
    trial = trials.get(name)
    if trial is None:
        return _untried(name, title, trials)
    if trial.ok:
        return Finding(name, title, Status.OK, f"{good} {trial.detail}".strip().rstrip(","))
    return Finding(name, title, bad, f"refused: {trial.detail.lower()}", cure)


def _untried(name: str, title: str, trials: Trials) -> Finding:
    failed = [trial.name for trial in trials.done.values() if not trial.ok]
    why = f"the trial process ended early: {trials.ended}" if trials.ended else "the trial process ended early"
    if not trials.ended and failed:
        why = f"not tried, for {failed[-1].replace('-', ' ')} was refused before"
    return Finding(name, title, Status.UNKNOWN, why)

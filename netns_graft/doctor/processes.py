"""Who opened a socket: what lets us see it, and what hides it."""

from __future__ import annotations

import errno

from netns_graft.doctor.finding import Finding, Status, reason
from netns_graft.doctor.place import Place
from netns_graft.linux import host_files
from netns_graft.linux.probes import Trials

_HIDING = {"1": "noaccess", "2": "invisible", "4": "ptraceable"}
_YAMA = {
    0: "any process of one's own (Yama scope 0)",
    1: "one's own children (Yama scope 1)",
    2: "only with CAP_SYS_PTRACE (Yama scope 2)",
    3: "nobody (Yama scope 3)",
}


def proc_mount(root: str, place: Place) -> Finding:
    """How /proc is mounted: hidepid hides processes, subset=pid hides everything else."""
    name, title = "proc-mount", "/proc"
    try:
        found = [mount for mount in host_files.mounts(root) if mount.point == "/proc" and mount.kind == "proc"]
    except FileNotFoundError:
        found = []
    except OSError as error:
        return Finding(name, title, Status.UNKNOWN, f"/proc/self/mountinfo: {reason(error)}")
    if not found:
        return Finding(
            name, title, Status.WARNING, "not mounted where it belongs: no flow can be attributed",
            "mount -t proc proc /proc",
        )  # fmt: skip
    options = {key: value for key, _, value in (one.partition("=") for one in found[-1].options)}
    if "subset" in options:
        return Finding(
            name, title, Status.WARNING, f"mounted with subset={options['subset']}: no sysctl can be read",
            "mount it without subset=pid",
        )  # fmt: skip
    hidden = options.get("hidepid", "0")
    hidden = _HIDING.get(hidden, hidden)
    if hidden in ("0", "off"):
        return Finding(name, title, Status.OK, "shows every process")
    if place.powerful and not place.own_user_namespace:
        return Finding(name, title, Status.OK, f"mounted with hidepid={hidden}, which hides nothing from root")
    return Finding(
        name, title, Status.WARNING,
        f"mounted with hidepid={hidden}: parents that are not yours and set-uid programs cannot be named",
        "sudo mount -o remount,hidepid=0 /proc  # and its line in /etc/fstab",
    )  # fmt: skip


def proc_net(trials: Trials) -> Finding:
    name, title = "proc-net", "/proc/net"
    trial = trials.get("proc-net")
    if trial is None:
        return Finding(name, title, Status.UNKNOWN, "not tried: no network namespace could be made")
    if trial.ok:
        return Finding(name, title, Status.OK, "readable, and a socket of ours was found in it")
    return Finding(
        name, title, Status.WARNING, f"a socket of ours was not found in it: {trial.detail.lower()}",
        "mount /proc without subset=pid, and uncover /proc/net (podman, docker: --security-opt unmask=ALL)",
    )  # fmt: skip


def sock_diag(trials: Trials) -> Finding:
    name, title = "sock-diag", "sock_diag"
    trial = trials.get("sock-diag")
    if trial is None:
        return Finding(name, title, Status.UNKNOWN, "not tried: no network namespace could be made")
    if trial.ok:
        return Finding(name, title, Status.OK, f"answers, {trial.detail}")
    other = trials.get("proc-net")
    rest = "/proc/net is read instead, which is slower" if other and other.ok else "no flow can be attributed"
    return Finding(
        name, title, Status.WARNING, f"does not answer: {trial.detail.lower()}; {rest}",
        "sudo modprobe -a inet_diag tcp_diag udp_diag (CONFIG_INET_DIAG)",
    )  # fmt: skip


def ptrace(root: str, trials: Trials) -> Finding:
    """Tried by a child. A refusal matters to ``--mode ptrace`` alone."""
    name, title = "ptrace", "ptrace"
    trial = trials.get("ptrace")
    try:
        scope = host_files.sysctl(root, "kernel/yama/ptrace_scope")
    except OSError:
        scope = None
    words = _YAMA.get(scope, f"Yama scope {scope}") if scope is not None else "no Yama"
    if trial is None:
        return Finding(name, title, Status.UNKNOWN, f"not tried; {words}")
    if trial.ok:
        return Finding(name, title, Status.OK, f"a child can be traced; {words}")
    if scope is not None and scope >= 2:
        cure = "sudo sysctl -w kernel.yama.ptrace_scope=1  # scope 3 cannot be lowered before the next boot"
    else:
        cure = "allow ptrace (podman, docker: --cap-add SYS_PTRACE or --security-opt seccomp=unconfined)"
    return Finding(
        name, title, Status.WARNING,
        f"a child cannot be traced: {trial.detail.lower()}; {words}; only tracing needs it, a graft does not", cure,
    )  # fmt: skip


def seccomp(place: Place, trials: Trials) -> Finding:
    name, title = "seccomp", "seccomp"
    if place.seccomp is None:
        return Finding(name, title, Status.UNKNOWN, "/proc/self/status does not tell")
    if place.seccomp == 0:
        return Finding(name, title, Status.OK, "no filter")
    refused = [
        trial.name.replace("-", " ")
        for trial in trials.done.values()
        if trial.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS)
    ]
    if refused:
        return Finding(
            name, title, Status.WARNING,
            f"a filter is in force, and these were refused, perhaps by it: {', '.join(refused)}",
            "podman, docker: --security-opt seccomp=unconfined; systemd: SystemCallFilter, RestrictNamespaces",
        )  # fmt: skip
    return Finding(name, title, Status.OK, "a filter is in force, and refused nothing that was tried")

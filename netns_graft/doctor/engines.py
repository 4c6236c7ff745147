"""Container engines and runtimes: found or not, their versions, and the control groups they will meet."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from netns_graft.doctor.finding import Finding, Status, reason
from netns_graft.doctor.place import Place
from netns_graft.engines.containers_conf import Engine
from netns_graft.linux import host_files

PROGRAMS = ("podman", "buildah", "runc", "crun")
_SECONDS = 5.0
_VERSION = re.compile(r"version[ :]+([0-9][0-9A-Za-z.+~-]{0,40})")


@dataclass(slots=True, frozen=True)
class Program:
    """``version`` None: it is there, and did not tell; ``fault`` says why."""

    name: str
    path: str | None
    version: str | None = None
    fault: str | None = None
    words: tuple[str, ...] = ()


class Asking:
    """``--version`` of each program that is there, all at once. Call ``answers`` once."""

    def __init__(self, which: Callable[[str], str | None], environ: Mapping[str, str]) -> None:
        # crun makes its state directory even to tell its version; below /proc/self it cannot, and does not mind.
        quiet = {**environ, "XDG_RUNTIME_DIR": "/proc/self"}
        self._started: dict[str, tuple[str | None, subprocess.Popen[bytes] | str | None]] = {}
        for name in PROGRAMS:
            path = which(name)
            self._started[name] = (path, _start(path, quiet if name == "crun" else environ) if path else None)

    def answers(self) -> dict[str, Program]:
        return {name: _answer(name, path, process) for name, (path, process) in self._started.items()}


def _start(path: str, environ: Mapping[str, str]) -> subprocess.Popen[bytes] | str:
    try:
        return subprocess.Popen(
            [path, "--version"], env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return reason(error)


def _answer(name: str, path: str | None, process: subprocess.Popen[bytes] | str | None) -> Program:
    if process is None:
        return Program(name, path)
    if isinstance(process, str):
        return Program(name, path, fault=process)
    try:
        output, complaint = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Program(name, path, fault=f"no answer within {_SECONDS:.0f} seconds")
    found = _VERSION.search(output[:4096].decode(errors="replace"))
    if found:
        return Program(name, path, found[1])
    said = tuple(line[:200] for line in complaint[:4096].decode(errors="replace").splitlines()[-2:])
    return Program(name, path, fault=f"it told no version and ended with {process.returncode}", words=said)


def program(one: Program) -> Finding:
    if one.path is None:
        return Finding(one.name, one.name, Status.OK, "not installed; `exec` does not need it")
    if one.version is None:
        return Finding(
            one.name, one.name, Status.WARNING, f"{one.path} does not run: {one.fault}",
            f"see that `{one.path} --version` works", one.words,
        )  # fmt: skip
    return Finding(one.name, one.name, Status.OK, f"{one.version} ({one.path})")


def control_groups(root: str, place: Place, programs: Mapping[str, Program], engine: Engine) -> Finding:
    """Unified, hybrid or v1. Rootless crun starts nothing in hybrid mode."""
    name, title = "cgroups", "control groups"
    try:
        mode = control_group_mode(host_files.mounts(root))
    except OSError as error:
        return Finding(name, title, Status.UNKNOWN, f"/proc/self/mountinfo: {reason(error)}")
    if mode is None:
        return Finding(name, title, Status.OK, "not mounted; `exec` needs none, engines do")
    crun = programs["crun"].path
    runc = programs["runc"].path
    if mode == "hybrid" and place.uid != 0 and crun:
        if engine.runtime == "runc" and runc:
            return Finding(name, title, Status.OK, "hybrid; crun would refuse that, runc is the runtime set")
        cure = "boot with systemd.unified_cgroup_hierarchy=1"
        if runc:
            cure = f"podman --runtime runc, or {cure}"
        return Finding(name, title, Status.WARNING, "hybrid: rootless crun refuses to start anything", cure)
    if mode != "unified" and place.uid != 0:
        return Finding(name, title, Status.OK, f"{mode}: rootless engines can set no limits")
    return Finding(name, title, Status.OK, mode)


def control_group_mode(mounts: list[host_files.Mount]) -> str | None:
    """ "unified", "hybrid" (v1 with a v2 tree beside it), "v1", or None when nothing is mounted."""
    kinds = {mount.kind for mount in mounts if mount.point.startswith("/sys/fs/cgroup")}
    if {"cgroup", "cgroup2"} <= kinds:
        return "hybrid"
    if "cgroup2" in kinds:
        return "unified"
    return "v1" if "cgroup" in kinds else None

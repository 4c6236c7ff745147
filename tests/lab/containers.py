"""Container engines on the lab's host: an image of our own, podman and the bare runtimes, and what they leave.

These tests live in a PID namespace of their own (tests/run makes it), so that "what is left" is every process
that was not there before, whoever started it and wherever it hides, and so that none survives the tests.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.grafting import Host, command_of, namespace_of
from lab.identities import installed_command
from lab.internet import Lab, eventually

IMAGE = "localhost/lab"
APPLETS = [
    "sh", "wget", "cat", "ls", "sleep", "nc", "ip", "id", "true", "false", "echo", "nslookup", "ping", "env", "mkdir",
    "kill", "ps",
]  # fmt: skip
HOOK = Path(__file__).parents[2] / "hooks" / "oci_hook.py"
ONLY_ANNOTATED = {"annotations": {r"^io\.netns-graft\..*$": ".*"}}
WITH_A_FILE = {"annotations": {r"^io\.netns-graft\.flows$": ".*"}}
# Inside the image, so that a container may run as anybody.
PASSWD = "root:x:0:0:root:/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n"


def make_image(path: Path, *programs: Path) -> None:
    """A root file system as a tar: busybox, and ``programs`` in /bin."""
    with tarfile.open(path, "w") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o755, data: bytes = b"", link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.size, member.linkname = kind, mode, len(data), link
            tar.addfile(member, io.BytesIO(data))

        for directory in ("bin", "etc", "proc", "sys", "dev", "run", "var"):
            add(directory, tarfile.DIRTYPE)
        add("tmp", tarfile.DIRTYPE, mode=0o1777)
        add("etc/passwd", mode=0o644, data=PASSWD.encode())
        add("etc/group", mode=0o644, data=b"root:x:0:\nwww-data:x:33:\n")
        add("bin/busybox", data=Path("/bin/busybox").read_bytes())
        for applet in APPLETS:
            add(f"bin/{applet}", tarfile.SYMTYPE, link="busybox")
        for program in programs:
            add(f"bin/{program.name}", data=program.read_bytes())


def prepare_host(lab: Lab) -> None:
    """Lay directories of the lab's over those that root's podman writes to, for those inside only."""
    host = lab.host
    host.run("mount", "--make-rshared", "/")  # as on any host; podman says so when it is not
    for path in ("/run", "/var/lib"):
        host.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", path)
    for path in ("/var/lib/containers", "/etc/containers", "/usr/share/containers"):
        own = lab.place / path.strip("/").replace("/", "-")
        if path.startswith("/var"):
            own.mkdir()
            host.run("mkdir", path)
        else:
            host.run("cp", "-a", path, str(own))
        host.run("mount", "--bind", str(own), path)
    # Rootless crun refuses a machine with both cgroup hierarchies, which containers in CI often are.
    if Path("/sys/fs/cgroup/unified").is_mount():
        host.run("umount", "/sys/fs/cgroup/unified")


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended, as text."""

    status: int
    stdout: str
    stderr: str

    def ok(self) -> str:
        """stdout, when it succeeded."""
        assert self.status == 0, f"status {self.status}\n{self.stdout[-2000:]}\n{self.stderr[-4000:]}"
        return self.stdout


class Engine:
    """Podman of one identity with one runtime, and the directories in which netns-graft keeps what is its own."""

    def __init__(self, host: Host, runtime: str) -> None:
        self.host = host
        self.lab = host.lab
        self.runtime = runtime
        self.rootless = host.identity.uid != 0
        self.hooks_dir = host.identity.own_directory(host.place / "hooks.d")
        self.log = host.place / "hook.log"

    @property
    def graft_dir(self) -> Path:
        """netns-graft's runtime directory, as this process can reach it."""
        if self.rootless:
            return self.host.identity.runtime_dir / "netns-graft"
        return self.seen("/run/netns-graft")

    def seen(self, path: str) -> Path:
        """A path of the lab's host as this process can reach it."""
        return Path(f"/proc/{self.lab.host.pid}/root{path}")

    # Running

    def run(
        self, *command: str, timeout: float = 60.0, env: Mapping[str, str] | None = None, input: bytes = b""
    ) -> Done:  # fmt: skip
        done = self.host.run(*command, timeout=timeout, env=env, input=input)
        return Done(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def graft(self, *words: str, **more: Any) -> Done:
        """``netns-graft WORDS``."""
        return self.run(installed_command(), *words, **more)

    def podman(self, *words: str, **more: Any) -> Done:
        """``podman WORDS`` with our runtime and hooks directory."""
        return self.run(*self.podman_argv(*words), **more)

    def podman_argv(self, *words: str) -> list[str]:
        return ["podman", "--runtime", self.runtime, "--hooks-dir", str(self.hooks_dir), *words]

    def run_argv(self, *words: str, annotations: Mapping[str, str] | None = None) -> list[str]:
        """``podman run --network=none`` grafted by annotations; an empty map is a container that is none of ours."""
        given = {"default": "allow"} if annotations is None else annotations
        marks = [f"--annotation=io.netns-graft.{name}={value}" for name, value in given.items()]
        return self.podman_argv("run", "--network=none", *self.limits, *marks, *words)

    def run_grafted(self, *words: str, annotations: Mapping[str, str] | None = None, **more: Any) -> Done:
        return self.run(*self.run_argv(*words, annotations=annotations), **more)

    @property
    def limits(self) -> list[str]:
        # podman asks for more than a container that plays a host may have
        return [] if self.rootless else ["--ulimit=nofile=20000:20000", "--ulimit=nproc=4096:4096"]

    @contextmanager
    def started(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that runs meanwhile; killed on the way out if it is still there."""
        with subprocess.Popen(
            self.host.argv(command), env=self.host.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait(timeout=10)

    # Hooks, by hand

    def hook_words(self, stage: str, *more: str) -> list[str]:
        """The hook's command line as an installation bakes it into the definition."""
        runtime_dir = str(self.host.identity.runtime_dir / "netns-graft") if self.rootless else "/run/netns-graft"
        return [
            "/usr/bin/python3", "-IS", str(HOOK), "--runtime-dir", runtime_dir, "--python", str(python()),
            "--log", str(self.log), "--stage", stage, *more,
        ]  # fmt: skip

    def write_hooks(
        self, *more: str, when: Mapping[str, Any] = ONLY_ANNOTATED, words: Sequence[str] | None = None
    ) -> None:  # fmt: skip
        """Definitions of both stages, as an installation has them; ``words`` instead of the hook's own command line."""
        farewell = WITH_A_FILE if when is ONLY_ANNOTATED else when
        for stage, fires in (("createRuntime", when), ("poststop", farewell)):
            argv = list(words) if words is not None else self.hook_words(stage, *more)
            definition = {
                "version": "1.0.0",
                "hook": {"path": argv[0], "args": argv},
                "when": dict(fires),
                "stages": [stage],
            }
            (self.hooks_dir / f"netns-graft-{stage}.json").write_text(json.dumps(definition))

    def configure(self, text: str | None) -> None:
        """A drop-in of containers.conf's, or none any more."""
        if text is None:
            (self.config_dir / "containers.conf.d/50-test.conf").unlink()
        else:
            self.write_config("containers.conf.d/50-test.conf", text)

    def write_config(self, name: str, text: str) -> None:
        file = self.config_dir / name
        for directory in (self.config_dir.parent, self.config_dir, file.parent):
            if not directory.exists():
                directory.mkdir()
                os.chown(directory, self.host.identity.uid, self.host.identity.gid)
        file.write_text(text)

    @property
    def config_dir(self) -> Path:
        """Where podman looks for this user's configuration."""
        return self.host.identity.home / ".config/containers" if self.rootless else self.seen("/etc/containers")

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    # What there is

    def workloads(self) -> list[str]:
        """Names of the workloads that have a status socket."""
        try:
            return sorted(entry.removesuffix(".sock") for entry in os.listdir(self.graft_dir / "workloads"))
        except FileNotFoundError:
            return []

    def broker(self) -> Process:
        """The one of this identity's podman."""
        own = f"{self.host.identity.runtime_dir}/" if self.rootless else "/run/netns-graft/"
        (broker,) = (broker for broker in brokers() if _holds(broker.pid, own, "/lock"))
        return broker

    def containers(self) -> list[str]:
        return self.podman("ps", "--all", "--quiet").ok().split()

    def pid_of(self, container: str) -> int:
        return int(self.podman("inspect", "--format", "{{.State.Pid}}", container).ok())

    def conmon_of(self, container: str) -> int:
        path = self.podman("inspect", "--format", "{{.ConmonPidFile}}", container).ok().strip()
        return int(self.seen(path).read_text())


def python() -> Path:
    """The interpreter of the environment that runs the tests, which has netns-graft."""
    return Path(installed_command()).parent / "python"


@dataclass(frozen=True, slots=True)
class Process:
    """One process, as one line of a failure needs it."""

    pid: int
    started: str  # clock ticks since boot
    command: str

    def __str__(self) -> str:
        return f"process {self.pid}: {self.command}"


def processes() -> set[Process]:
    """Every process there is (this one left out, and zombies), for /proc shows our PID namespace only."""
    found = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            found.add(Process(int(entry), fields[19], " ".join(command_of(int(entry)))))
    return found


def lasting(process: Process) -> bool:
    """What may stay when the last container has gone: podman's pause process, and the broker until it is idle.

    conmon adopts every orphan below it and waits for them all, so the one under which a hook had to start the broker
    stays as long as the broker does, which no process below it can help.
    """
    if process.command == "catatonit -P" or _is_broker(process.pid):
        return True
    if "conmon" in process.command:
        return any(_is_broker(child) for child in _children(process.pid))
    return _is_brokers_own(process)


def brokers() -> list[Process]:
    """Those that hold a lock of theirs, and nobody else of the same command line does."""
    return sorted((p for p in processes() if _is_broker(p.pid)), key=lambda p: p.pid)


def forwarders() -> list[Process]:
    """Forked by a broker to hold one graft each, whatever became of the broker: they hold F and W."""
    ours = (p for p in processes() if _SERVE in p.command)
    return sorted((p for p in ours if _holds(p.pid, "net:[") >= 2), key=lambda p: p.pid)


_SERVE = "netns_graft serve"


def _is_broker(pid: int) -> bool:
    return _holds(pid, "/netns-graft/broker-", "/lock") > 0


def _is_brokers_own(process: Process) -> bool:
    """The broker's HTTP side, or the spare that waits for a container: below it, and holding no workload."""
    if _SERVE not in process.command or _holds(process.pid, "net:[") >= 2:
        return False
    parent = process.pid
    for _ in range(2):  # the spare has a child that waits in F
        try:
            with open(f"/proc/{parent}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return False
        if _is_broker(parent):
            return True
    return False


def _holds(pid: int, *words: str) -> int:
    """How many of its descriptors are of what has all these words in its name."""
    count = 0
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            name = os.readlink(f"/proc/{pid}/fd/{fd}")
            count += all(word in name for word in words)
    except OSError:
        pass  # it ended meanwhile, or closed one
    return count


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def gone(process: Process) -> bool:
    return eventually(lambda: process not in processes())


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def in_namespace(namespace: str | None) -> list[int]:
    """Every process in this network namespace."""
    return [p.pid for p in processes() if namespace is not None and namespace_of(p.pid) == namespace]


def read_flows_of(path: Path, count: int, seconds: float = 10.0) -> list[dict[str, Any]]:
    """The records in ``path`` once there are ``count`` TCP flows among them, or those there are after a while."""

    def tcp() -> list[dict[str, Any]]:
        if not path.exists():
            return []
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [flow for flow in map(json.loads, lines) if flow["protocol"] == "tcp"]

    eventually(lambda: len(tcp()) >= count, seconds)
    return tcp()

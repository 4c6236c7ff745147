"""Run netns-graft, or anything else, on the lab's host as one of the identities, and read what it leaves."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.identities import Identity, installed_command
from lab.internet import Lab

Record = dict[str, Any]
NO_SANDBOX = "mode ptrace is not a sandbox"


@dataclass(frozen=True, slots=True)
class Grafted:
    """How one run of netns-graft ended. ``flows`` are its records in their order."""

    status: int
    stdout: bytes
    stderr: str
    seconds: float
    flows: list[Record]

    def tcp(self, port: int | None = None) -> list[Record]:
        """The TCP flows, to ``port`` when one is given."""
        return [
            flow for flow in self.flows
            if flow["protocol"] == "tcp" and port in (None, flow["destination"]["port"])
        ]  # fmt: skip

    def one_tcp(self, port: int | None = None) -> Record:
        """The only TCP flow."""
        flows = self.tcp(port)
        assert len(flows) == 1, f"one TCP flow expected, not {flows}; stderr: {self.stderr}"
        return flows[0]

    def names(self) -> list[str]:
        """The names of the DNS questions, in their order."""
        return [flow["destination"]["host"] for flow in self.flows if flow["protocol"] == "dns"]

    def error_line(self) -> str:
        """The one ``error:`` line; fails when there is none, more than one, or a traceback."""
        assert "Traceback" not in self.stderr, self.stderr
        lines = [line for line in self.stderr.splitlines() if line.startswith("netns-graft: error: ")]
        assert len(lines) == 1, self.stderr
        return lines[0]


class Host:
    """The lab's host as one user sees it. ``mode`` is exec's."""

    def __init__(self, lab: Lab, identity: Identity, place: Path, mode: str = "route") -> None:
        self.lab = lab
        self.mode = mode
        self.identity = identity
        self.place = identity.own_directory(place)  # a directory of the user's, empty for each test
        self._runs = 0

    def argv(self, command: Sequence[str], resolv_conf: str | None = None) -> list[str]:
        """The whole command line: into the namespaces, with another resolv.conf when asked, and down to the
        user.
        """
        inside = [*self.identity.become, "env", "-C", str(self.place), *command]
        if resolv_conf is not None:
            file = str(self.lab.file(resolv_conf))
            lay = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
            inside = ["unshare", "--mount", "sh", "-c", lay, file, *inside]
        return [*self.lab.host.enter, *inside]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**self.identity.environment(), **(more or {})}

    def graft_argv(self, options: Sequence[str], command: Sequence[str]) -> list[str]:
        mode = [] if self.mode == "route" else ["--mode", self.mode]
        return [installed_command(), "exec", *mode, *options, "--", *command]

    def run(
        self, *command: str, input: bytes = b"", env: Mapping[str, str] | None = None,
        timeout: float = 60.0, resolv_conf: str | None = None,
    ) -> subprocess.CompletedProcess[bytes]:  # fmt: skip
        """Run ``command`` on the host, not grafted, to its end."""
        process = subprocess.Popen(
            self.argv(command, resolv_conf), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=self.environment(env), start_new_session=True,
        )  # fmt: skip
        with process:
            try:
                out, err = process.communicate(input, timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate(timeout=10)
                raise AssertionError(
                    f"{' '.join(command)} did not end in {timeout} s\n{out[-2000:]!r}\n{err[-2000:]!r}"
                ) from None
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def graft(
        self, options: Sequence[str], *command: str, input: bytes = b"", env: Mapping[str, str] | None = None,
        timeout: float = 60.0, resolv_conf: str | None = None,
    ) -> Grafted:  # fmt: skip
        """``netns-graft exec OPTIONS -- COMMAND`` to its end, with its flows."""
        flows = self.flows_file()
        began = time.monotonic()
        done = self.run(
            *self.graft_argv(["--flows", str(flows), *options], command),
            input=input, env=env, timeout=timeout, resolv_conf=resolv_conf,
        )  # fmt: skip
        seconds = time.monotonic() - began
        stderr = self.told(done.stderr.decode(errors="replace"))
        return Grafted(done.returncode, done.stdout, stderr, seconds, read_flows(flows))

    def told(self, stderr: str) -> str:
        """Without the line that every run in mode ptrace has, and that one test looks at."""
        if self.mode == "route":
            return stderr
        return "".join(line for line in stderr.splitlines(keepends=True) if NO_SANDBOX not in line)

    def flows_file(self) -> Path:
        self._runs += 1
        return self.place / f"flows-{self._runs}.jsonl"

    @contextmanager
    def started(
        self, options: Sequence[str], *command: str, env: Mapping[str, str] | None = None, **popen: Any
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A graft that runs meanwhile, with pipes to it; killed on the way out if it is still there."""
        argv = self.argv(self.graft_argv(options, command))
        settings: dict[str, Any] = {
            "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
            "start_new_session": True, **popen,
        }  # fmt: skip
        with subprocess.Popen(argv, env=self.environment(env), **settings) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait(timeout=10)

    def script(self, name: str, text: str, mode: int = 0o755) -> str:
        """A file of the user's in its place, executable unless told; gives its path."""
        path = self.place / name
        path.write_text(text)
        path.chmod(mode)
        os.chown(path, self.identity.uid, self.identity.gid)
        return str(path)


def read_flows(path: Path) -> list[Record]:
    """The records in ``path``; none when it was never made."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def read_line(process: subprocess.Popen[bytes], seconds: float = 20.0) -> str:
    """One line of what the process says on stdout; fails when none comes in time."""
    assert process.stdout is not None
    fd, line = process.stdout.fileno(), b""
    deadline = time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(fd, 1) if ready else b""
        if not byte:
            stderr = (
                os.read(process.stderr.fileno(), 4096)
                if process.stderr and process.poll() is not None
                else b""
            )
            raise AssertionError(f"no line, but {line!r}; stderr {stderr!r}")
        line += byte
    return line.decode().rstrip("\n")


def descendants(pid: int) -> list[int]:
    """``pid``'s children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a running graft: ours, the supervisor first, and the command's."""

    ours: list[int]
    command: list[int]


def processes_of(supervisor: int, argv0: str) -> Processes:
    """All processes of the graft whose command, and every process of the command's, has ``argv0``."""
    below = descendants(supervisor)
    command = [pid for pid in below if command_of(pid)[:1] == [argv0]]
    return Processes([supervisor, *(pid for pid in below if pid not in command)], command)


def command_of(pid: int) -> list[str]:
    """argv of a process, empty when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def state_of(pid: int) -> str | None:
    """The letter of the process's state (``T`` stopped, ``Z`` a zombie); None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return None


def namespace_of(pid: int, kind: str = "net") -> str | None:
    """Which namespace a process is in, as the kernel names it; None when it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return None

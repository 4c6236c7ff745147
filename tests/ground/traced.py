"""A command and its tracer, as ptrace mode has them: two processes, neither of which is the other's parent.

The test is the parent of both, so what it learns of the command (exit status, stops) is what a shell would learn. What
the tracer saw is told at the end, as a ``Report``.
"""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ground.child import end, fork, wait
from netns_graft.linux import seccomp, syscalls
from netns_graft.linux.syscalls import _libc
from netns_graft.tracing.call import Call
from netns_graft.tracing.tracer import Tracer


@dataclass
class Report:
    calls: list[tuple[int, str]] = field(default_factory=list)  # process, name
    execs: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[object] = field(default_factory=list)  # what the test's own ``on_call`` wants to tell
    micros: float = 0.0  # of processor time, for all


_NUMBER = 16  # bytes, so that it is read alone
OnCall = Callable[[Call, Report], None]


def _go_on(call: Call, _report: Report) -> None:
    call.go_on()


class Traced:
    """``command``: a program's arguments, or a function to be run in a fork. ``on_call`` runs in the tracer."""

    def __init__(
        self,
        command: list[str] | Callable[[], object],
        on_call: OnCall = _go_on,
        *,
        strict: bool = False,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        instructions = seccomp.program(strict=strict)
        go_read, go_write = os.pipe()
        self._allowed_read, allowed_write = os.pipe()
        self._out_read, out_write = os.pipe()
        self._stop_read, self._stop_write = os.pipe()

        def run() -> None:
            os.close(go_write)
            os.close(self._stop_write)
            before()
            syscalls.set_ptracer(int(os.read(go_read, _NUMBER)))
            os.write(allowed_write, b".")
            os.read(go_read, 1)
            for fd in (go_read, allowed_write, self._allowed_read, self._out_read, out_write, self._stop_read):
                os.close(fd)
            seccomp.install(instructions, no_new_privs=True)
            if callable(command):
                command()
            else:
                os.execvp(command[0], command)

        self.pid = fork(run)
        self.tracer = fork(lambda: self._trace(on_call, out_write, before))
        os.write(go_write, str(self.tracer).encode().ljust(_NUMBER))
        for fd in (out_write, allowed_write, self._allowed_read, self._stop_read):
            os.close(fd)
        assert os.read(self._out_read, 1) == b"."  # seized
        os.write(go_write, b".")
        for fd in (go_read, go_write):
            os.close(fd)

    def _trace(self, on_call: OnCall, out_fd: int, before: Callable[[], object]) -> None:
        os.close(self._stop_write)
        os.close(self._out_read)
        before()
        report = Report()

        def noted(call: Call) -> None:
            report.calls.append((call.pid, call.name))
            on_call(call, report)

        tracer = Tracer(
            noted, on_exec=report.execs.append, on_end=report.ends.append, warn=report.warnings.append
        )
        os.read(self._allowed_read, 1)
        tracer.seize(self.pid)
        os.write(out_fd, b".")
        started = time.process_time()
        poll = select.epoll()
        poll.register(tracer.fd(), select.EPOLLIN)
        poll.register(self._stop_read, select.EPOLLIN)
        running = True
        while running:
            for fd, _ in poll.poll():
                running = running and fd != self._stop_read
            while tracer.turn():
                pass
        report.micros = (time.process_time() - started) * 1e6
        tracer.close()
        poll.close()
        with open(out_fd, "wb") as file:
            pickle.dump(report, file)

    def wait(self) -> int:
        """The command's exit status, by its real parent; negative: the signal."""
        return wait(self.pid)

    def report(self) -> Report:
        """What the tracer saw. Whoever it still traces ends."""
        os.close(self._stop_write)
        with open(self._out_read, "rb") as file:
            report = pickle.load(file)
        assert wait(self.tracer) == 0
        assert isinstance(report, Report)
        return report

    def finish(self) -> Report:
        """The command ends well, and so does the tracer."""
        status = self.wait()
        report = self.report()
        assert status == 0, (status, report)
        return report

    def kill_tracer(self) -> None:
        end(self.tracer)
        os.close(self._stop_write)
        os.close(self._out_read)


def state_of(pid: int) -> str:
    """R, S, D, T, t (stopped with a tracer), Z."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0].decode()


def become_ordinary() -> None:
    """As root: nobody, for the command and the tracer alike."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        _libc.prctl(syscalls.PR_SET_DUMPABLE, 1, 0, 0, 0)  # setuid has cleared it; its like may trace it again


def ended(pid: int) -> bool:
    """Whether it is gone, or waits for somebody (the system's first process, in its own time) to take note of it."""
    try:
        return state_of(pid) in "ZX"
    except OSError:
        return True


def compiled(folder: Path, source: str, *options: str) -> str:
    """The C program, as a file's name."""
    program = folder / "program"
    (folder / "program.c").write_text(source)
    subprocess.run(["gcc", "-O1", "-o", program, folder / "program.c", *options], check=True)
    return str(program)

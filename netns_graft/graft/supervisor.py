"""Stays with the command from its start to its end: signals, job control, exit status, and what is left behind.

The command is in our process group, so what the terminal sends (Ctrl-C, Ctrl-\\, Ctrl-Z) reaches it without us. A
signal that somebody sends to *us* is passed on. ``si_code`` tells the two apart: positive is the kernel's. When the
command stops, we stop, so that the shell sees its job stopped; when one of us is continued, so is the other.

Every way to end:

* the command ends: the forwarder finishes its records; what the command left running has no network any more
* the forwarder dies: the network is gone; every process in W is ended; status 125. In mode ptrace the kernel ends
  every process that it traced, and nothing is done by namespace, for that is the host's
* we are killed: the kernel ends the command (parent death signal), the forwarder sees our channel's end of file,
  ends every process in W, writes its records and leaves
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from netns_graft.errors import GraftError
from netns_graft.forwarder.life import end_everyone_in
from netns_graft.forwarder.serve import Settings
from netns_graft.graft import command as commands
from netns_graft.graft import forwarder_process
from netns_graft.graft.command import ENTERED, Command, Graft, Login, Signals, Surroundings, Traced
from netns_graft.graft.fork import is_real_root
from netns_graft.graft.forwarder_process import ForwarderProcess
from netns_graft.linux import control_sockets, proc

_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTSTP,
    signal.SIGWINCH,
    signal.SIGCONT,
)
_LOOK = 0.05  # seconds
_WATCHED = frozenset({*_PASSED_ON, signal.SIGCHLD})
# A terminal that closes may tell its session leader alone, and that may be us.
_ALWAYS_PASSED_ON = frozenset({signal.SIGHUP, signal.SIGCONT})


@dataclass(slots=True)
class Ending:
    """How it went. ``status`` as a shell would show it; ``tally`` is the forwarder's, as JSON."""

    status: int
    tally: str | None


@dataclass(slots=True)
class Plan:
    """One command in one graft."""

    command: Sequence[str]
    environment: Mapping[str, str]
    settings: Settings
    hold: bool  # keep SYNs back until the verdict
    resolv_conf: str | None
    loopback_resolvers: Sequence[str]
    status_dir: str | None = None  # where the forwarder may be asked how the workload fares
    login: Login | None = None  # whom the command runs as; None: the caller
    tracing: Tracing | None = None  # mode ptrace; then there is nothing to hold, and no resolv.conf


@dataclass(slots=True)
class Tracing:
    """Mode ptrace. ``ignore_local``: connections to the host's own addresses are left alone; ``strict``: what could
    pass the tracer by is denied."""

    ignore_local: bool
    strict: bool


def run(plan: Plan) -> Ending:
    """Build the graft, run the command in it, clean up. Raises GraftError; then nothing was left behind."""
    signals = Signals.as_inherited()
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    try:
        forwarder = _start(plan)
        try:
            return _run_command(plan, forwarder, signals)
        finally:
            forwarder.close()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals.mask)


def _start(plan: Plan) -> ForwarderProcess:
    if plan.tracing is not None:
        return forwarder_process.start_tracing(
            plan.settings, ignore_local=plan.tracing.ignore_local, status_dir=plan.status_dir
        )
    return forwarder_process.start(
        plan.settings,
        own_user_ns=not is_real_root(),
        hold=plan.hold,
        loopback_resolvers=plan.loopback_resolvers,
        status_dir=plan.status_dir,
    )


def _surroundings(plan: Plan, forwarder: ForwarderProcess) -> Surroundings:
    if plan.tracing is not None:
        return Traced(forwarder.pid, plan.tracing.strict)
    assert forwarder.workload_ns_fd is not None
    return Graft(forwarder.workload_ns_fd, forwarder.user_ns_fd, plan.resolv_conf)


def _run_command(plan: Plan, forwarder: ForwarderProcess, signals: Signals) -> Ending:
    command = Command(plan.command, plan.environment, plan.login, signals)
    go_read, go_write = os.pipe()
    report_read, report_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_write)
        os.close(report_read)
        commands.become(command, _surroundings(plan, forwarder), go_read, report_write)
    os.close(go_read)
    os.close(report_write)
    try:
        report = os.read(report_read, 4096)
        if report == ENTERED:
            _let_go(pid, forwarder, go_write)
            report = os.read(report_read, 4096)
        if report:
            os.waitpid(pid, 0)
            forwarder.finish()
            os.waitpid(forwarder.pid, 0)
            code, _, text = report.decode(errors="replace").partition(" ")
            raise GraftError(text, status=int(code))
        status = _watch(pid, forwarder)
    except _ForwarderDied:
        if forwarder.workload_ns_fd is not None:
            end_everyone_in(os.fstat(forwarder.workload_ns_fd).st_ino)
        os.waitpid(pid, 0)
        if plan.status_dir is not None:
            control_sockets.remove_stale(f"{plan.status_dir}/{plan.settings.kind}-{pid}.sock")
        raise GraftError("the forwarder died; the command's network is gone and the command was ended") from None
    finally:
        os.close(report_read)
        os.close(go_write)
    tally = forwarder.finish()
    _reap(forwarder.pid)
    return Ending(status, tally)


def _let_go(pid: int, forwarder: ForwarderProcess, go_write: int) -> None:
    """The command has entered; when the forwarder is ready for its flows it may go on. Raises GraftError."""
    try:
        forwarder.started(pid)
    except GraftError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        forwarder.finish()
        os.waitpid(forwarder.pid, 0)
        raise
    try:
        os.write(go_write, b"g")
    except BrokenPipeError:
        pass  # it failed before; its report says why


class _ForwarderDied(Exception):
    pass


def _watch(pid: int, forwarder: ForwarderProcess) -> int:
    """Until the command has ended. Returns its status, 128+N when signal N ended it."""
    while True:
        status = _take_children(pid, forwarder)
        if status is not None:
            return status
        info = signal.sigwaitinfo(_WATCHED)
        number = signal.Signals(info.si_signo)
        if number == signal.SIGCHLD or (info.si_code > 0 and number not in _ALWAYS_PASSED_ON):
            continue
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _take_children(pid: int, forwarder: ForwarderProcess) -> int | None:
    """Look at every child that changed: the command's end, its stops, the forwarder's death."""
    while True:
        try:
            changed, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            raise _ForwarderDied from None
        if changed == 0:
            return None
        if changed == pid and os.WIFSTOPPED(status):
            _stop_with(pid)
        elif changed == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        elif changed == forwarder.pid and not os.WIFSTOPPED(status):
            raise _ForwarderDied


def _stop_with(pid: int) -> None:
    """Stop, so that our own shell may take the terminal back, until we are continued (SIGCONT is passed on above) or
    the command is: somebody may continue it alone, even before we have stopped, and nobody would then continue us.
    """
    supervisor = os.getpid()
    watcher = os.fork()
    if watcher == 0:
        try:
            while os.getppid() == supervisor:
                if proc.is_stopped(supervisor) and not proc.is_stopped(pid):
                    os.kill(supervisor, signal.SIGCONT)
                time.sleep(_LOOK)
        finally:
            os._exit(0)
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(watcher, signal.SIGKILL)
    os.waitpid(watcher, 0)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass

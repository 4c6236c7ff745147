"""Traced threads live and end as they would alone: forks, execs, threads, signals, stops."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable

import pytest
from ground.child import eventually, wait
from ground.traced import Report, Traced, ended, state_of

from netns_graft.linux import proc
from netns_graft.tracing.call import Call

PYTHON = [sys.executable, "-IS", "-c"]
CLONE_UNTRACED, CLONE_VM, CLONE_VFORK, CLONE_FILES = 0x00800000, 0x100, 0x4000, 0x400
SYS_CLONE, SYS_CLONE3, SYS_UNSHARE, SYS_TGKILL = (
    (56, 435, 272, 234) if os.uname().machine == "x86_64" else (220, 435, 97, 131)
)


def test_the_exit_status_is_the_commands_own() -> None:
    for program, status in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)):
        traced = Traced([*PYTHON, program])
        assert traced.wait() == status
        report = traced.report()
        assert (report.execs, report.ends) == ([traced.pid], [traced.pid])


def test_two_thousand_forks() -> None:
    def work() -> None:
        for number in range(1000):
            pid = os.fork()
            if pid == 0:
                os._exit(number & 0x7F)
            assert wait(pid) == number & 0x7F
        for _ in range(1000):
            assert wait(os.posix_spawn("/bin/true", ["true"], {})) == 0

    report = Traced(work).finish()
    assert len(report.execs) == 1000
    assert len(report.ends) == 2001 == len(set(report.ends))


def test_many_at_once_who_have_children_themselves() -> None:
    def work() -> None:
        running = []
        for _ in range(40):
            if (pid := os.fork()) == 0:
                for _ in range(5):
                    wait(os.posix_spawn("/bin/true", ["true"], {}))
                os._exit(0)
            running.append(pid)
        assert [wait(pid) for pid in running] == [0] * 40

    report = Traced(work).finish()
    assert (len(report.execs), len(report.ends)) == (200, 241)


def test_vfork_runs_its_child_first() -> None:
    # _fork_exec uses vfork, by which the parent waits for the child's exec
    program = """
import subprocess
for _ in range(100):
    assert subprocess.run(["/bin/true"]).returncode == 0
try:
    subprocess.run(["/nonexistent"])
except FileNotFoundError:
    pass
else:
    raise SystemExit(1)
"""
    report = Traced([sys.executable, "-I", "-c", program]).finish()
    assert len(report.execs) == 101
    assert len(report.ends) == 102


def test_a_thread_storm_in_which_threads_exec() -> None:
    # In each child some thread, not the first, execs while others connect; the first takes part in nothing.
    program = """
import os, socket, threading
def connect():
    while True:
        with socket.socket() as sock:
            sock.connect_ex(("127.0.0.1", 9))
def execute():
    os.execv("/bin/true", ["true"])
for _ in range(40):
    pid = os.fork()
    if pid == 0:
        for _ in range(6):
            threading.Thread(target=connect, daemon=True).start()
        threading.Thread(target=execute).start()
        connect()
    assert os.waitpid(pid, 0)[1] == 0
"""
    report = Traced([*PYTHON, program]).finish()
    assert (len(report.execs), len(report.ends)) == (41, 41)  # threads' ends are nobody's end
    assert {name for _, name in report.calls} >= {"connect"}
    assert {pid for pid, _ in report.calls} <= set(report.ends)  # each call is the process's, whatever thread made it


def test_many_threads_come_and_go() -> None:
    def work() -> None:
        for _ in range(30):
            threads = [threading.Thread(target=os.getpid) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    traced = Traced(work)
    pid, report = traced.pid, traced.finish()
    assert report.ends == [pid]


def test_the_parent_sees_stops_as_ever() -> None:
    # In a process group of its own, with us as its parent: SIGTSTP does not stop an orphaned group, as a job of a
    # session without a shell is one.
    program = "import os, signal; os.setpgid(0, 0); os.kill(os.getpid(), signal.SIGSTOP); signal.pause()"
    traced = Traced([*PYTHON, program])
    for number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGSTOP):
        _, status = os.waitpid(traced.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == number
        assert state_of(traced.pid) == "t"  # stopped with a tracer is written small
        os.kill(traced.pid, signal.SIGCONT)
        _, status = os.waitpid(traced.pid, os.WCONTINUED)
        assert os.WIFCONTINUED(status)
        assert eventually(lambda: state_of(traced.pid) == "S")
        os.kill(traced.pid, signal.SIGTSTP if number == signal.SIGSTOP else signal.SIGSTOP)
    os.waitpid(traced.pid, os.WUNTRACED)
    os.kill(traced.pid, signal.SIGTERM)
    os.kill(traced.pid, signal.SIGCONT)
    assert traced.wait() == -signal.SIGTERM
    traced.report()


def test_a_stop_holds_all_threads_and_new_ones() -> None:
    program = """
import os, signal, threading, time
for _ in range(5):
    threading.Thread(target=signal.pause, daemon=True).start()
os.write(1, b".")
signal.pause()
"""
    out_read, out_write = os.pipe()
    traced = Traced([*PYTHON, program], before=lambda: os.dup2(out_write, 1))
    os.close(out_write)
    assert os.read(out_read, 1) == b"."
    os.kill(traced.pid, signal.SIGSTOP)
    os.waitpid(traced.pid, os.WUNTRACED)
    threads = proc.threads(traced.pid)
    assert len(threads) == 6
    assert eventually(lambda: {state_of(thread) for thread in threads} == {"t"})
    os.kill(traced.pid, signal.SIGCONT)
    assert eventually(lambda: {state_of(thread) for thread in threads} == {"S"})
    os.kill(traced.pid, signal.SIGKILL)
    assert traced.wait() == -signal.SIGKILL
    os.close(out_read)
    assert traced.report().ends == [traced.pid]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGTRAP, signal.SIGRTMIN + 3, signal.SIGCHLD])
def test_a_signal_comes_with_all_that_it_carries(number: int) -> None:
    ready_read, ready_write = os.pipe()

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        os.write(ready_write, b".")
        info = signal.sigwaitinfo({number})
        assert (info.si_signo, info.si_pid, info.si_code) == (number, os.getppid(), 0)
        seen_read, seen_write = os.pipe()
        signal.signal(number, lambda *it: os.write(seen_write, b"%d" % it[0]))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.write(ready_write, b".")
        assert int(os.read(seen_read, 8)) == number

    traced = Traced(work)
    os.close(ready_write)
    for _ in range(2):
        assert os.read(ready_read, 1) == b"."
        os.kill(traced.pid, number)
    os.close(ready_read)
    traced.finish()


def test_a_blocking_read_is_restarted_or_interrupted_as_its_handler_says() -> None:
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    libc = ctypes.CDLL(None, use_errno=True)

    def work() -> None:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        byte = ctypes.create_string_buffer(1)
        for restarts in (True, False):
            signal.siginterrupt(signal.SIGUSR1, not restarts)
            os.write(out_write, b".")
            got = libc.read(in_read, byte, 1)
            assert got == (1 if restarts else -1)
        assert ctypes.get_errno() == errno.EINTR

    traced = Traced(work)
    os.close(out_write)
    for restarts in (True, False):
        assert os.read(out_read, 1) == b"."
        assert eventually(lambda: state_of(traced.pid) == "S")
        os.kill(traced.pid, signal.SIGUSR1)
        if restarts:
            os.write(in_write, b"x")
    for fd in (in_read, in_write, out_read):
        os.close(fd)
    traced.finish()


def test_the_tracer_killed_ends_everybody() -> None:
    out_read, out_write = os.pipe()

    def work() -> None:
        pids = [os.getpid()]
        for _ in range(3):
            if (pid := os.fork()) == 0:
                os.setsid()
                while True:
                    signal.pause()
            pids.append(pid)
        os.write(out_write, " ".join(map(str, pids)).encode())
        while True:
            signal.pause()

    traced = Traced(work)
    pids = [int(pid) for pid in os.read(out_read, 100).split()]
    traced.kill_tracer()
    assert traced.wait() == -signal.SIGKILL
    os.close(out_read)
    os.close(out_write)
    assert eventually(lambda: all(ended(pid) for pid in pids))


def test_the_tracer_closed_ends_everybody() -> None:
    out_read, out_write = os.pipe()

    def work() -> None:
        for _ in range(3):
            if os.fork() == 0:
                break
        threading.Thread(target=signal.pause).start()
        os.write(out_write, b"%d " % os.getpid())
        while True:
            signal.pause()

    traced = Traced(work)
    os.close(out_write)
    pids: list[int] = []
    while len(pids) < 4:
        pids += [int(pid) for pid in os.read(out_read, 100).split()]
    traced.report()
    assert traced.wait() == -signal.SIGKILL
    os.close(out_read)
    assert eventually(lambda: all(ended(pid) for pid in pids))


def untraced_clone() -> int:
    """Forks as ``clone(SIGCHLD | CLONE_UNTRACED)``."""
    return int(ctypes.CDLL(None).syscall(SYS_CLONE, CLONE_UNTRACED | signal.SIGCHLD, 0, 0, 0, 0))


def untraced_clone3() -> int:
    arguments = (ctypes.c_uint64 * 8)(CLONE_UNTRACED, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = int(ctypes.CDLL(None).syscall(SYS_CLONE3, ctypes.byref(arguments), 64))
    assert pid == 0 or arguments[0] == CLONE_UNTRACED  # as the program wrote it
    return pid


@pytest.mark.parametrize("clone", [untraced_clone, untraced_clone3])
def test_nobody_leaves_by_clone_untraced(clone: Callable[[], int]) -> None:
    def work() -> None:
        pid = clone()
        if pid == 0:
            os.execv("/bin/true", ["true"])
        assert pid > 0 and wait(pid) == 0

    traced = Traced(work)
    pid, report = traced.pid, traced.finish()
    assert len(report.execs) == 1
    assert set(report.ends) == {*report.execs, pid}


def test_nothing_is_held_when_a_thread_is_killed_in_its_call() -> None:
    import socket

    out_read, out_write = os.pipe()

    def keep(call: Call, report: Report) -> None:
        report.notes.append(call.name)
        os.write(out_write, b".")  # and the call is never let go

    def work() -> None:
        with socket.socket() as sock:
            sock.connect(("127.0.0.1", 9))

    traced = Traced(work, keep)
    assert os.read(out_read, 1) == b"."
    os.kill(traced.pid, signal.SIGTERM)  # not heard in this stop
    os.kill(traced.pid, signal.SIGKILL)
    assert traced.wait() == -signal.SIGKILL
    os.close(out_read)
    os.close(out_write)
    assert traced.report().ends == [traced.pid]


def test_who_wants_to_trace_is_told_once() -> None:
    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for _ in range(2):
            assert libc.ptrace(0, 0, 0, 0) == -1
            assert ctypes.get_errno() == errno.EPERM

    report = Traced(work).finish()
    assert report.warnings == [
        f"{os.path.realpath(sys.executable)} wants to trace processes: those of this command are traced by"
        " netns-graft already"
    ]

"""What processes may do to each other, and what becomes of them. The threat model and the clean end rest on these.

Everything here is tried by an ordinary user: as root, the test's processes become nobody first.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable

import pytest
from ground.child import end, eventually, fork, wait

from netns_graft.linux import syscalls

NOBODY = 65534
PR_SET_DUMPABLE = 4
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 434, 438
libc = ctypes.CDLL(None, use_errno=True)


def become_ordinary() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # setuid has cleared it


def in_ordinary_fork(work: Callable[[], object]) -> None:
    def ordinary() -> None:
        become_ordinary()
        work()

    assert wait(fork(ordinary)) == 0


class Victim:
    """A process of our own uid that waits; ``not_dumpable`` or plain."""

    def __init__(self, not_dumpable: bool) -> None:
        ready_read, ready_write = os.pipe()
        self.secret_read, self._secret_write = os.pipe()

        def work() -> None:
            if not_dumpable:
                syscalls.set_not_dumpable()
            os.write(ready_write, b"x")
            signal.pause()

        self.pid = fork(work)
        assert os.read(ready_read, 1) == b"x"
        os.close(ready_read)
        os.close(ready_write)

    def close(self) -> None:
        end(self.pid)
        os.close(self.secret_read)
        os.close(self._secret_write)


def ptrace(victim: Victim) -> None:
    if libc.ptrace(PTRACE_SEIZE, victim.pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def take_descriptor(victim: Victim) -> None:
    pidfd = libc.syscall(SYS_PIDFD_OPEN, victim.pid, 0)
    fd = libc.syscall(SYS_PIDFD_GETFD, pidfd, victim.secret_read, 0)
    number = ctypes.get_errno()
    os.close(pidfd)
    if fd < 0:
        raise OSError(number, "pidfd_getfd")
    os.close(fd)


def open_descriptor(victim: Victim) -> None:
    os.close(os.open(f"/proc/{victim.pid}/fd/{victim.secret_read}", os.O_RDONLY | os.O_NONBLOCK))


def list_descriptors(victim: Victim) -> None:
    os.listdir(f"/proc/{victim.pid}/fd")


def read_memory(victim: Victim) -> None:
    os.close(os.open(f"/proc/{victim.pid}/mem", os.O_RDONLY))


def read_environment(victim: Victim) -> None:
    with open(f"/proc/{victim.pid}/environ", "rb") as file:
        file.read()


def namespaces(victim: Victim) -> None:
    os.stat(f"/proc/{victim.pid}/ns/net")


ATTACKS = [ptrace, take_descriptor, open_descriptor, list_descriptors, read_memory, read_environment, namespaces]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_process_that_is_not_dumpable_is_closed_to_its_own_user(attack: Callable[[Victim], None]) -> None:
    """Falls: a workload of our uid takes the forwarder's sockets, which lead to the host, or its passwords."""

    def work() -> None:
        victim = Victim(not_dumpable=True)
        with pytest.raises(PermissionError):
            attack(victim)
        victim.close()

    in_ordinary_fork(work)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_and_one_that_is_dumpable_is_open(attack: Callable[[Victim], None]) -> None:
    """The counter-test: what is refused above is refused for that reason. (Yama lets a parent trace.)"""

    def work() -> None:
        victim = Victim(not_dumpable=False)
        attack(victim)
        victim.close()

    in_ordinary_fork(work)


def test_the_parent_death_signal_ends_the_child_of_a_killed_process() -> None:
    """Falls: `kill -9` of the supervisor leaves the command running."""
    pids_read, pids_write = os.pipe()
    alive_read, alive_write = os.pipe()  # its end of file: everybody who has the other end is gone

    def child() -> None:
        os.write(pids_write, b"here")  # fork() of the tests has set the signal by now
        signal.pause()

    def supervisor() -> None:
        os.close(alive_read)
        fork(child)
        signal.pause()

    pid = fork(supervisor)
    os.close(alive_write)
    os.read(pids_read, 4)
    end(pid)
    ready, _, _ = select.select([alive_read], [], [], 5)
    assert ready and os.read(alive_read, 1) == b""
    for fd in (pids_read, pids_write, alive_read):
        os.close(fd)


def test_the_parent_death_signal_survives_exec() -> None:
    """Falls: it would be gone just when the command begins."""
    pids_read, pids_write = os.pipe()
    alive_read, alive_write = os.pipe()
    os.set_inheritable(alive_write, True)

    def command() -> None:
        program = f"import os, time; os.write({pids_write}, b'x'); time.sleep(60)"
        os.execv(sys.executable, [sys.executable, "-ISc", program])

    os.set_inheritable(pids_write, True)

    def supervisor() -> None:
        os.close(alive_read)
        fork(command)
        signal.pause()

    pid = fork(supervisor)
    os.close(alive_write)
    assert os.read(pids_read, 1) == b"x"
    end(pid)
    ready, _, _ = select.select([alive_read], [], [], 5)
    assert ready and os.read(alive_read, 1) == b""
    for fd in (pids_read, pids_write, alive_read):
        os.close(fd)


def test_a_signal_tells_whether_the_kernel_or_a_process_sent_it() -> None:
    """si_code: positive is the kernel's. Falls: Ctrl-C would reach the command twice, or `kill` not at all."""

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.sigwaitinfo([signal.SIGUSR1]).si_code <= 0
        pid = fork(lambda: None)
        assert signal.sigwaitinfo([signal.SIGCHLD]).si_code > 0
        os.waitpid(pid, 0)

    assert wait(fork(work)) == 0


def test_a_channel_of_packets_says_end_of_file_when_its_peer_is_killed() -> None:
    """SOCK_SEQPACKET. Falls: the forwarder would not notice that its supervisor was killed."""
    import socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def work() -> None:
        ours.close()
        theirs.send(b"here")
        signal.pause()

    pid = fork(work)
    theirs.close()
    with ours:
        ours.settimeout(5)
        assert ours.recv(10) == b"here"
        end(pid)
        assert ours.recv(10) == b""


def test_children_of_all_threads_are_listed() -> None:
    """/proc/PID/task/TID/children. Falls: the quick way from the workload's first process to a flow's is not one."""
    import threading

    from netns_graft.linux import proc

    pids: list[int] = []
    done = threading.Event()

    def work() -> None:
        def fork_in_thread() -> None:
            pids.append(fork(lambda: signal.pause()))
            done.wait(5)  # the child dies with the thread that forked it

        thread = threading.Thread(target=fork_in_thread)
        thread.start()
        assert eventually(lambda: pids)
        assert pids[0] in proc.children(os.getpid())
        os.kill(pids[0], signal.SIGKILL)
        done.set()
        thread.join()
        os.waitpid(pids[0], 0)

    assert wait(fork(work)) == 0


def test_the_start_time_tells_two_lives_of_one_pid_apart() -> None:
    """Clock ticks of 10 ms since boot: monotonic over processes, and never changing over a process's life."""
    from netns_graft.linux import proc

    first = proc.stat(os.getpid())
    pid = fork(lambda: signal.pause())
    child = proc.stat(pid)
    end(pid)
    assert first is not None and child is not None and first == proc.stat(os.getpid())
    boot = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert first.start <= child.start <= boot + 1


def test_namespaces_of_the_undumpable_are_closed_until_their_next_program() -> None:
    """crun without root hides its container's process so: W comes from inside (``broker/handover.py``)."""

    def is_open(pid: int) -> bool:
        try:
            os.close(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY))
        except PermissionError:
            return False
        return True

    def work() -> None:
        (ready_read, ready_write), (go_read, go_write) = os.pipe(), os.pipe()

        def victim() -> None:
            syscalls.set_not_dumpable()
            os.write(ready_write, b"x")
            os.read(go_read, 1)
            os.execv("/bin/sleep", ["sleep", "60"])

        pid = fork(victim)
        os.read(ready_read, 1)
        assert not is_open(pid)
        os.write(go_write, b"x")
        assert eventually(lambda: is_open(pid))
        end(pid)

    in_ordinary_fork(work)

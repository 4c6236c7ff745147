"""Files of /proc that are kept open, and clocks of other processes. Attribution rests on these (attribution/roll.py,
linux/sitter.py): fall they, it has to open every file for every flow."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from ground.child import end, eventually, fork

KEPT = ("cmdline", "syscall")


def cpu_time(pid: int) -> int:
    """ns. Of any process, whoever owns it: what clock_getcpuclockid(3) gives."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def test_the_cpu_time_of_a_process_that_sleeps_stands_still_and_tells_each_waking() -> None:
    ours, theirs = os.pipe()

    def work() -> None:
        while os.read(ours, 1):
            pass

    pid = fork(work)
    os.close(ours)
    before = -1
    for _ in range(20):
        assert eventually(lambda then=before: cpu_time(pid) > then)
        assert eventually(lambda: asleep(pid))
        before = cpu_time(pid)
        assert {cpu_time(pid) for _ in range(100)} == {before}
        os.write(theirs, b"x")
    os.close(theirs)
    end(pid)
    with pytest.raises(OSError):
        cpu_time(pid)


def asleep(pid: int) -> bool:
    """It has left the CPU: between two moments that far apart a running one would have used some of it."""
    before = cpu_time(pid)
    begin = time.thread_time()
    while time.thread_time() - begin < 0.02:
        pass  # more than a tick of the slowest kernel, 10 ms
    return cpu_time(pid) == before


def test_it_is_that_of_all_threads() -> None:
    ready, go = os.pipe(), os.pipe()

    def work() -> None:
        def thread() -> None:
            os.read(go[0], 1)
            signal.pause()

        threading.Thread(target=thread, daemon=True).start()
        os.write(ready[1], b"x")
        signal.pause()

    pid = fork(work)
    os.read(ready[0], 1)
    assert eventually(lambda: asleep(pid))
    before = cpu_time(pid)
    os.write(go[1], b"x")
    assert eventually(lambda: cpu_time(pid) > before)
    end(pid)
    for fd in (*ready, *go):
        os.close(fd)


@pytest.mark.parametrize("directory", ["fd", "fdinfo"])
def test_they_belong_to_the_process_not_to_its_pid(directory: str) -> None:
    """Once it was reaped nothing can be read, and through its directories nothing be opened."""
    pid = fork(signal.pause)
    directory_fd = os.open(f"/proc/{pid}/{directory}", os.O_RDONLY | os.O_DIRECTORY)
    kept = [os.open(f"../{name}", os.O_RDONLY, dir_fd=directory_fd) for name in KEPT]
    link_fd = os.open("../exe", os.O_PATH | os.O_NOFOLLOW, dir_fd=directory_fd)
    assert all(os.pread(fd, 4096, 0) for fd in kept) and os.readlink("", dir_fd=link_fd)
    end(pid)
    for fd in kept:
        with pytest.raises(OSError):
            os.pread(fd, 4096, 0)
    with pytest.raises(OSError):
        os.readlink("", dir_fd=link_fd)
    for name in (*KEPT, "exe"):
        with pytest.raises(OSError):
            os.open(f"../{name}", os.O_PATH | os.O_NOFOLLOW, dir_fd=directory_fd)
    for fd in (*kept, link_fd, directory_fd):
        os.close(fd)


def test_after_an_exec_they_tell_of_the_new_program() -> None:
    script = "import os; input(); os.execv('/bin/sleep', ['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-ISc", script], stdin=subprocess.PIPE, text=True) as running:
        cmdline_fd = os.open(f"/proc/{running.pid}/cmdline", os.O_RDONLY)
        link_fd = os.open(f"/proc/{running.pid}/exe", os.O_PATH | os.O_NOFOLLOW)
        assert eventually(lambda: os.pread(cmdline_fd, 4096, 0).startswith(os.fsencode(sys.executable)))
        assert os.readlink("", dir_fd=link_fd) == os.path.realpath(sys.executable)
        assert running.stdin is not None
        running.stdin.write("\n")
        running.stdin.flush()
        assert eventually(lambda: os.pread(cmdline_fd, 4096, 0) == b"sleep\x0060\0")
        assert os.readlink("", dir_fd=link_fd) == os.path.realpath("/bin/sleep")
        os.close(cmdline_fd)
        os.close(link_fd)
        running.kill()


def test_the_parent_changes_only_when_the_parents_pidfd_says_that_it_ended() -> None:
    """Also before anybody has reaped it: its children have another parent from then on."""
    said_read, said_write = os.pipe()

    def parent() -> None:
        os.write(said_write, fork(signal.pause).to_bytes(4, "big"))
        signal.pause()

    pid = fork(parent)
    child = int.from_bytes(os.read(said_read, 4), "big")
    pid_fd = os.pidfd_open(pid)

    def parent_of_child() -> int:
        with open(f"/proc/{child}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])

    watched = select.poll()
    watched.register(pid_fd, select.POLLIN)
    assert not watched.poll(0) and parent_of_child() == pid
    os.kill(pid, signal.SIGKILL)
    assert watched.poll(5000)  # a zombie
    assert parent_of_child() != pid
    os.waitpid(pid, 0)
    os.kill(child, signal.SIGKILL)
    for fd in (pid_fd, said_read, said_write):
        os.close(fd)

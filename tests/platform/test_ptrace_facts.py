"""What ptrace mode relies on beyond its own bookkeeping: a process without its first thread, programs that trace,
programs that hide their memory."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from ground.child import end, fork, wait
from ground.traced import Report, Traced, become_ordinary, compiled

from netns_graft.linux import ptrace, syscalls
from netns_graft.tracing.call import Call

LEADERLESS = r"""
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *rest(void *first)
{
    pthread_join(*(pthread_t *)first, 0);
    struct sockaddr_in nobody = { .sin_family = AF_INET, .sin_port = htons(9) };
    nobody.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(sock, (void *)&nobody, sizeof nobody) == 0)
        exit(1);
    execl("/bin/true", "true", (char *)0);
    exit(2);
}

int main(void)
{
    static pthread_t first, other;
    first = pthread_self();
    pthread_create(&other, 0, rest, &first);
    pthread_exit(0);
}
"""


def test_a_process_goes_on_without_its_first_thread(tmp_path: Path) -> None:
    """Its descriptors are the other thread's, its number stays the first one's, and the exec gives it back."""

    def look(call: Call, report: Report) -> None:
        with call.sock(call.args[0]) as sock:
            report.notes.append((call.pid == call.tid, sock.getsockname()[1]))
        call.go_on()

    traced = Traced([compiled(tmp_path, LEADERLESS, "-pthread")], look)
    pid, report = traced.pid, traced.finish()
    assert report.notes == [(False, 0)]
    assert report.calls == [(pid, "connect")]
    assert (report.execs, report.ends) == ([pid, pid], [pid])


def test_a_second_tracer_is_refused() -> None:
    """One tracer for each: strace in a traced command, or ptrace mode in a ptrace mode, cannot be."""
    first = Traced(["/bin/sleep", "60"])
    with pytest.raises(PermissionError):
        ptrace.seize(first.pid)
    end(first.pid)
    first.report()


def test_strace_is_told_no_and_the_user_why() -> None:
    out_read, out_write = os.pipe()

    def to_us() -> None:
        os.dup2(out_write, 2)

    traced = Traced(["strace", "/bin/true"], before=to_us)
    os.close(out_write)
    assert traced.wait() == 1
    said = os.read(out_read, 4096).decode()
    os.close(out_read)
    assert "ptrace" in said and os.strerror(errno.EPERM) in said
    strace = os.path.realpath(subprocess.check_output(["which", "strace"], text=True).strip())
    assert traced.report().warnings == [
        f"{strace} wants to trace processes: those of this command are traced by netns-graft already"
    ]


def test_who_hides_its_memory_hides_it_from_an_ordinary_tracer() -> None:
    """PR_SET_DUMPABLE 0, as agents do: no memory and no descriptor for us, so its calls can only be refused."""

    def look(call: Call, report: Report) -> None:
        for attempt in (lambda: call.read(call.args[1], 8), lambda: call.sock(call.args[0])):
            with pytest.raises(PermissionError):
                attempt()
            report.notes.append(call.name)
        call.answer(-errno.EACCES)

    def hide() -> None:
        syscalls.set_not_dumpable()
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.EACCES

    assert Traced(hide, look, before=become_ordinary).finish().notes == ["connect", "connect"]


def test_who_hides_its_memory_does_not_leave_by_it() -> None:
    """The flags of clone3 are in memory that we may not read; those of clone are not."""
    clone, clone3 = (56, 435) if os.uname().machine == "x86_64" else (220, 435)
    untraced, sigchld = 0x00800000, 17

    def hide() -> None:
        syscalls.set_not_dumpable()
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = (ctypes.c_uint64 * 8)(untraced, 0, 0, 0, sigchld, 0, 0, 0)
        assert libc.syscall(clone3, ctypes.byref(arguments), 64) == -1
        assert ctypes.get_errno() == errno.ENOSYS
        thread = threading.Thread(target=os.getpid)
        thread.start()
        thread.join()
        pid = libc.syscall(clone, untraced | sigchld, 0, 0, 0, 0)
        if pid == 0:
            os._exit(5)
        assert wait(pid) == 5

    report = Traced(hide, before=become_ordinary).finish()
    assert len(report.ends) == 2


def test_clone3_with_flags_that_are_not_there() -> None:
    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall(435, 8, 64) == -1
        assert ctypes.get_errno() == errno.EFAULT

    Traced(work).finish()


def test_is_process_tells_threads_apart() -> None:
    assert ptrace.is_process(os.getpid())
    assert ptrace.is_process(1)  # not ours to signal perhaps, but a process
    tids: list[int] = []
    thread = threading.Thread(target=lambda: tids.append(ptrace.is_process(threading.get_native_id())))
    thread.start()
    thread.join()
    assert tids == [False]
    gone = fork(lambda: None)
    assert wait(gone) == 0
    assert not ptrace.is_process(gone)

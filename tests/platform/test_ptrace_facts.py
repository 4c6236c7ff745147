"""What ptrace mode relies on beyond its own bookkeeping: a process without its first thread, programs that trace,
programs that hide their memory."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from ground.child import end, fork, wait
from ground.traced import Report, Traced, compiled

from netns_graft.linux import ptrace
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
        import socket

        from netns_graft.linux import syscalls

        syscalls.set_not_dumpable()
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.EACCES

    def ordinary() -> None:
        from netns_graft.linux.syscalls import _libc

        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            _libc.prctl(4, 1, 0, 0, 0)

    assert Traced(hide, look, before=ordinary).finish().notes == ["connect", "connect"]


def test_is_process_tells_threads_apart() -> None:
    import threading

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

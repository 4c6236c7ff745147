"""Kernel facts of ptrace mode: what becomes of a traced call without a tracer, whose filter is heard, which numbers
calls have, and how calls of 32-bit x86 come."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from ground.child import fork, wait
from ground.traced import Report, Traced, become_ordinary, compiled

from netns_graft.linux import seccomp
from netns_graft.tracing.call import Call

HERE = os.uname().machine
CONNECT = seccomp.ARCHES[HERE][0].numbers["connect"]
on_x86 = HERE == "x86_64"


def connect_to_nobody() -> int:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", 9))


def returning(number: int, verdict: int) -> bytes:
    """A filter: this verdict for this call, and every other is allowed."""
    lines = ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, verdict), (0x06, 0, 0, seccomp.RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def test_without_a_tracer_there_is_no_call() -> None:
    """Or the command could do without the forwarder for a moment, at its begin."""

    def work() -> None:
        seccomp.install(seccomp.program(), no_new_privs=True)
        assert connect_to_nobody() == errno.ENOSYS

    assert wait(fork(work)) == 0


def test_the_newer_of_two_that_say_trace_is_heard() -> None:
    """So a mark that is not ours may hide ours: such a stop must not simply go on."""

    def work() -> None:
        seccomp.install(returning(CONNECT, seccomp.RET_TRACE | 1), no_new_privs=True)
        assert connect_to_nobody() == errno.ENOSYS  # the tracer's answer
        seccomp.install(returning(CONNECT, seccomp.RET_TRACE | seccomp.MARK), no_new_privs=True)
        assert connect_to_nobody() == errno.ECONNREFUSED

    report = Traced(work).finish()
    assert [name for _, name in report.calls] == ["connect"]


def test_a_refusal_of_the_programs_own_outranks_ours() -> None:
    def work() -> None:
        seccomp.install(returning(CONNECT, seccomp.RET_ERRNO | errno.EHOSTDOWN), no_new_privs=True)
        assert connect_to_nobody() == errno.EHOSTDOWN

    assert Traced(work).finish().calls == []


def test_an_ordinary_user_needs_no_new_privs() -> None:
    def work() -> None:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        with pytest.raises(OSError) as refused:
            seccomp.install(seccomp.program(), no_new_privs=False)
        assert refused.value.errno == errno.EACCES
        seccomp.install(seccomp.program(), no_new_privs=True)

    assert wait(fork(work)) == 0


def kernel_numbers(word_size: int | None) -> dict[str, int]:
    """From the kernel's own headers: of x86 by word size, None for those that arm64 takes."""
    include, defines = "#include <asm/unistd.h>\n", list[str]()
    if word_size is None:
        include = "#define __BITS_PER_LONG 64\n#define __ARCH_WANT_SYS_CLONE3\n#include <asm-generic/unistd.h>\n"
    else:
        defines = ["-U__x86_64__", "-D__i386__"] if word_size == 32 else []
    macros = subprocess.run(
        ["gcc", "-E", "-dM", *defines, "-"], input=include, capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for name, value in re.findall(r"^#define __NR(?:3264)?_(\w+) (\d+)$", macros, re.MULTILINE):
        found[name] = int(value)
    return found


@pytest.mark.parametrize(
    ("arch", "word_size"),
    [*([(seccomp.X86_64, 64), (seccomp.I386, 32)] if on_x86 else []), (seccomp.AARCH64, None)],
    ids=lambda it: str(it) if not isinstance(it, tuple) else hex(it.audit),
)
def test_the_numbers_are_the_kernels(arch: seccomp.Arch, word_size: int | None) -> None:
    theirs = kernel_numbers(word_size)
    assert {name: theirs.get(name) for name in arch.numbers} == arch.numbers
    for name in ("connect", "sendto", "sendmsg", "sendmmsg", "socketcall", "recvmmsg_time64"):
        assert (name in theirs and (arch.wide is False or "time64" not in name)) == (name in arch.numbers)


# A 64-bit program that calls as 32-bit ones do. Static, not position-independent: its addresses fit in 32 bits.
INT80 = r"""
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static long int80(long number, long a, long b, long c, long d, long e, long f)
{
    struct { long number, f; } in = { number, f };
    long result;
    __asm__ volatile("push %%rbp; push %%r8; push %%r9; push %%r10; push %%r11\n\t"
                     "mov 8(%%rax), %%ebp; mov (%%rax), %%eax; int $0x80\n\t"
                     "pop %%r11; pop %%r10; pop %%r9; pop %%r8; pop %%rbp"
                     : "=a"(result) : "0"(&in), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return (int)result;
}

static struct sockaddr_in nobody;
static unsigned args[6];
static char byte[8];

int main(int argc, char **argv)
{
    nobody.sin_family = AF_INET;
    nobody.sin_port = htons(9);
    nobody.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    unsigned at = (unsigned)(unsigned long)&nobody;
    args[0] = AF_INET; args[1] = SOCK_STREAM;
    long fd = int80(102, 1, (long)args, 0, 0, 0, 0);
    printf("socket %ld ", fd >= 0 ? 0 : fd);
    args[0] = AF_INET; args[1] = SOCK_RAW; args[2] = 1;
    long raw = int80(102, 1, (long)args, 0, 0, 0, 0);
    printf("raw %ld ", raw >= 0 ? 0 : raw);
    args[0] = fd; args[1] = at; args[2] = sizeof nobody;
    printf("socketcall %ld ", int80(102, 3, (long)args, 0, 0, 0, 0));
    printf("direct %ld ", int80(362, fd, at, sizeof nobody, 0, 0, 0));
    args[0] = fd; args[1] = (unsigned)(unsigned long)byte; args[2] = 1; args[3] = MSG_DONTWAIT; args[4] = 0;
    printf("recvfrom %ld ", int80(102, 12, (long)args, 0, 0, 0, 0));
    printf("fault %ld ", int80(102, 3, 8, 0, 0, 0, 0));
    fflush(stdout);
    int pid = int80(120, 0x00800000 | SIGCHLD, 0, 0, 0, 0, 0);   /* clone(CLONE_UNTRACED) */
    if (pid == 0)
        _exit(int80(362, fd, at, sizeof nobody, 0, 0, 0) & 0x7f);
    int status;
    if (waitpid(pid, &status, 0) != pid)
        return 2;
    printf("child %d\n", WEXITSTATUS(status));
    return 0;
}
"""


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("which", range(1) if on_x86 else [])
def test_calls_of_32_bit_x86(which: int, strict: bool, tmp_path: Path) -> None:
    """int 0x80 from a 64-bit program comes as from a 32-bit one: another architecture, narrow pointers."""
    program = compiled(tmp_path, INT80, "-static", "-no-pie", "-mno-red-zone")

    def look(call: Call, report: Report) -> None:
        told = struct.unpack("=HH4s", call.read(call.args[1], 8)) if call.args[1] > 4096 else None
        report.notes.append((call.name, call.wide, told))
        call.go_on()

    out_read, out_write = os.pipe()
    traced = Traced([program], look, strict=strict, before=lambda: os.dup2(out_write, 1))
    os.close(out_write)
    with os.fdopen(out_read) as file:
        said = file.readline()
    report = traced.finish()
    raw = errno.EPERM if strict else (0 if os.geteuid() == 0 else errno.EPERM)
    refused = errno.ECONNREFUSED
    assert said == (
        f"socket 0 raw {-raw} socketcall {-refused} direct {-refused} recvfrom {-errno.ENOTCONN}"
        f" fault {-errno.EFAULT} child {-refused & 0x7F}\n"
    )
    connect = ("connect", False, (socket.AF_INET, socket.htons(9), socket.inet_aton("127.0.0.1")))
    assert report.notes == [connect] * 3
    assert len(report.ends) == 2


VFORK = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[65536];
static int shared;

static int child(void *unused)
{
    shared++;
    return 3;
}

int main(void)
{
    for (int i = 0; i < 100; i++) {
        volatile int seen = 0;
        pid_t pid = vfork();
        if (pid == 0) {
            seen = 1;
            _exit(0);
        }
        if (!seen || waitpid(pid, 0, 0) != pid)
            return 1;
        /* exit signal none: neither a thread nor what waitpid alone would tell */
        pid = clone(child, stack + sizeof stack, CLONE_VM | CLONE_UNTRACED, 0);
        int status;
        if (waitpid(pid, &status, __WALL) != pid || WEXITSTATUS(status) != 3)
            return 2;
    }
    return shared == 100 ? 0 : 3;
}
"""


def test_vfork_and_clones_that_are_neither_fork_nor_thread(tmp_path: Path) -> None:
    report = Traced([compiled(tmp_path, VFORK)]).finish()
    assert len(set(report.ends)) == 201


@pytest.mark.parametrize("program", ["/usr/bin/su", "/usr/bin/chage"])  # root's set-uid, and set-gid shadow
def test_a_set_id_program_is_told_once(program: str) -> None:
    """no_new_privs takes the privileges away, and nothing but the tracer would say why."""
    assert os.stat(program).st_mode & 0o6000
    command = ["/bin/sh", "-c", f"for i in 1 2; do {program} --help >/dev/null; done; /bin/true"]
    report = Traced(command, before=become_ordinary).finish()
    assert report.warnings == [
        f"{program} is set-uid or set-gid and runs without those privileges: ptrace mode has none to give"
    ]

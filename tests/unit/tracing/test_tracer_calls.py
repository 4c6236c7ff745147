"""A stopped call: told truly, let go, answered, its result changed, and its thread's own socket."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import sys
import threading
import time

import pytest
from ground.child import eventually
from ground.traced import Report, Traced, state_of

from netns_graft.linux import pidfd
from netns_graft.tracing.call import Call

SOL_SOCKET, SO_ERROR = 1, 4
CLONE_FILES = 0x400


def syscall(name: str, *args: object) -> tuple[int, int]:
    """Through the C library; result and errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    result = getattr(libc, name)(*args)
    return result, ctypes.get_errno()


def test_a_call_is_told_with_its_arguments_and_memory() -> None:
    address = socket.inet_aton("127.0.0.1")

    def look(call: Call, report: Report) -> None:
        if call.name == "connect":
            report.notes.append((call.wide, call.args[0], call.read(call.args[1], call.args[2])))
        call.go_on()

    def work() -> None:
        with socket.socket() as sock:
            os.dup2(sock.fileno(), 77)
        with socket.socket(fileno=77) as sock:
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ECONNREFUSED

    report = Traced(work, look).finish()
    assert report.notes == [(True, 77, struct.pack("=H", socket.AF_INET) + b"\0\t" + address + bytes(8))]


def test_an_answer_is_the_result_and_the_call_is_not_made() -> None:
    def refuse(call: Call, report: Report) -> None:
        call.answer(-errno.EHOSTUNREACH if call.name == "connect" else 17)
        call.go_on()  # too late: the first has decided
        call.answer(-errno.EIO)
        report.notes.append(call.over)

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.EHOSTUNREACH
            assert sock.sendto(b"into the void", ("127.0.0.1", 9)) == 17
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_DGRAM

    report = Traced(work, refuse).finish()
    assert [name for _, name in report.calls] == ["connect", "sendto"]
    assert report.notes == [False, False]


def test_a_call_may_be_answered_later() -> None:
    """While one thread is held, the others and other processes run."""
    held: list[Call] = []

    def hold(call: Call, report: Report) -> None:
        if call.name == "connect":
            held.append(call)
            return
        call.go_on()
        report.notes.append(len(held))
        while held:
            held.pop().answer(-errno.ETIMEDOUT)

    def work() -> None:
        results = []

        def connect() -> None:
            with socket.socket() as sock:
                results.append(sock.connect_ex(("127.0.0.1", 9)))

        threads = [threading.Thread(target=connect) for _ in range(5)]
        for thread in threads:
            thread.start()
        with socket.socket() as sock:
            while len(results) < 5:
                sock.getsockname()  # by this the tracer lets go whoever it has
        for thread in threads:
            thread.join()
        assert results == [errno.ETIMEDOUT] * 5

    Traced(work, hold).finish()


def test_the_exit_tells_the_result_and_may_change_it() -> None:
    def change(call: Call, report: Report) -> None:
        def returned(same: Call, result: int) -> int | None:
            assert same is call
            report.notes.append((call.name, result))
            return -errno.ENETUNREACH if call.name == "connect" else None

        call.go_on_then(returned)

    def work() -> None:
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ENETUNREACH
            assert sock.getsockname()[0] == "127.0.0.1" or sock.getsockname()[0] == "0.0.0.0"
            with pytest.raises(OSError) as refused:
                sock.getpeername()
            assert refused.value.errno == errno.ENOTCONN

    report = Traced(work, change).finish()
    assert report.notes[0] == ("connect", -errno.ECONNREFUSED)
    assert report.notes[-1] == ("getpeername", -errno.ENOTCONN)


def test_a_call_interrupted_by_a_signal_is_shown_and_made_anew() -> None:
    begun_read, begun_write = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)

    def watch(call: Call, report: Report) -> None:
        os.write(begun_write, b".")
        call.go_on_then(lambda _call, result: report.notes.append(result))

    def work() -> None:
        signal.set_wakeup_fd(wake_write.fileno())
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.siginterrupt(signal.SIGUSR1, False)
        buffer = ctypes.create_string_buffer(16)
        vector = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 16)
        header = (ctypes.c_ulong * 7)(0, 0, ctypes.addressof(vector), 1, 0, 0, 0)
        assert syscall("recvmsg", theirs.fileno(), ctypes.byref(header), 0) == (4, 0)
        assert buffer.raw[:4] == b"late"

    traced = Traced(work, watch)
    os.close(begun_write)
    assert os.read(begun_read, 1) == b"."
    assert eventually(lambda: state_of(traced.pid) == "S")
    os.kill(traced.pid, signal.SIGUSR1)
    assert wake_read.recv(1) == bytes([signal.SIGUSR1])
    assert os.read(begun_read, 1) == b"."
    ours.send(b"late")
    assert traced.finish().notes == [-512, 4]  # ERESTARTSYS: what the kernel has for itself
    os.close(begun_read)
    for sock in (ours, theirs, wake_read, wake_write):
        sock.close()


def test_writing_into_the_program_and_what_cannot_be_written() -> None:
    def write(call: Call, report: Report) -> None:
        call.write(call.args[1], b"written")
        with pytest.raises(OSError) as refused:
            call.read(0, 1)
        report.notes.append(refused.value.errno)
        with pytest.raises(OSError) as refused:
            call.write(8, b"x")
        report.notes.append(refused.value.errno)
        call.answer(0)

    def work() -> None:
        buffer = ctypes.create_string_buffer(b"before..", 8)
        assert syscall("getsockname", 0, buffer, 0) == (0, 0)
        assert buffer.raw == b"written."

    assert Traced(work, write).finish().notes == [errno.EFAULT, errno.EFAULT]


def test_a_big_read_over_many_pages_and_one_over_the_edge() -> None:
    size = 300_000

    def read(call: Call, report: Report) -> None:
        report.notes.append(call.read(call.args[1], call.args[2]) == bytes(range(256)) * (size // 256))
        with pytest.raises(OSError) as refused:
            call.read(call.args[1], 1 << 28)
        report.notes.append(refused.value.errno)
        call.answer(0)

    def work() -> None:
        buffer = ctypes.create_string_buffer(bytes(range(256)) * (size // 256))
        syscall("connect", 0, buffer, len(buffer) - 1)

    size -= size % 256
    assert Traced(work, read).finish().notes == [True, errno.EFAULT]


def test_the_threads_own_socket() -> None:
    """Whatever the descriptor table is: dup, a table of the thread's own, no socket, nothing."""

    def take(call: Call, report: Report) -> None:
        if call.name != "getpeername":
            call.go_on()
            return
        try:
            with call.sock(call.args[0]) as sock:
                report.notes.append(sock.getsockname()[1])
        except OSError as error:
            report.notes.append(errno.errorcode[error.errno or 0])
        call.go_on()

    port_read, port_write = os.pipe()

    def work() -> None:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            os.dup2(one.fileno(), 50)
            result = []

            def of_its_own() -> None:
                assert syscall("unshare", CLONE_FILES) == (0, 0)
                os.dup2(other.fileno(), 50)
                result.append(syscall("getpeername", 50, 0, 0))

            thread = threading.Thread(target=of_its_own)
            thread.start()
            thread.join()
            result.append(syscall("getpeername", 50, 0, 0))
            result.append(syscall("getpeername", 0, 0, 0))
            result.append(syscall("getpeername", 99, 0, 0))
            assert [number for _, number in result] == [
                errno.ENOTCONN, errno.ENOTCONN, errno.ENOTSOCK, errno.EBADF,
            ]  # fmt: skip
            os.write(port_write, struct.pack("=HH", other.getsockname()[1], one.getsockname()[1]))

    report = Traced(work, take).finish()
    ports = struct.unpack("=HH", os.read(port_read, 64))
    os.close(port_read)
    os.close(port_write)
    assert report.notes == [*ports, "ENOTSOCK", "EBADF"]


def test_before_linux_6_9_only_a_thread_with_its_processs_table_is_served() -> None:
    def take(call: Call, report: Report) -> None:
        try:
            fd = pidfd.descriptor_by_leader(call.tid, call.args[0])
            report.notes.append(os.path.samestat(os.fstat(fd), os.fstat(0)))
            os.close(fd)
        except OSError as error:
            report.notes.append(errno.errorcode[error.errno or 0])
        call.go_on()

    def work() -> None:
        def shared() -> None:
            syscall("getpeername", 0, 0, 0)

        def of_its_own() -> None:
            assert syscall("unshare", CLONE_FILES) == (0, 0)
            syscall("getpeername", 0, 0, 0)

        shared()
        for target in (shared, of_its_own):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()

    assert Traced(work, take).finish().notes == [True, True, "EPERM"]


def test_a_held_call_is_over_when_its_thread_ends() -> None:
    """By the exec of another thread: of a later one than the first, and of the first."""
    held: list[Call] = []
    held_read, held_write = os.pipe()
    os.set_inheritable(held_read, True)

    def hold(call: Call, report: Report) -> None:
        if call.name == "connect":
            held.append(call)
            os.write(held_write, b".")
            return
        report.notes.append([one.over for one in held])
        for one in held:
            one.go_on()
            one.answer(0)
        held.clear()
        call.go_on()

    connecting = """
import os, socket, sys, threading, time
def connect():
    socket.socket().connect(("127.0.0.1", 9))
def execute():
    os.read(int(sys.argv[2]), 1)
    os.execv(sys.executable, [sys.executable, "-IS", "-c", "import socket; socket.socket().getsockname()"])
if sys.argv[1] == "first":
    threading.Thread(target=execute).start()
    connect()
else:
    threading.Thread(target=connect).start()
    execute()
"""
    for which in ("first", "later"):
        report = Traced([sys.executable, "-IS", "-c", connecting, which, str(held_read)], hold).finish()
        assert report.notes[0] == [True], (which, report.calls)
    os.close(held_read)
    os.close(held_write)


def test_filters_of_the_programs_own_do_not_lift_ours() -> None:
    """A newer filter's RET_TRACE outweighs ours: the call fails as it does where nobody traces."""
    from netns_graft.linux import seccomp

    def work() -> None:
        trace_connect = struct.pack("=HBBI", 0x20, 0, 0, 0)  # the number
        trace_connect += struct.pack("=HBBI", 0x15, 0, 1, 42 if os.uname().machine == "x86_64" else 203)
        trace_connect += struct.pack("=HBBI", 0x06, 0, 0, seccomp.RET_TRACE | 1)
        trace_connect += struct.pack("=HBBI", 0x06, 0, 0, seccomp.RET_ALLOW)
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ECONNREFUSED
            seccomp.install(trace_connect, no_new_privs=True)
            assert sock.connect_ex(("127.0.0.1", 9)) == errno.ENOSYS
            sock.getsockname()

    report = Traced(work).finish()
    assert [name for _, name in report.calls] == ["connect", "getsockname"]


def test_what_strict_refuses() -> None:
    def work() -> None:
        for family, kind, number in (
            (socket.AF_PACKET, socket.SOCK_RAW, errno.EPERM),
            (socket.AF_INET, socket.SOCK_RAW, errno.EPERM),
            (socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, errno.EPERM),
            (40, socket.SOCK_STREAM, errno.EPERM),  # vsock
            (socket.AF_NETLINK, socket.SOCK_RAW, 0),
            (socket.AF_UNIX, socket.SOCK_SEQPACKET, 0),
            (socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0),
        ):
            assert syscall("socket", int(family), int(kind), 0)[1] == number, (family, kind)
        assert syscall("unshare", 0x10000000) == (-1, errno.EPERM)
        assert syscall("setns", 0, 0) == (-1, errno.EPERM)
        assert syscall("syscall", 425, 1, 0) == (-1, errno.EPERM)  # io_uring_setup
        assert syscall("syscall", 435, 0, 0) == (-1, errno.ENOSYS)  # clone3
        thread = threading.Thread(target=time.monotonic)  # the C library takes clone instead
        thread.start()
        thread.join()
        assert eventually(lambda: threading.active_count() == 1)

    assert Traced(work, strict=True).finish().calls == []

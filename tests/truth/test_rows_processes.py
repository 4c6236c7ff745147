"""Rows 7 to 11: processes that are short-lived, shared, disguised, or use their sockets in odd ways."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ground import child
from ground.child import eventually, fork, in_own_namespaces, wait
from ground.network import OTHER, WEB, WEB6

from netns_graft.linux import proc, syscalls
from truth.judging import METHODS, judge
from truth.scene import Scene, report, scene

PYTHON = "/usr/bin/python3"  # a small copy of it is made under odd names
QUESTION = struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + b"\x07example\x03com\0" + struct.pack("!HH", 1, 1)
# What an exec'ed program does: connect, tell the truth, send, wait for a line, end.
CONNECT = (
    "import json, os, socket, sys, time\n"
    "ledger, address = sys.argv[1:3]\n"
    "s = socket.create_connection((address, 80))\n"
    "line = [os.getpid(), s.getsockname()[:2], s.getpeername()[:2], time.monotonic()]\n"
    "fd = os.open(ledger, os.O_WRONLY | os.O_APPEND)\n"
    "os.write(fd, json.dumps(line).encode() + b'\\n')\n"
    "s.send(b'x')\n"
)


# Row 7


def crowd(it: Scene, count: int, parents: int = 4) -> None:
    """``count`` processes, each of which connects, sends and ends; ``parents`` make them at the same time."""

    def work(share: int) -> None:
        for number in range(share):
            pid = os.fork()
            if pid == 0:
                try:
                    it.connect(WEB if number % 2 else OTHER).close()
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)

    for number in range(parents):
        share = count // parents + (number < count % parents)
        it.program(lambda share=share: work(share))


def long_lived(it: Scene, connections: int) -> None:
    def work() -> None:
        for _ in range(connections):
            it.connect(WEB).close()

    it.program(work)


@METHODS
@in_own_namespaces
def test_short_lived_beside_long_lived(method: str) -> None:
    with scene(method) as it:
        crowd(it, 200)
        for _ in range(5):
            long_lived(it, 20)
        judge("7", "short-lived beside long-lived", method, it, 300)


@METHODS
@pytest.mark.timeout(400)
def test_ten_thousand_short_lived(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each forks, connects, sends, ends within milliseconds; eight at a time keep both cores at their limit."""
    monkeypatch.setattr(child, "_WAIT", 390.0)
    ten_thousand(method)


@in_own_namespaces
def ten_thousand(method: str, count: int = 10_000) -> None:
    with scene(method) as it:
        began = time.monotonic()
        crowd(it, count, parents=8)
        judge("7", f"{count} short-lived at full load", method, it, count)
        micros = sorted(record["attribution"]["micros"] for record in it.records)
        middle, last = micros[len(micros) // 2], micros[len(micros) * 99 // 100]
        print(f"{method}: {count} of {count} in {time.monotonic() - began:.1f} s; median {middle} µs, 99 % {last} µs")


# Row 8


@METHODS
@in_own_namespaces
def test_fork_and_exec_after_connect(method: str) -> None:
    with scene(method) as it:

        def work() -> None:
            sock = it.connect(WEB)
            os.set_inheritable(sock.fileno(), True)
            child = os.fork()
            if child == 0:
                os.execv("/bin/sleep", ["sleep", "0.2"])
            os.waitpid(child, 0)
            sock.close()

        it.program(work)
        judge("8", "fork and exec after connect", method, it, 1)


@METHODS
@in_own_namespaces
def test_the_opener_execs_another_program(method: str) -> None:
    with scene(method) as it:

        def work() -> None:
            sock = it.connect(WEB)
            os.set_inheritable(sock.fileno(), True)
            os.execv("/bin/sleep", ["sleep", "0.1"])

        it.program(work)
        judge("8", "exec of another program after connect", method, it, 1)


def holders(it: Scene) -> tuple[int, set[int]]:
    process = it.records[0]["process"]
    return process["pid"], {other["pid"] for other in process["shared_with"]}


@METHODS
@pytest.mark.parametrize("opener", ["parent", "child"])
@in_own_namespaces
def test_a_socket_shared_by_fork(opener: str, method: str) -> None:
    """Made before the fork; parent and children hold it, and one of them connects."""
    with scene(method) as it:
        told_read, told_write = os.pipe()

        def connects(sock: socket.socket) -> None:
            sock.connect((WEB, 80))
            it.ledger.note(sock)
            time.sleep(0.2)

        def work() -> None:
            sock = socket.socket()
            go_read, go_write = os.pipe()
            children = []
            for number in range(3):
                child = os.fork()
                if child == 0:
                    os.read(go_read, 1)
                    if opener == "child" and number == 1:
                        connects(sock)
                    else:
                        time.sleep(0.3)
                    os._exit(0)
                children.append(child)
            os.write(told_write, struct.pack("!4I", os.getpid(), *children))
            os.write(go_write, b"ggg")
            if opener == "parent":
                connects(sock)
            for child in children:
                os.waitpid(child, 0)

        it.program(work)
        judge("8", f"shared by fork, opened by the {opener}", method, it, 1)
        everyone = set(struct.unpack("!4I", os.read(told_read, 16)))
        pid, others = holders(it)
        assert others == everyone - {pid}
        os.close(told_read)
        os.close(told_write)


@METHODS
@in_own_namespaces
def test_a_shared_socket_whose_connect_does_not_wait(method: str) -> None:
    """Nobody is in connect(): the eldest of the holders is named, and the others beside it."""
    with scene(method) as it:
        told_read, told_write = os.pipe()

        def work() -> None:
            sock = socket.socket()
            sock.setblocking(False)
            child = os.fork()
            if child == 0:
                time.sleep(0.3)
                os._exit(0)
            os.write(told_write, struct.pack("!2I", os.getpid(), child))
            sock.connect_ex((WEB, 80))
            time.sleep(0.1)
            it.ledger.note(sock)
            os.waitpid(child, 0)

        it.program(work)
        judge("8", "shared by fork, connect does not wait", method, it, 1)
        parent, child = struct.unpack("!2I", os.read(told_read, 8))
        assert holders(it) == (parent, {child})
        os.close(told_read)
        os.close(told_write)


@METHODS
@pytest.mark.parametrize("kept", [False, True], ids=["given away", "kept as well"])
@in_own_namespaces
def test_a_socket_handed_over(kept: bool, method: str) -> None:
    """Made by one process, sent to another over a Unix socket, connected there."""
    with scene(method) as it:
        giver_sock, taker_sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def give() -> None:
            ballast = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]  # so that the numbers differ
            sock = socket.socket()
            socket.send_fds(giver_sock, [b"x"], [sock.fileno()])
            if not kept:
                sock.close()
            giver_sock.recv(1)  # until the other one is done
            del ballast

        def take() -> None:
            _, fds, _, _ = socket.recv_fds(taker_sock, 1, 1)
            with socket.socket(fileno=fds[0]) as sock:
                sock.connect((WEB, 80))
                it.ledger.note(sock)
                time.sleep(0.2)
            taker_sock.send(b"d")

        giver = it.program(give)
        it.program(take)
        judge("8", f"handed over a Unix socket, {'kept as well' if kept else 'given away'}", method, it, 1)
        assert holders(it)[1] == ({giver} if kept else set())
        giver_sock.close()
        taker_sock.close()


# Row 9


@METHODS
@in_own_namespaces
def test_threads(method: str) -> None:
    with scene(method) as it:

        def work() -> None:
            threads = [threading.Thread(target=lambda: it.connect(WEB).close()) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        it.program(work)
        it.program(work)
        judge("9", "threads of two processes", method, it, 24)


@METHODS
@in_own_namespaces
def test_a_process_that_may_not_be_looked_at(method: str) -> None:
    """As root a set-uid program that becomes somebody else; else one that made itself undumpable, as it would be."""
    with scene(method) as it, programs() as place:
        if os.geteuid() == 0:
            program = copy(place, b"set-uid")
            os.chown(program, 65534, 65534)
            os.chmod(program, 0o6755)
            execute(it, program)
        else:
            undumpable = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
            execute(it, os.fsencode(PYTHON), script=undumpable + CONNECT)
        judge("9", "set-uid or undumpable", method, it, 1)
        if os.geteuid() == 0:
            assert it.records[0]["process"]["uid"] == 65534


@METHODS
@in_own_namespaces
def test_a_process_that_joins(method: str) -> None:
    """Like `podman exec` or nsenter: nobody's child in W, seen elsewhere before it went in."""
    with scene(method) as it:
        go_read, go_write = os.pipe()

        def outsider() -> None:
            os.setsid()
            if os.fork() == 0:
                try:
                    os.read(go_read, 1)
                    it.workload.enter()
                    it.connect(WEB).close()
                finally:
                    os._exit(0)

        assert wait(fork(outsider)) == 0
        it.program(it.once(OTHER))
        assert len(it.records) == 0
        it.records.append(it.it.flow())  # by now everybody there is has been looked at
        os.write(go_write, b"g")
        judge("9", "nsenter: nobody's child", method, it, 2)
        os.close(go_read)
        os.close(go_write)


# Row 10


@contextmanager
def programs() -> Iterator[bytes]:
    """A directory for programs that everybody may run."""
    place = tempfile.mkdtemp(prefix="truth-programs-")
    os.chmod(place, 0o755)
    yield os.fsencode(place)
    shutil.rmtree(place)


def copy(place: bytes, name: bytes) -> bytes:
    path = os.path.join(place, name)
    shutil.copyfile(os.path.realpath(PYTHON), path)
    os.chmod(path, 0o755)
    return path


def execute(
    it: Scene, path: bytes, *more: str | bytes, script: str = CONNECT, before: Callable[[], object] = lambda: None
) -> int:
    def work() -> None:
        before()
        os.execv(path, [os.path.basename(path), "-IS", "-c", script, it.ledger.path, WEB, *more])

    return it.program(work)


@METHODS
@in_own_namespaces
def test_odd_programs(method: str) -> None:
    """Deleted, replaced, named like a deleted one, not UTF-8."""
    with scene(method) as it, programs() as place:
        ready_read, ready_write = os.pipe()
        names = [b"gone", b"replaced", b"odd (deleted)", b"odd and gone (deleted)", b"\xff\xfe not utf-8"]
        for name in names:
            path = copy(place, name)
            go_read, go_write = os.pipe()
            script = f"import os; os.write({ready_write}, b'r'); os.read({go_read}, 1)\n" + CONNECT

            def work(path: bytes = path, script: str = script, fds: tuple[int, int] = (ready_write, go_read)) -> None:
                for fd in fds:
                    os.set_inheritable(fd, True)
                os.execv(path, [os.path.basename(path), "-IS", "-c", script, it.ledger.path, WEB])

            it.program(work)
            assert os.read(ready_read, 1) == b"r"
            if name.startswith((b"gone", b"odd and gone")):
                os.unlink(path)
            elif name == b"replaced":
                shutil.copyfile("/bin/true", path + b".new")
                os.rename(path + b".new", path)
            os.write(go_write, b"g")
            os.close(go_read)
            os.close(go_write)
        judge("10", "deleted, replaced, odd names", method, it, len(names))
        found = {os.fsencode(record["process"]["exe"]) for record in it.records}
        assert found == {os.path.join(place, name) for name in names}
        assert {os.fsencode(record["process"]["argv"][0]) for record in it.records} == set(names)
        os.close(ready_read)
        os.close(ready_write)


@METHODS
@in_own_namespaces
def test_an_argv_of_two_mebibytes(method: str) -> None:
    with scene(method) as it:

        def before() -> None:
            _, hard = resource.getrlimit(resource.RLIMIT_STACK)
            resource.setrlimit(resource.RLIMIT_STACK, (64 << 20, hard))

        execute(it, os.fsencode(PYTHON), *["x" * (100 << 10)] * 21, before=before)
        judge("10", "argv of 2 MiB", method, it, 1)
        argv = it.records[0]["process"]["argv"]
        assert argv[:2] == ["python3", "-IS"] and sum(map(len, argv)) <= proc.ARGV_LIMIT


@METHODS
@in_own_namespaces
def test_a_zombie_parent(method: str) -> None:
    """The child is handed on at once, the zombie stays until somebody asks for it."""
    with scene(method) as it:
        dead_read, dead_write = os.pipe()

        def parent() -> None:
            zombie = os.getpid()
            if os.fork() == 0:
                try:
                    eventually(lambda: os.getppid() != zombie)
                    it.connect(WEB).close()
                    os.write(dead_write, b"d")
                finally:
                    os._exit(0)

        pid = it.program(parent)
        os.read(dead_read, 1)  # the zombie is not asked for before
        judge("10", "a zombie parent", method, it, 1)
        assert pid not in [it["pid"] for it in it.records[0]["process"]["parents"]]
        os.close(dead_read)
        os.close(dead_write)


def in_own_pids(work: Callable[[], None]) -> None:
    """``work`` as the first process of a PID namespace of its own, with its own /proc."""
    syscalls.unshare(0x20000000)  # CLONE_NEWPID

    def first() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("proc", "/proc", "proc", 0)
        work()

    assert wait(fork(first)) == 0


@METHODS
@in_own_namespaces
def test_a_pid_that_is_used_again(method: str) -> None:
    def work() -> None:
        with scene(method) as it:
            it.program(it.once(WEB))
            it.records.append(it.it.flow())
            it.run_all()
            pid = it.records[0]["process"]["pid"]
            for address in (OTHER, WEB6):
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
                assert it.program(it.once(address)) == pid
                it.records.append(it.it.flow())
                it.run_all()
            judge("10", "a pid used again, and again", method, it, 3)

    in_own_pids(work)


# Row 11


@METHODS
@in_own_namespaces
def test_ipv4_mapped(method: str) -> None:
    with scene(method) as it:
        it.nat("  oifname eth0 ip daddr 198.51.100.67 masquerade fully-random")
        for address in ("::ffff:" + WEB, "::ffff:" + OTHER):
            it.program(it.once(address))
        judge("11", "IPv4-mapped, one behind NAT", method, it, 2)


@METHODS
@in_own_namespaces
def test_bound_to_a_device(method: str) -> None:
    bind = [(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")]
    with scene(method) as it:
        for address in (WEB, WEB6):
            it.program(it.once(address, options=bind))
        judge("11", "bound to a device", method, it, 2)


@METHODS
@in_own_namespaces
def test_a_question_from_a_socket_bound_to_a_device(method: str) -> None:
    with scene(method, dns="synthetic") as it:

        def work() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
                sock.settimeout(20)
                sock.connect(("8.8.8.8", 53))
                it.ledger.note(sock)
                sock.send(QUESTION)
                sock.recv(4096)

        it.program(work)
        judge("11", "bound to a device, DNS over UDP", method, it, 1, protocol="dns")


@METHODS
@in_own_namespaces
def test_ports_used_again_at_once(method: str) -> None:
    """One port, two processes in turn and at the same time, other destinations."""
    with scene(method) as it:
        linger = [(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))]  # reset: no TIME_WAIT

        def work(address: str) -> None:
            for _ in range(20):
                sock = it.connect(address, bound=("198.18.0.1", 45000), options=linger)
                time.sleep(0.002)
                sock.close()

        for address in (WEB, OTHER):
            it.program(lambda address=address: work(address))
        judge("11", "source ports used again at once", method, it, 40)


@METHODS
@in_own_namespaces
def test_udp_sockets_that_share_a_port(method: str) -> None:
    """Either may have sent the question, and nothing tells which: nobody is named."""
    with scene(method, dns="synthetic") as it:
        go_read, go_write = os.pipe()

        def bound() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("198.18.0.1", 46000))
            return sock

        def other() -> None:
            with bound():
                os.write(go_write, b"g")
                time.sleep(0.3)

        def asks() -> None:
            os.read(go_read, 1)
            with bound() as sock:
                sock.sendto(QUESTION, ("8.8.8.8", 53))
                time.sleep(0.2)

        it.program(other)
        it.program(asks)
        record = it.it.flow()
        assert record["process"] is None
        it.records.append(record)
        report("11", "UDP sockets of two processes on one port", method, it.score(1, protocol="dns"))
        os.close(go_read)
        os.close(go_write)

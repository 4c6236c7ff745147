"""Who opened this flow? Asked about real connections over loopback, of processes that are this test's own.

The namespace is the one that we are in, in W's place. netns/test_attribution_in_w.py asks the same through a forwarder.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ground.child import end, eventually, fork, wait

from netns_graft.attribution import Attributor
from netns_graft.flow import Attribution
from netns_graft.linux import proc
from netns_graft.linux.vantage import Vantage

TCP = socket.IPPROTO_TCP


class Untranslated(Vantage):
    """This namespace may be a host's, with entries of conntrack that an ordinary user may not see."""

    def has_tracked(self) -> bool:
        return False


@pytest.fixture
def vantage() -> Iterator[Vantage]:
    ns_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield Untranslated(ns_fd)  # closed by its attributor
    os.close(ns_fd)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.settimeout(5)
        yield listener


@pytest.fixture
def attributor(vantage: Vantage) -> Iterator[Attributor]:
    it = Attributor(vantage)
    it.started(os.getpid())
    yield it
    it.close()


def accept(server: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
    served, peer = server.accept()
    return served, peer


def who(attributor: Attributor, server: socket.socket, peer: tuple[str, int]) -> Attribution:
    own = server.getsockname()
    return attributor.who(TCP, socket.inet_aton(peer[0]), peer[1], socket.inet_aton(own[0]), own[1])


@contextmanager
def program(work: Callable[[], object]) -> Iterator[int]:
    """A fork that does ``work`` and then waits to be ended."""

    def then_wait() -> None:
        kept = work()
        signal.pause()
        del kept

    pid = fork(then_wait)
    yield pid
    end(pid)


def test_ourselves(attributor: Attributor, server: socket.socket) -> None:
    with socket.create_connection(server.getsockname()):
        served, peer = accept(server)
        with served:
            found = who(attributor, server, peer)
    process = found.process
    assert process is not None
    assert (process.pid, process.uid, found.method, found.nat) == (os.getpid(), os.getuid(), "sock_diag", ())
    assert process.exe == os.path.realpath(sys.executable)
    assert process.argv == proc.argv(os.getpid())
    assert process.parents == ()  # the workload's first process has none that count
    assert 0 <= found.micros < 5_000_000


def test_a_child(attributor: Attributor, server: socket.socket) -> None:
    with program(lambda: socket.create_connection(server.getsockname())) as pid:
        served, peer = accept(server)
        with served:
            process = who(attributor, server, peer).process
    assert process is not None and process.pid == pid
    assert [parent.pid for parent in process.parents] == [os.getpid()]
    assert process.parents[0].exe == os.path.realpath(sys.executable)


def test_generations(attributor: Attributor, server: socket.socket) -> None:
    """The direct parent first, the workload's first process last."""
    pids_read, pids_write = os.pipe()

    def descend(generations: int) -> object:
        os.write(pids_write, os.getpid().to_bytes(4, "big"))
        if generations:
            fork(lambda: (descend(generations - 1), signal.pause()))
            return None
        return socket.create_connection(server.getsockname())

    with program(lambda: descend(3)):
        served, peer = accept(server)
        with served:
            process = who(attributor, server, peer).process
        line = [int.from_bytes(os.read(pids_read, 4), "big") for _ in range(4)]
    os.close(pids_read)
    os.close(pids_write)
    assert process is not None and process.pid == line[3]
    assert [parent.pid for parent in process.parents] == [line[2], line[1], line[0], os.getpid()]


def test_a_family_of_many_generations_is_cut(attributor: Attributor, server: socket.socket) -> None:
    def descend(generations: int) -> object:
        if generations:
            return wait(fork(lambda: descend(generations - 1)))
        kept = socket.create_connection(server.getsockname())
        signal.pause()
        return kept

    with program(lambda: descend(12)):
        served, peer = accept(server)
        with served:
            process = who(attributor, server, peer).process
    assert process is not None and 1 <= len(process.parents) < 13


def test_of_two_children_the_right_one(attributor: Attributor, server: socket.socket) -> None:
    """Again and again, with remembered descriptors: both use the same number."""
    ports_read, ports_write = os.pipe()

    def connects() -> object:
        kept = [socket.create_connection(server.getsockname()) for _ in range(20)]
        for sock in kept:
            os.write(ports_write, os.getpid().to_bytes(4, "big") + sock.getsockname()[1].to_bytes(4, "big"))
        return kept

    with program(connects) as one, program(connects) as two:
        served = [accept(server) for _ in range(40)]
        holder = {}
        for _ in range(40):
            pid, port = os.read(ports_read, 4), os.read(ports_read, 4)
            holder[int.from_bytes(port, "big")] = int.from_bytes(pid, "big")
        for sock, peer in served:
            process = who(attributor, server, peer).process
            assert process is not None and process.pid == holder[peer[1]] and process.pid in (one, two)
            sock.close()
    os.close(ports_read)
    os.close(ports_write)


def test_a_daemon(attributor: Attributor, server: socket.socket) -> None:
    """Double-forked, in a session of its own: no longer a descendant of the first process, still in the namespace."""
    pids_read, pids_write = os.pipe()

    def daemonise() -> None:
        os.setsid()
        if os.fork() == 0:
            try:
                kept = socket.create_connection(server.getsockname())
                os.write(pids_write, os.getpid().to_bytes(4, "big"))
                signal.alarm(20)
                signal.pause()
                del kept
            finally:
                os._exit(0)

    assert wait(fork(daemonise)) == 0
    pid = int.from_bytes(os.read(pids_read, 4), "big")
    served, peer = accept(server)
    try:
        assert pid not in proc.children(os.getpid())
        with served:
            process = who(attributor, server, peer).process
        assert process is not None and process.pid == pid
        assert os.getpid() not in [parent.pid for parent in process.parents]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.close(pids_read)
        os.close(pids_write)
    assert eventually(lambda: proc.argv(pid) == ())


def test_a_thread(attributor: Attributor, server: socket.socket) -> None:
    """The process is named, not the thread: its number is not one of /proc's."""
    done = threading.Event()
    kept: list[socket.socket] = []

    def work() -> None:
        kept.append(socket.create_connection(server.getsockname()))
        done.wait(5)

    thread = threading.Thread(target=work)
    thread.start()
    served, peer = accept(server)
    with served:
        process = who(attributor, server, peer).process
    done.set()
    thread.join()
    kept[0].close()
    assert process is not None and process.pid == os.getpid()


def test_a_socket_passed_to_another_process(attributor: Attributor, server: socket.socket) -> None:
    """Whoever holds it, not whoever made it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with program(lambda: socket.recv_fds(theirs, 1, 1)) as pid:
        sock = socket.create_connection(server.getsockname())
        served, peer = accept(server)
        first = who(attributor, server, peer).process
        socket.send_fds(ours, [b"x"], [sock.fileno()])
        sock.close()
        with served:
            process = eventually(lambda: who(attributor, server, peer).process)
    ours.close()
    theirs.close()
    assert first is not None and first.pid == os.getpid()
    assert process is not None and process.pid == pid


def test_a_socket_under_way_between_two_processes_is_nobodys(attributor: Attributor, server: socket.socket) -> None:
    """It lies in a Unix socket's queue: no descriptor, no answer, no guess."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with socket.create_connection(server.getsockname()) as sock:
            socket.send_fds(ours, [b"x"], [sock.fileno()])
        served, peer = accept(server)
        with served:
            found = who(attributor, server, peer)
    assert found.process is None and found.method == "sock_diag"


def test_a_flow_that_nobody_has(attributor: Attributor, server: socket.socket) -> None:
    found = who(attributor, server, ("127.0.0.1", 1))
    assert (found.process, found.method) == (None, "sock_diag")


def test_whoever_listens_on_the_source_port_is_not_meant(attributor: Attributor, server: socket.socket) -> None:
    """A forged SYN from a port on which somebody listens. sock_diag alone would name that process."""
    assert who(attributor, server, server.getsockname()).process is None


def test_a_program_whose_file_is_gone(attributor: Attributor, server: socket.socket, tmp_path: Path) -> None:
    copy = tmp_path / "program"
    shutil.copyfile(os.path.realpath(sys.executable), copy)
    copy.chmod(0o755)
    connects = f"import socket; s = socket.create_connection(('127.0.0.1', {server.getsockname()[1]})); input()"
    with subprocess.Popen([copy, "-ISc", connects, "\udcff"], stdin=subprocess.PIPE) as running:
        served, peer = accept(server)
        copy.unlink()
        with served:
            process = who(attributor, server, peer).process
        running.kill()
    assert process is not None and process.pid == running.pid
    assert process.exe == str(copy)
    assert process.argv[1:] == ("-ISc", connects, "\udcff")


def test_argv_is_that_of_the_latest_exec(attributor: Attributor, server: socket.socket) -> None:
    """One pid, two programs, one descriptor that survives. Nothing of the first may be remembered."""
    script = (
        "import os, socket, sys\n"
        f"s = socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))\n"
        "os.set_inheritable(s.fileno(), True)\n"
        "input()\n"
        "os.execv(sys.executable, [sys.executable, '-ISc', 'print(flush=True); input()', 'second'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-ISc", script, "first"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        served, peer = accept(server)
        before = who(attributor, server, peer).process
        assert running.stdin is not None and running.stdout is not None
        running.stdin.write(b"\n")
        running.stdin.flush()
        running.stdout.readline()
        with served:
            after = who(attributor, server, peer).process
        running.kill()
    assert before is not None and before.argv[-1] == "first"
    assert after is not None and (after.pid, after.argv[-1]) == (running.pid, "second")


def test_before_the_workload_has_started(vantage: Vantage, server: socket.socket) -> None:
    """No first process yet: whoever is in the namespace is still found."""
    attributor = Attributor(vantage)
    with socket.create_connection(server.getsockname()):
        served, peer = accept(server)
        with served:
            process = who(attributor, server, peer).process
    attributor.close()
    assert process is not None and process.pid == os.getpid()


def test_without_sock_diag_the_tables_answer(vantage: Vantage, server: socket.socket) -> None:
    """A netlink socket that gives errors (this one speaks another protocol): method "proc", the same process."""
    vantage._diag_sock.close()
    vantage._diag_sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    attributor = Attributor(vantage)
    attributor.started(os.getpid())
    with socket.create_connection(server.getsockname()):
        served, peer = accept(server)
        with served:
            found = who(attributor, server, peer)
            stranger = who(attributor, server, ("127.0.0.1", 1))
    attributor.close()
    assert found.process is not None
    assert (found.process.pid, found.process.uid, found.method) == (os.getpid(), os.getuid(), "proc")
    assert (stranger.process, stranger.method) == (None, "proc")


def test_sock_diag_and_nothing_else(vantage: Vantage, server: socket.socket) -> None:
    vantage._diag_sock.close()
    vantage._diag_sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    attributor = Attributor(vantage, method="sock_diag")
    with socket.create_connection(server.getsockname()):
        served, peer = accept(server)
        with served:
            found = who(attributor, server, peer)
    attributor.close()
    assert (found.process, found.method) == (None, "sock_diag")


def test_where_conntrack_may_not_be_asked_nobody_is_named(vantage: Vantage, server: socket.socket) -> None:
    """It has entries, so the socket with these addresses may be a stranger's."""
    attributor = Attributor(vantage)
    vantage.has_tracked = lambda: True  # type: ignore[method-assign]
    vantage._conntrack_sock.close()
    vantage._conntrack_sock = None
    with socket.create_connection(server.getsockname()):
        served, peer = accept(server)
        with served:
            found = who(attributor, server, peer)
    attributor.close()
    assert found.process is None

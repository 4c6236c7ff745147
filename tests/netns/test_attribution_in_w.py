"""The process that a record names, for every way in which programs of W come by their sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground.child import end, in_own_namespaces, wait
from ground.frames import packed
from ground.grafts import Graft, graft
from ground.network import WEB, WEB6, internet

from netns_graft.linux import sock_diag
from netns_graft.linux.conntrack import Tuple
from netns_graft.linux.socket_tables import SocketTables

V4, V6 = socket.AF_INET, socket.AF_INET6
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


@contextmanager
def served() -> Iterator[tuple[Graft, socket.socket]]:
    with internet() as inet, graft(dns="synthetic") as it, inet.listener(WEB, 80, backlog=64) as listener:
        yield it, listener


def finish_one(it: Graft, listener: socket.socket) -> dict[str, object]:
    listener.accept()[0].close()
    flow = it.flow()
    assert flow["process"] is not None, flow
    return flow["process"]


def pid_from(read_fd: int) -> int:
    return int.from_bytes(os.read(read_fd, 4), "big")


@in_own_namespaces
def test_a_program_that_is_executed() -> None:
    """Its own name and arguments, and its parents up to the workload's first process."""
    script = f"import socket; socket.create_connection(('{WEB}', 80)).recv(1)"
    with served() as (it, listener):
        pid = it.program(lambda: os.execv(sys.executable, [sys.executable, "-ISc", script, "\udcff", "x" * 50_000]))
        process = finish_one(it, listener)
        assert wait(pid) == 0
    assert process["pid"] == pid and process["exe"] == os.path.realpath(sys.executable)
    argv = process["argv"]
    assert isinstance(argv, list) and argv[:4] == [sys.executable, "-ISc", script, "\udcff"]
    assert len(argv[4]) < 50_000 and set(argv[4]) == {"x"}
    assert process["uid"] == os.getuid()


@in_own_namespaces
def test_the_youngest_of_a_pipeline() -> None:
    script = f"{sys.executable} -ISc \"import socket; socket.create_connection(('{WEB}', 80)).recv(1)\" | cat; true"
    with served() as (it, listener):
        pid = it.program(lambda: subprocess.run(["/bin/sh", "-c", script], check=True))
        process = finish_one(it, listener)
        assert wait(pid) == 0
    parents = process["parents"]
    assert isinstance(parents, list)
    assert [parent["pid"] for parent in parents][-2:] == [pid, os.getpid()]
    assert "/sh" in parents[0]["exe"] or "/dash" in parents[0]["exe"] or "/bash" in parents[0]["exe"]


@in_own_namespaces
def test_a_daemon_that_left_the_family() -> None:
    read_fd, write_fd = os.pipe()

    def daemonise() -> None:
        os.setsid()
        if os.fork() == 0:
            with socket.create_connection((WEB, 80)) as sock:
                os.write(write_fd, os.getpid().to_bytes(4, "big"))
                sock.recv(1)
            os._exit(0)

    with served() as (it, listener):
        assert wait(it.program(daemonise)) == 0
        daemon = pid_from(read_fd)
        assert finish_one(it, listener)["pid"] == daemon
        assert wait(daemon) == 0  # we adopt it
    os.close(read_fd)
    os.close(write_fd)


@in_own_namespaces
def test_a_socket_that_was_handed_over() -> None:
    """Made by one process, connected by another: the one that holds it when it connects."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def work() -> None:
        _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
        with socket.socket(fileno=fds[0]) as sock:
            sock.connect((WEB, 80))
            sock.recv(1)

    with ours, theirs, served() as (it, listener):
        pid = it.program(work)
        with it.socket() as sock:
            sock.setblocking(True)
            socket.send_fds(ours, [b"x"], [sock.fileno()])
        assert finish_one(it, listener)["pid"] == pid
        assert wait(pid) == 0


@in_own_namespaces
def test_a_socket_bound_to_eth0() -> None:
    """`curl --interface eth0`."""
    with served() as (it, listener), it.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        sock.connect((WEB, 80))
        sock.close()
        assert finish_one(it, listener)["pid"] == os.getpid()


@in_own_namespaces
def test_an_ipv4_mapped_address() -> None:
    """Java's way to IPv4. On the wire it is IPv4, and so it stands in the record."""
    with served() as (it, listener), it.socket(V6) as sock:
        sock.connect(("::ffff:" + WEB, 80))
        sock.close()
        listener.accept()[0].close()
        flow = it.flow()
    assert flow["destination"]["address"] == WEB and flow["process"]["pid"] == os.getpid()


@in_own_namespaces
def test_a_source_port_on_which_another_process_listens() -> None:
    """SO_REUSEADDR lets a program connect from the very port on which another one listens in W."""

    def listens() -> None:
        with socket.create_server(("0.0.0.0", 4567)):
            os.write(write_fd, b"x")
            signal.pause()

    read_fd, write_fd = os.pipe()
    with served() as (it, listener):
        pid = it.program(listens)
        os.read(read_fd, 1)
        with it.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            try:
                sock.bind(("198.18.0.1", 4567))
            except OSError:
                sock.bind(("198.18.0.1", 0))
            sock.connect((WEB, 80))
        assert finish_one(it, listener)["pid"] == os.getpid()
        end(pid)
    os.close(read_fd)
    os.close(write_fd)


@in_own_namespaces
def test_sock_diag_and_the_tables_agree() -> None:
    """Two ways into the kernel, one answer: for each kind of socket that W can have, and for nobody's."""
    with internet() as inet, graft(hold=False) as it:
        with it.workload.inside():
            tables = SocketTables()
            diag = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)
        kept = [inet.listener(WEB, 80), inet.listener(WEB6, 80)]
        questions: list[tuple[int, Tuple, socket.socket | None]] = []

        def note(protocol: int, sock: socket.socket, peer: tuple[str, int]) -> None:
            kept.append(sock)
            own = sock.getsockname()
            address = own[0].removeprefix("::ffff:")
            if address in ("0.0.0.0", "::"):
                address = "198.18.0.1" if ":" not in peer[0] else "fd6e:6574:6772::1"
            questions.append((protocol, Tuple(packed(address), own[1], packed(peer[0]), peer[1]), sock))

        note(TCP, it.connect(WEB, 80), (WEB, 80))
        note(TCP, it.connect(WEB6, 80), (WEB6, 80))
        mapped = it.socket(V6)
        mapped.connect(("::ffff:" + WEB, 80))
        note(TCP, mapped, (WEB, 80))
        for family, peer in ((V4, (WEB, 5000)), (V6, (WEB6, 5000))):
            connected, sends = it.socket(family, socket.SOCK_DGRAM), it.socket(family, socket.SOCK_DGRAM)
            connected.connect(peer)
            note(UDP, connected, peer)
            sends.sendto(b"x", peer)
            note(UDP, sends, peer)
        nobody = Tuple(packed("198.18.0.1"), 1, packed(WEB), 80)
        questions += [(TCP, nobody, None), (UDP, nobody, None)]
        for protocol, ends, sock in questions:
            expected = [] if sock is None else [(os.fstat(sock.fileno()).st_ino, os.getuid())]
            found = sock_diag.find(diag, protocol, *ends)
            assert ([] if found is None else [found]) == expected, (protocol, ends)
            assert tables.find(protocol, ends, time.monotonic()) == expected, (protocol, ends)
        tables.close()
        for sock in (diag, *kept):
            sock.close()


@pytest.mark.parametrize("number", [0, signal.SIGKILL], ids=["exit", "kill"])
@in_own_namespaces
def test_a_program_that_is_gone_before_we_look(number: int) -> None:
    """Nobody holds the socket any more: the record has no process, rather than a guess."""
    with served() as (it, _):
        os.kill(it.pid, signal.SIGSTOP)

        def work() -> None:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((WEB, 80))
            if number:
                os.kill(os.getpid(), number)

        wait(it.program(work))
        os.kill(it.pid, signal.SIGCONT)
        assert it.refusal(WEB, 81)[0] != 0  # both have been looked at now
        it.finish()
        flows = {flow["destination"]["port"]: flow for flow in it.rest()}
    assert flows[80]["process"] is None and flows[81]["process"]["pid"] == os.getpid()

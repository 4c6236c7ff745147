"""A connect() that waits: for signals, beside other threads, with its program's end, on odd sockets."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import struct
import threading

import pytest
from ground import raw_calls
from ground.carried import NEVER, REFUSED_LATER, UNREACHABLE_LATER, Carried, Seen
from ground.child import eventually, in_own_namespaces, wait
from ground.echo import served, talk
from ground.network import HOST, HOST6, WEB, WEB6, Network, internet

from netns_graft.linux import proc

V4, V6 = socket.AF_INET, socket.AF_INET6
TCP_FASTOPEN_CONNECT, MSG_FASTOPEN, IPPROTO_MPTCP = 30, 0x20000000, 262
_libc = ctypes.CDLL(None)


def asleep(carried: Carried, threads: int = 1) -> None:
    """Wait until ``threads`` of the command wait in connect()."""

    def connecting() -> bool:
        return (
            sum(proc.asleep(tid) and proc.connecting(tid) is not None for tid in proc.threads(carried.pid))
            == threads
        )

    assert eventually(connecting)


@pytest.mark.parametrize(
    ("port", "number"), [(REFUSED_LATER, errno.ECONNREFUSED), (UNREACHABLE_LATER, errno.EHOSTUNREACH)]
)
@pytest.mark.parametrize(("family", "web", "own"), [(V4, WEB, HOST), (V6, WEB6, HOST6)])
@in_own_namespaces
def test_failed_while_it_waits(family: int, web: str, own: str, port: int, number: int) -> None:
    def work() -> None:
        with socket.socket(family) as sock:
            assert raw_calls.connect(sock, raw_calls.inet(web, port)) == -number
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            sock.connect((web, 80))
            talk(sock, own)

    with served():
        carried = Carried(lambda _: work())
        asleep(carried)
        carried.go()
        carried.finish()


@pytest.mark.parametrize("restarts", [False, True])
@in_own_namespaces
def test_a_signal(restarts: bool) -> None:
    """Without SA_RESTART connect() says EINTR and the connection goes on; with it, connect() waits again."""
    got: list[int] = []
    told_read, told_write = os.pipe2(os.O_NONBLOCK)

    def work() -> None:
        signal.set_wakeup_fd(told_write)  # told by the kernel's way into the handler, before Python's own
        signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
        signal.siginterrupt(signal.SIGUSR1, not restarts)
        with socket.socket(V4) as sock:
            result = raw_calls.connect(sock, raw_calls.inet(WEB, UNREACHABLE_LATER))
            if restarts:
                assert result == -errno.EHOSTUNREACH
            else:
                assert result == -errno.EINTR
                assert select.select([], [sock], [], 20)[1]
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH
            assert got == [1]

    with served():
        carried = Carried(lambda _: work())
        asleep(carried)
        os.kill(carried.pid, signal.SIGUSR1)
        assert select.select([told_read], [], [], 20)[0]
        if restarts:
            asleep(carried)
        carried.go()
        seen = carried.finish()
    assert len(seen.connects) == 1
    assert [name for _, name in seen.calls].count("connect") == (2 if restarts else 1)
    for fd in (told_read, told_write):
        os.close(fd)


@in_own_namespaces
def test_stopped_and_continued() -> None:
    """SIGSTOP interrupts connect() for the kernel, which calls it anew; the program sees nothing."""

    def work() -> None:
        with socket.socket(V4) as sock:
            assert raw_calls.connect(sock, raw_calls.inet(WEB, REFUSED_LATER)) == -errno.ECONNREFUSED

    with served():
        carried = Carried(lambda _: work())
        asleep(carried)
        os.kill(carried.pid, signal.SIGSTOP)
        assert os.waitpid(carried.pid, os.WUNTRACED)[1] >> 8 == signal.SIGSTOP
        os.kill(carried.pid, signal.SIGCONT)
        asleep(carried)
        carried.go()
        carried.finish()


@pytest.mark.parametrize("port", [REFUSED_LATER, NEVER])
@in_own_namespaces
def test_killed_while_it_waits(port: int) -> None:
    with served():
        carried = Carried(lambda _: raw_calls.connect(socket.socket(V4), raw_calls.inet(WEB, port)))
        asleep(carried)
        os.kill(carried.pid, signal.SIGKILL)
        assert wait(carried.pid) == -signal.SIGKILL
        carried.go()
        seen = carried.report()
    assert len(seen.connects) == 1


@in_own_namespaces
def test_two_threads_wait_for_one_socket() -> None:
    def work() -> None:
        results: list[int] = []
        with socket.socket(V4) as sock:
            name = raw_calls.inet(WEB, UNREACHABLE_LATER)
            threads = [
                threading.Thread(target=lambda: results.append(raw_calls.connect(sock, name))) for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        # One gets the error; for the other the kernel has its own word, or it tries again.
        assert -errno.EHOSTUNREACH in results and 0 not in results, results

    with served():
        carried = Carried(lambda _: work())
        asleep(carried, 2)
        carried.go()
        carried.finish()


@in_own_namespaces
def test_dissolved_while_it_is_under_way() -> None:
    def work(carried: Carried) -> None:
        with socket.socket(V4) as sock:
            sock.setblocking(False)
            assert sock.connect_ex((WEB, UNREACHABLE_LATER)) == errno.EINPROGRESS
            assert raw_calls.connect(sock, raw_calls.UNSPECIFIED) == 0
            assert sock.getsockname()[0] == "0.0.0.0"
            sock.setblocking(True)
            sock.connect((WEB, 80))
            carried.go()  # what fails now concerns nobody
            talk(sock, HOST)
            sock.setblocking(False)

    with served():
        seen = Carried(work).finish()
    assert len(seen.connects) == 2


@in_own_namespaces
def test_closed_while_it_is_under_way() -> None:
    def work() -> None:
        for _ in range(20):
            with socket.socket(V4) as sock:
                sock.setblocking(False)
                assert sock.connect_ex((WEB, 80)) == errno.EINPROGRESS

    with served():
        seen = Carried(lambda _: work()).finish()
    assert len(seen.connects) == 20


@in_own_namespaces
def test_duplicates_forks_and_hand_overs() -> None:
    def work() -> None:
        ours, theirs = socket.socketpair()
        sock = socket.socket(V4)
        sock.setblocking(False)
        assert sock.connect_ex((WEB, 81)) == errno.EINPROGRESS
        assert select.select([], [sock], [], 20)[1]
        if os.fork() == 0:
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            with socket.socket(fileno=fds[0]) as given:
                assert given.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
                given.setblocking(True)
                assert given.connect_ex((WEB, 80)) == errno.ECONNABORTED
                given.connect((WEB, 80))
            os._exit(0)
        socket.send_fds(ours, [b"x"], [sock.fileno()])
        assert os.wait()[1] == 0
        os.dup2(sock.fileno(), 99)
        with socket.socket(fileno=99) as again:
            assert again.getpeername() == (WEB, 80)
            talk(again, HOST)
        sock.close()

    with served():
        seen = Carried(lambda _: work()).finish()
    (first, _, _), (second, _, _) = seen.connects
    assert first != second


@pytest.mark.parametrize(("address", "shown"), [(HOST, HOST), ("0.0.0.0", HOST)])
@in_own_namespaces
def test_a_socket_that_was_bound(address: str, shown: str) -> None:
    def work() -> None:
        with socket.socket(V4) as sock:
            sock.bind((address, 4321))
            sock.connect((WEB, 80))
            assert sock.getsockname() == (shown, 4321)
            talk(sock, HOST)

    with served():
        seen = Carried(lambda _: work()).finish()
    assert seen.connects[0][1][1] == 4321


@in_own_namespaces
def test_a_socket_tied_to_an_interface() -> None:
    def work() -> None:
        for interface, result in ((b"h0", -errno.ENETUNREACH), (b"lo", 0)):
            with socket.socket(V4) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface)
                assert raw_calls.connect(sock, raw_calls.inet(WEB, 80)) == result

    with served():
        seen = Carried(lambda _: work()).finish()
    assert len(seen.connects) == 1 and "interface" in seen.warnings[0]


@in_own_namespaces
def test_tcp_fast_open() -> None:
    def work() -> None:
        with socket.socket(V4) as sock:
            with pytest.raises(OSError) as told:
                sock.sendto(b"hello\n", MSG_FASTOPEN, (WEB, 80))
            assert told.value.errno == errno.EOPNOTSUPP
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            sock.connect((WEB, 80))
            talk(sock, HOST)

    with served():
        seen = Carried(lambda _: work()).finish()
    assert len(seen.connects) == 1


@in_own_namespaces
def test_other_protocols_are_closed() -> None:
    def work() -> None:
        name = raw_calls.inet(WEB, 80)
        ping = socket.socket(V4, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        assert raw_calls.called("sendto", ping.fileno(), b"x" * 8, 8, 0, name, 16) == -errno.EACCES
        assert raw_calls.connect(ping, name) == -errno.EACCES
        ping.close()
        lite = socket.socket(V4, socket.SOCK_DGRAM, 136)
        assert raw_calls.called("sendto", lite.fileno(), b"x", 1, 0, name, 16) == -errno.EACCES
        lite.close()
        with socket.socket(V4, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
            assert raw_calls.connect(sock, name) == -errno.EPROTONOSUPPORT

    with served():
        seen = Carried(lambda _: work()).finish()
    assert seen.connects == []
    assert [line.split(":")[0] for line in seen.warnings] == ["raw sockets", "UDP-Lite", "MPTCP"]


@in_own_namespaces
def test_a_socket_of_another_network_namespace() -> None:
    """Left alone, whatever it connects to."""
    with internet() as inet, Network() as other, other.socket() as sock, inet.listener(WEB, 80):

        def work() -> None:
            assert raw_calls.connect(sock, raw_calls.inet(WEB, 80)) == -errno.ENETUNREACH

        seen = Carried(lambda _: work()).finish()
    assert seen.connects == []


@in_own_namespaces
def test_local_destinations_when_they_are_not_left_alone() -> None:
    def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            name = listener.getsockname()
            with socket.create_connection(name) as sock:
                assert sock.getpeername() == name and sock.getsockname()[0] == "127.0.0.1"
                accepted, _ = listener.accept()
                accepted.close()
                assert sock.recv(1) == b""

    with served():
        seen: Seen = Carried(lambda _: work(), ignore_local=False).finish()
    assert len(seen.connects) == 1


@in_own_namespaces
def test_ipv6_where_the_host_has_none() -> None:
    with internet():
        with open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as file:
            file.write("1")

        def work() -> None:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(V6, kind) as sock:
                    assert raw_calls.connect(sock, raw_calls.inet(WEB6, 53)) == -errno.ENETUNREACH

        Carried(lambda _: work()).finish()


@in_own_namespaces
def test_many_at_once() -> None:
    """Polled and waited for, by several processes; each comes through, and nothing stays open in the tracer."""

    def work() -> None:
        pids = []
        for number in range(4):
            pids.append(os.fork())
            if pids[-1] == 0:
                _many(number % 2 == 0)
                os._exit(0)
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)

    with served():
        seen = Carried(lambda _: work()).finish()
    assert len(seen.connects) == 4 * 50
    assert len({source for _, source, _ in seen.connects}) == 4 * 50


@in_own_namespaces
def test_more_connections_than_ports() -> None:
    """A waiting room holds as many as there are ephemeral ports; then another is tried, which takes ports too, and
    there is an errno when there are none.
    """

    def work() -> None:
        socks, results = [], []
        for _ in range(200):
            socks.append(socket.socket(V4))
            socks[-1].setblocking(False)
            results.append(socks[-1].connect_ex((WEB, NEVER)))
        # Of the eight ports a room, its guest and the deaf one take three.
        last = results.index(errno.EADDRNOTAVAIL)
        assert last >= 5 and set(results[:last]) == {errno.EINPROGRESS}
        assert set(results[last:]) == {errno.EADDRNOTAVAIL}
        for sock in socks:
            sock.close()

    def fewer() -> None:
        with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
            file.write("40000 40007")

    with served():
        fewer()
        Carried(lambda _: work()).finish()


def _many(blocking: bool) -> None:
    socks = [socket.socket(V4) for _ in range(50)]
    for sock in socks:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.setblocking(blocking)
        assert sock.connect_ex((WEB, 80)) in (0, errno.EINPROGRESS)
    for sock in socks:
        sock.setblocking(True)
        sock.settimeout(20)
        assert sock.recv(64) == f"{HOST}\n".encode()
    for sock in socks:
        sock.close()

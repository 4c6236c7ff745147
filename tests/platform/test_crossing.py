"""What a TCP socket in connect() does when it meets us: ptrace mode (tracing/crossing.py) is made of these."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground import raw_calls
from ground.child import eventually, in_own_namespaces
from ground.network import HOST, configure, sysctl
from ground.translated import translate_loopback

from netns_graft.linux import proc

V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize(("family", "address"), [(V4, "127.0.0.1"), (V6, "::1")])
SO_COOKIE, TCP_FASTOPEN_CONNECT = 57, 30
ESTABLISHED, SYN_SENT, SYN_RECV, CLOSE = 1, 2, 3, 7
RESET = struct.pack("ii", 1, 0)
ALL = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
ELSEWHERE = {V4: raw_calls.inet("192.0.2.1", 80), V6: raw_calls.inet("2001:db8::1", 80)}


def state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def shared(family: int, name: tuple[str, int]) -> socket.socket:
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(name)
    return sock


@contextmanager
def room(family: int, address: str) -> Iterator[tuple[str, int]]:
    """A listener whose queue is full."""
    with shared(family, (address, 0)) as listener:
        listener.listen(0)
        name = listener.getsockname()[:2]
        with socket.create_connection(name, 5):
            assert select.select([listener], [], [], 5)[0]
            yield name


@contextmanager
def held(family: int, address: str) -> Iterator[tuple[socket.socket, tuple[str, int]]]:
    """A socket that is connecting and gets no answer, and to where."""
    with room(family, address) as name, socket.socket(family) as sock:
        sock.setblocking(False)
        assert sock.connect_ex(name) == errno.EINPROGRESS
        assert state(sock) == SYN_SENT
        yield sock, name


def crossed(sock: socket.socket, name: tuple[str, int], *options: tuple[int, int, int]) -> socket.socket:
    opposite = shared(sock.family, name)
    for option in options:
        opposite.setsockopt(*option)
    opposite.setblocking(False)
    opposite.connect_ex(sock.getsockname()[:2])
    return opposite


@contextmanager
def waiting(sock: socket.socket) -> Iterator[list[int]]:
    """A thread in a blocking connect() on ``sock``, its address being another than the one under way."""
    sock.setblocking(True)
    results: list[int] = []
    tids: list[int] = []

    def wait() -> None:
        tids.append(threading.get_native_id())
        results.append(raw_calls.connect(sock, ELSEWHERE[sock.family]))

    thread = threading.Thread(target=wait)
    thread.start()
    assert eventually(lambda: tids and proc.asleep(tids[0]) and proc.connecting(tids[0]) is not None)
    yield results
    thread.join(20)


@pytest.mark.parametrize("overflow", ["0", "1"])
@pytest.mark.parametrize("cookies", ["0", "1", "2"])
@in_own_namespaces
def test_a_full_queue_answers_no_syn(overflow: str, cookies: str) -> None:
    """Whatever the host's settings for overflowing queues. Falls: a held connection would be let in or refused."""
    sysctl("net/ipv4/tcp_abort_on_overflow", overflow)
    sysctl("net/ipv4/tcp_syncookies", cookies)
    for family, address in ((V4, "127.0.0.1"), (V6, "::1")):
        with shared(family, (address, 0)) as listener, socket.socket(family) as sock:
            listener.listen(0)
            guest = socket.create_connection(listener.getsockname()[:2], 5)
            assert select.select([listener], [], [], 5)[0]
            for leaving in (guest, None):
                sock.setblocking(False)
                assert sock.connect_ex(listener.getsockname()[:2]) == errno.EINPROGRESS
                assert not select.select([], [sock], [], 0.01)[1] and state(sock) == SYN_SENT
                assert raw_calls.connect(sock, raw_calls.UNSPECIFIED) == 0
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
                if leaving:
                    leaving.close()  # its place in the queue is kept until somebody accepts it


@FAMILIES
def test_both_ends_of_a_crossing_stand_at_once(family: int, address: str) -> None:
    """Falls: a connection could not be given to a program without a listener that strangers reach, too."""
    with held(family, address) as (sock, name), crossed(sock, name) as opposite:
        assert eventually(lambda: state(sock) == state(opposite) == ESTABLISHED, 1.0)
        assert sock.getpeername()[:2] == name == opposite.getsockname()[:2]
        for one, two in ((sock, opposite), (opposite, sock)):
            one.setblocking(True)
            one.settimeout(5)
            one.sendall(b"hello")
            two.setblocking(True)
            two.settimeout(5)
            assert two.recv(10) == b"hello"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@FAMILIES
def test_a_connect_on_a_connecting_socket_looks_at_no_address(family: int, address: str) -> None:
    """It waits for the connection that is under way. Falls: a program's blocking connect() could not go on natively,
    and signals and time limits would have to be imitated."""
    with held(family, address) as (sock, name):
        with waiting(sock) as results, crossed(sock, name):
            assert eventually(lambda: results)
        assert results == [0] and sock.getpeername()[:2] == name


@FAMILIES
def test_a_reset_before_the_last_ack_is_one_step(family: int, address: str) -> None:
    """TCP_DEFER_ACCEPT keeps the ACK back, so the held socket goes from SYN_RECV to closed: no poll sees it writable
    without an error. Falls: a program could write into a connection that is being refused."""
    with held(family, address) as (sock, name), select.epoll() as epoll:
        epoll.register(sock, ALL)
        assert epoll.poll(0) == []
        opposite = crossed(sock, name, (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1))
        assert eventually(lambda: state(opposite) == ESTABLISHED, 1.0)
        assert state(sock) == SYN_RECV and epoll.poll(0) == []
        opposite.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        opposite.close()
        [(_, events)] = epoll.poll(5)
        assert events & select.EPOLLERR and events & select.EPOLLHUP
        assert state(sock) == CLOSE
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        # and the socket is as any whose connect() failed and whose error was read
        assert sock.connect_ex(name) == errno.ECONNABORTED
        assert sock.connect_ex(name) == errno.EINPROGRESS


@FAMILIES
def test_a_reset_ends_a_wait(family: int, address: str) -> None:
    with held(family, address) as (sock, name):
        with waiting(sock) as results:
            opposite = crossed(sock, name, (socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1))
            assert eventually(lambda: state(opposite) == ESTABLISHED, 1.0)
            opposite.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            opposite.close()
        assert results == [-errno.ECONNRESET]


@FAMILIES
def test_a_wait_whose_socket_is_disconnected_and_connected_again(family: int, address: str) -> None:
    """connect() comes back with EPIPE (ECONNRESET or ECONNABORTED before Linux 6.7) or with 0, never by connecting to
    its own address. Falls: where loopback is translated, a program's connect() could go past us."""
    with held(family, address) as (sock, _), socket.create_server((address, 0), family=family) as listener:
        with waiting(sock) as results:
            assert raw_calls.connect(sock, raw_calls.UNSPECIFIED) == 0
            os.set_blocking(sock.fileno(), False)
            assert raw_calls.connect(sock, raw_calls.inet(*listener.getsockname()[:2])) in (0, -errno.EINPROGRESS)
            os.set_blocking(sock.fileno(), True)
            listener.accept()[0].close()
        assert results[0] in (0, -errno.EPIPE, -errno.ECONNRESET, -errno.ECONNABORTED)
        assert sock.getpeername() == listener.getsockname()


def test_the_last_ack_and_a_second_connect() -> None:
    """A connection that came about by itself: the first connect() after it says 0, then EISCONN."""
    with held(V4, "127.0.0.1") as (sock, name), crossed(sock, name):
        assert eventually(lambda: state(sock) == ESTABLISHED, 1.0)
        assert [sock.connect_ex(name) for _ in range(2)] == [0, errno.EISCONN]


@pytest.mark.parametrize("bound", [("127.0.0.1", 0), ("0.0.0.0", 0), ("127.9.9.9", 0)])
def test_a_bound_socket_is_crossed_with_as_well(bound: tuple[str, int]) -> None:
    with room(V4, "127.0.0.1") as name, socket.socket(V4) as sock:
        sock.bind(bound)
        sock.setblocking(False)
        assert sock.connect_ex(name) == errno.EINPROGRESS
        with crossed(sock, name) as opposite:
            assert eventually(lambda: state(sock) == state(opposite) == ESTABLISHED, 1.0)


@in_own_namespaces
def test_translated_crossings_do_not_pair() -> None:
    """Each is refused at once and the held socket does not notice. Falls (they pair): by_listener() could go."""
    configure("lo", f"{HOST}/32")
    translate_loopback(f"ip saddr 127.0.0.1 snat to {HOST}")
    with held(V4, "127.0.0.1") as (sock, name), crossed(sock, name) as opposite:
        assert eventually(lambda: state(opposite) == CLOSE, 1.0)
        assert state(sock) == SYN_SENT


@in_own_namespaces
def test_a_deferred_connect_sends_no_syn() -> None:
    """TCP_FASTOPEN_CONNECT: connect() says 0 though nobody answered, and waits for data. Falls: it need not be cleared
    before holding."""
    sysctl("net/ipv4/tcp_fastopen", "5")  # client, without asking for a cookie first
    with room(V4, "127.0.0.1") as name:
        for option, result in ((1, 0), (0, errno.EINPROGRESS)):
            with socket.socket(V4) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, option)
                sock.setblocking(False)
                assert sock.connect_ex(name) == result


def test_a_socket_keeps_its_cookie() -> None:
    """Whoever holds it. Falls: a model of descriptors would be needed."""
    with socket.socket() as sock, sock.dup() as again, socket.socket() as other:
        one, two, three = (it.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8) for it in (sock, again, other))
        assert one == two != three


def test_a_connected_pair_that_is_closed_can_cross_again_at_once() -> None:
    """The same room, the same port of the program: our end's TIME_WAIT is no hindrance to a bound connect()."""
    with room(V4, "127.0.0.1") as name:
        for _ in range(3):
            with socket.socket(V4) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", 45678))
                sock.setblocking(False)
                assert sock.connect_ex(name) == errno.EINPROGRESS
                with crossed(sock, name) as opposite:
                    assert eventually(lambda: state(sock) == state(opposite) == ESTABLISHED, 1.0)
                    opposite.shutdown(socket.SHUT_WR)  # our end closes first, and has the TIME_WAIT
                    assert eventually(lambda: sock.recv(1, socket.MSG_DONTWAIT) == b"")

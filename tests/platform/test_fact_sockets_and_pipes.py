"""What TCP sockets, pipes, splice and epoll do at their edges: the relay (relay.py) is made of these."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground.child import fork, wait

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
NONBLOCK = 2
LINGER_RESET = struct.pack("ii", 1, 0)
EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    for sock in (one, two):
        sock.settimeout(5)
    with one, two:
        yield one, two


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for fd in ends:
        os.close(fd)


def test_linger_zero_makes_close_send_a_reset() -> None:
    """Falls: a reset on one side could not be passed on as one."""
    with connection() as (one, two):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        one.close()
        with pytest.raises(ConnectionResetError):
            two.recv(1)


def test_what_came_before_a_reset_can_still_be_read() -> None:
    """Falls: the relay would lose an answer that a server sends before it resets."""
    with connection() as (one, two):
        one.sendall(b"last words")
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        one.close()
        assert two.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            two.recv(1)


def test_but_not_after_a_write_has_reported_the_reset() -> None:
    """The error is told once, and to whoever asks first: then the other direction ends as if all were well."""
    with connection() as (one, two):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        one.close()
        poll = select.poll()
        poll.register(two, 0)
        assert poll.poll(5000)
        with pytest.raises(OSError) as told:
            two.send(b"x")
        assert told.value.errno in (errno.ECONNRESET, errno.EPIPE)
        assert two.recv(1) == b""


def test_half_close_leaves_the_other_direction_open() -> None:
    with connection() as (one, two):
        one.shutdown(socket.SHUT_WR)
        assert two.recv(1) == b""
        two.sendall(b"still")
        assert one.recv(10) == b"still"


def test_splice_between_a_socket_and_a_pipe() -> None:
    """BlockingIOError when there is nothing, 0 at the end, and never more than there is."""
    with connection() as (one, two), pipe() as (read_fd, write_fd):
        one.setblocking(False)
        with pytest.raises(BlockingIOError):
            os.splice(one.fileno(), write_fd, 1 << 20, flags=NONBLOCK)
        two.sendall(b"abc")
        assert select.select([one], [], [], 5)[0]
        assert os.splice(one.fileno(), write_fd, 1 << 20, flags=NONBLOCK) == 3
        assert os.splice(read_fd, one.fileno(), 3, flags=NONBLOCK) == 3
        assert two.recv(10) == b"abc"
        two.shutdown(socket.SHUT_WR)
        assert select.select([one], [], [], 5)[0]
        assert os.splice(one.fileno(), write_fd, 1 << 20, flags=NONBLOCK) == 0


def test_splice_tells_a_reset() -> None:
    with connection() as (one, two), pipe() as (_, write_fd):
        two.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        two.close()
        assert select.select([one], [], [], 5)[0]
        with pytest.raises(ConnectionResetError):
            os.splice(one.fileno(), write_fd, 1 << 20, flags=NONBLOCK)


def test_eagain_is_what_arms_the_next_edge() -> None:
    """Falls: sockets registered once, edge-triggered, would fall asleep with bytes waiting."""
    with connection() as (one, two), select.epoll() as epoll:
        one.setblocking(False)
        epoll.register(one, EDGES)
        assert epoll.poll(0) == [(one.fileno(), select.EPOLLOUT)]
        assert epoll.poll(0) == []
        two.sendall(b"ab")
        assert epoll.poll(5)[0][1] & select.EPOLLIN
        assert one.recv(1) == b"a"
        assert epoll.poll(0) == []  # not read to the end, and no news: silence
        two.sendall(b"c")
        assert epoll.poll(5)[0][1] & select.EPOLLIN


def test_closing_a_socket_takes_it_out_of_epoll() -> None:
    with connection() as (one, two), select.epoll() as epoll:
        epoll.register(one, EDGES)
        epoll.poll(0)
        two.sendall(b"x")
        one.close()
        assert epoll.poll(0) == []


def test_pipes_beyond_the_limit_of_pages_stay_small() -> None:
    """fs.pipe-user-pages-soft, for who is not root: F_SETPIPE_SZ says EPERM. Falls (no error): the fall-back goes.

    The limit counts all pipes of the user, so as root this is nobody's.
    """
    with open("/proc/sys/fs/pipe-user-pages-soft") as file:
        limit = int(file.read())
    if limit == 0:
        limit = 16384  # switched off: then nothing may be refused below
        switched_off = True
    else:
        switched_off = False

    def work() -> None:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        with open("/proc/sys/fs/pipe-max-size") as file:
            most = int(file.read())
        refused, ends = None, []
        try:
            for _ in range(limit * os.sysconf("SC_PAGE_SIZE") // most + 1):
                ends.append(os.pipe2(os.O_CLOEXEC))
                fcntl.fcntl(ends[-1][1], F_SETPIPE_SZ, most)
        except OSError as error:
            refused = error.errno
        assert refused == (None if switched_off else errno.EPERM)
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
        assert fcntl.fcntl(write_fd, F_GETPIPE_SZ) >= 4096  # a pipe there always is, a small one now
        assert os.write(write_fd, bytes(4096)) == 4096
        assert len(os.read(read_fd, 8192)) == 4096

    assert wait(fork(work)) == 0


def test_a_pipe_of_one_page_holds_one_page() -> None:
    with pipe() as (_, write_fd):
        assert fcntl.fcntl(write_fd, F_SETPIPE_SZ, 4096) == 4096
        assert os.write(write_fd, bytes(5000)) == 4096
        with pytest.raises(BlockingIOError):
            os.write(write_fd, b"x")

"""The relay between real connections over loopback: what one end says is what the other hears, to the last byte."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from netns_graft.flow import Flow, Outcome
from netns_graft.relay import EVENTS, PIPE_SIZE, Pipes, Relay, reset_on_close

WAIT = 5.0
LINGER_RESET = struct.pack("ii", 1, 0)
F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032


def connection(buffers: int | None = None) -> tuple[socket.socket, socket.socket]:
    """A TCP connection over loopback; with ``buffers``, both ends keep no more than about so many bytes."""
    with socket.socket() as listener:
        if buffers is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.socket()
        if buffers is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        one.connect(listener.getsockname())
        two, _ = listener.accept()
    return one, two


class Carried:
    """A flow between ``program`` and ``server`` (blocking sockets, for the test), with an event loop of its own.

    ``run`` turns it, in this thread, until something holds.
    """

    def __init__(self, pipes: Pipes, buffers: int | None = None) -> None:
        self.program, client_sock = connection(buffers)
        upstream_sock, self.server = connection(buffers)
        for sock in (self.program, self.server):
            sock.settimeout(WAIT)
        for sock in (client_sock, upstream_sock):
            sock.setblocking(False)
        self.flow = Flow("1", "test", "tcp", "127.0.0.1", 1, "127.0.0.1", 2, 0.0)
        self.finished = 0
        self._epoll = select.epoll()
        self.relay = Relay(self.flow, client_sock, upstream_sock, pipes, self._on_finished)
        self._handlers = {
            client_sock.fileno(): self.relay.on_client, upstream_sock.fileno(): self.relay.on_upstream
        }  # fmt: skip
        for fd in self._handlers:
            self._epoll.register(fd, EVENTS)
        self._again = [self.relay.on_client]
        self.turns = 0

    def _on_finished(self, relay: Relay) -> None:
        assert relay is self.relay
        assert relay.client_sock.fileno() >= 0 and relay.upstream_sock.fileno() >= 0  # not closed yet
        self.finished += 1

    def turn(self, wait: float = 0.0) -> bool:
        """One round of events. False: nothing happened."""
        again, self._again = self._again, []
        events = self._epoll.poll(0 if again else wait)
        for fd, what in events:
            handler = self._handlers[fd]
            if handler(what):
                again.append(handler)
        for handler in again:
            if handler(0):
                self._again.append(self.relay.on_client)
        self.turns += 1
        return bool(events or again)

    def run(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT
        while not until():
            assert time.monotonic() < deadline, "it never came to pass"
            self.turn(0.05)

    def settle(self) -> None:
        """Until nothing is left to move."""
        while self.turn(0.01):
            pass

    def end(self) -> Flow:
        self.run(lambda: self.finished > 0)
        return self.flow

    def close(self) -> None:
        self.relay.stop()
        assert self.finished == 1
        for sock in (self.relay.client_sock, self.relay.upstream_sock):
            assert sock.fileno() == -1
        for sock in (self.program, self.server):
            sock.close()
        self._epoll.close()


@contextmanager
def carried(buffers: int | None = None, pipes: Pipes | None = None) -> Iterator[Carried]:
    stock = pipes or Pipes()
    it = Carried(stock, buffers)
    try:
        yield it
    finally:
        it.close()
        stock.close()


def receive_all(sock: socket.socket, into: list[bytes]) -> None:
    """Until the end of file; an error is put in as its name."""
    try:
        while part := sock.recv(1 << 16):
            into.append(part)
    except OSError as error:
        into.append(errno.errorcode[error.errno or 0].encode())


class Background:
    """Blocking work beside the loop; ``done`` when it has returned."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self._threads = [threading.Thread(target=work) for work in works]
        for thread in self._threads:
            thread.start()

    def done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT)
        assert self.done()


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    sock.close()


def held_pipes() -> int:
    """How many descriptors of this process are ends of pipes."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
        except OSError:
            pass  # the one that listed them
    return found


class TestBytes:
    def test_both_ways(self) -> None:
        with carried() as flow:
            flow.program.sendall(b"question")
            flow.settle()
            assert flow.server.recv(100) == b"question"
            flow.server.sendall(b"the answer")
            flow.settle()
            assert flow.program.recv(100) == b"the answer"
            flow.program.close()
            flow.server.close()
            record = flow.end()
            assert (record.bytes_sent, record.bytes_received, record.outcome) == (8, 10, Outcome.OK)
            assert record.error is None

    @pytest.mark.parametrize("buffers", [None, 4096])
    @pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3_000_001])
    def test_exact_both_ways_at_once(self, size: int, buffers: int | None) -> None:
        if buffers is not None and size > 1_000_000:
            size = 400_001  # a small window makes it slow, not more telling
        up, down = os.urandom(size), os.urandom(size)
        heard_up: list[bytes] = []
        heard_down: list[bytes] = []

        def program() -> None:
            sender = Background(lambda: (it.program.sendall(up), it.program.shutdown(socket.SHUT_WR)))
            receive_all(it.program, heard_down)
            sender.join()

        def server() -> None:
            sender = Background(lambda: (it.server.sendall(down), it.server.shutdown(socket.SHUT_WR)))
            receive_all(it.server, heard_up)
            sender.join()

        with carried(buffers) as it:
            ends = Background(program, server)
            record = it.end()
            ends.join()
        assert hashlib.sha256(b"".join(heard_up)).digest() == hashlib.sha256(up).digest()
        assert hashlib.sha256(b"".join(heard_down)).digest() == hashlib.sha256(down).digest()
        assert (record.bytes_sent, record.bytes_received, record.outcome) == (size, size, Outcome.OK)

    def test_through_pipes_of_one_page(self) -> None:
        """What is left when the user's pipe pages are used up: slower, not wrong."""
        pipes = Pipes()
        for _ in range(2):
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.fcntl(pipe[1], F_SETPIPE_SZ, 4096)
            pipes.give_back(pipe, empty=True)
        data = os.urandom(500_000)
        heard: list[bytes] = []
        with carried(pipes=pipes) as it:
            ends = Background(
                lambda: (it.program.sendall(data), it.program.shutdown(socket.SHUT_WR)),
                lambda: (receive_all(it.server, heard), it.server.close()),
            )
            it.end()
            ends.join()
        assert b"".join(heard) == data

    @pytest.mark.parametrize("looks_between", [True, False])
    def test_urgent_data_goes_on_in_its_place(self, looks_between: bool) -> None:
        """telnet and FTP send it. splice(2) stops before it, for good and without a word."""
        with carried() as it:
            for text, flags in ((b"ab", 0), (b"!", socket.MSG_OOB), (b"cd", 0), (b"?", socket.MSG_OOB), (b"ef", 0)):
                it.program.send(text, flags)
                if looks_between:
                    it.settle()
            it.program.shutdown(socket.SHUT_WR)
            it.run(lambda: it.relay._up.done)
            heard: list[bytes] = []
            receive_all(it.server, heard)
            assert b"".join(heard) == b"ab!cd?ef"
            it.server.sendall(b"heard")
            it.server.close()
            assert it.end().outcome is Outcome.OK
            assert it.program.recv(10) == b"heard"

    def test_urgent_data_alone(self) -> None:
        with carried() as it:
            it.program.send(b"!", socket.MSG_OOB)
            it.settle()
            assert it.server.recv(10) == b"!"


class TestHalfClose:
    def test_the_program_first(self) -> None:
        with carried() as it:
            it.program.sendall(b"all I have")
            it.program.shutdown(socket.SHUT_WR)
            it.settle()
            heard: list[bytes] = []
            receive_all(it.server, heard)
            assert heard == [b"all I have"]
            assert not it.finished
            it.server.sendall(b"and I")
            it.settle()
            assert it.program.recv(100) == b"and I"
            it.server.close()
            assert it.end().outcome is Outcome.OK
            assert it.program.recv(1) == b""

    def test_the_server_first(self) -> None:
        with carried() as it:
            it.server.sendall(b"bye")
            it.server.shutdown(socket.SHUT_WR)
            it.settle()
            assert it.program.recv(100) == b"bye" and it.program.recv(1) == b""
            assert not it.finished
            it.program.sendall(b"one more thing")
            it.settle()
            assert it.server.recv(100) == b"one more thing"
            it.program.close()
            assert it.end().outcome is Outcome.OK

    def test_before_anything_was_said(self) -> None:
        with carried() as it:
            it.program.shutdown(socket.SHUT_WR)
            it.settle()
            assert it.server.recv(1) == b""
            it.server.sendall(b"x")
            it.server.close()
            record = it.end()
            assert it.program.recv(10) == b"x" and it.program.recv(1) == b""
            assert (record.bytes_sent, record.bytes_received) == (0, 1)

    def test_it_waits_for_what_was_said_before(self) -> None:
        """The end of file comes after the last byte, however slowly the other side reads."""
        data = os.urandom(300_000)
        with carried(buffers=4096) as it:
            ends = Background(lambda: (it.program.sendall(data), it.program.shutdown(socket.SHUT_WR)))
            for _ in range(30):
                it.turn(0.01)
            assert not it.relay._up.done  # nobody reads
            heard: list[bytes] = []
            reader = Background(lambda: (receive_all(it.server, heard), it.server.close()))
            it.end()
            ends.join()
            reader.join()
            assert b"".join(heard) == data


class TestReset:
    def test_of_the_program_reaches_the_server(self) -> None:
        with carried() as it:
            it.program.sendall(b"abc")
            it.settle()
            assert it.server.recv(10) == b"abc"
            reset(it.program)
            record = it.end()
            with pytest.raises(ConnectionResetError):
                it.server.recv(1)
            assert record.outcome is Outcome.RESET and record.error
            assert record.bytes_sent == 3

    def test_of_the_server_reaches_the_program(self) -> None:
        with carried() as it:
            reset(it.server)
            assert it.end().outcome is Outcome.RESET
            with pytest.raises(ConnectionResetError):
                it.program.recv(1)

    def test_after_what_came_before(self) -> None:
        with carried() as it:
            it.server.sendall(b"last words")
            reset(it.server)
            record = it.end()
            assert it.program.recv(100) == b"last words"
            with pytest.raises(ConnectionResetError):
                it.program.recv(1)
            assert (record.outcome, record.bytes_received) == (Outcome.RESET, 10)

    def test_after_what_came_before_though_the_program_was_speaking(self) -> None:
        """Both sockets have news in one turn: the write that fails must not lose the words that wait to be read."""
        with carried() as it:
            it.settle()
            it.server.sendall(b"last words")
            reset(it.server)
            it.program.sendall(b"are you there")
            poll = select.poll()  # both have arrived before the relay looks
            poll.register(it.relay.client_sock, select.POLLIN)
            assert poll.poll(5000)
            poll = select.poll()
            poll.register(it.relay.upstream_sock, 0)
            assert poll.poll(5000)
            it.relay.on_client(select.EPOLLIN)  # of the two events this one first
            record = it.end()
            assert it.program.recv(100) == b"last words"
            with pytest.raises(ConnectionResetError):
                it.program.recv(1)
            assert (record.outcome, record.bytes_received) == (Outcome.RESET, 10)

    def test_after_a_half_close(self) -> None:
        """The program has said all and waits; the server resets."""
        with carried() as it:
            it.program.shutdown(socket.SHUT_WR)
            it.settle()
            assert it.server.recv(1) == b""
            reset(it.server)
            assert it.end().outcome is Outcome.RESET
            with pytest.raises(ConnectionResetError):
                it.program.recv(1)

    def test_of_the_program_after_its_own_half_close(self) -> None:
        """Nothing will ever be read from it again: only the error says that it is gone."""
        with carried() as it:
            it.program.shutdown(socket.SHUT_WR)
            it.settle()
            assert it.server.recv(1) == b""
            reset(it.program)
            assert it.end().outcome is Outcome.RESET
            poll = select.poll()
            poll.register(it.server, 0)
            assert poll.poll(5000)[0][1] & select.POLLERR or it.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def test_to_a_server_that_has_closed(self) -> None:
        """The server closed without reading: its kernel answers the program's bytes with RST."""
        with carried() as it:
            it.server.close()
            it.settle()
            assert it.program.recv(1) == b""
            it.program.sendall(b"too late")
            assert it.end().outcome is Outcome.RESET
            with pytest.raises(OSError):
                it.program.sendall(b"more")
                it.program.recv(1)


class TestBackpressure:
    def test_a_reader_that_does_not_read_stops_the_writer(self) -> None:
        """What is under way stays within the buffers of two connections and one pipe."""
        with carried(buffers=4096) as it:
            it.program.setblocking(False)
            sent = 0
            while True:
                it.settle()
                try:
                    sent += it.program.send(bytes(65536))
                except BlockingIOError:
                    break
            assert 0 < sent < PIPE_SIZE + 200_000
            it.server.setblocking(True)
            heard = 0
            while heard < sent:  # and goes on when it reads
                it.turn(0.01)
                with_data, _, _ = select.select([it.server], [], [], 0)
                heard += len(it.server.recv(65536)) if with_data else 0
            it.program.sendall(b"again")
            it.settle()
            assert it.server.recv(10) == b"again"

    def test_one_blocked_direction_does_not_block_the_other(self) -> None:
        with carried(buffers=4096) as it:
            it.program.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    it.settle()
                    it.program.send(bytes(65536))
            it.server.sendall(b"this way is free")
            it.settle()
            assert it.program.recv(100) == b"this way is free"

    def test_a_flow_with_much_to_move_lets_others_have_their_turn(self) -> None:
        """True from a handler: call me again, after the others."""
        pipes = Pipes()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(pipe[1], F_SETPIPE_SZ, 4096)
        pipes.give_back(pipe, empty=True)
        with carried(pipes=pipes) as it:
            data = bytes(200_000)
            writer = Background(lambda: it.program.sendall(data))
            writer.join()  # loopback takes it all
            assert it.relay.on_client(select.EPOLLIN) is True
            assert 0 < it.relay._up.total < len(data)
            heard: list[bytes] = []
            reader = Background(lambda: receive_all(it.server, heard))
            it.program.shutdown(socket.SHUT_WR)
            it.run(lambda: it.relay._up.done)
            reader.join()
            assert len(b"".join(heard)) == len(data)

    def test_nothing_to_do_is_false(self) -> None:
        with carried() as it:
            assert it.relay.on_client(select.EPOLLIN) is False
            assert it.relay.on_upstream(select.EPOLLOUT) is False
            assert it.relay.on_client(0) is False


class TestPreload:
    """What the destination said so early that it came with the proxy's last reply."""

    @pytest.mark.parametrize("size", [1, 4096, 65536])
    def test_it_comes_first(self, size: int) -> None:
        early = os.urandom(size)
        with carried() as it:
            it.server.sendall(b"and then this")
            it.relay.preload(early)
            heard = b""
            while len(heard) < size + 13:
                it.turn(0.01)
                ready, _, _ = select.select([it.program], [], [], 0)
                heard += it.program.recv(65536) if ready else b""
            assert heard == early + b"and then this"
            it.program.close()
            it.server.close()
            assert it.end().bytes_received == size + 13

    def test_though_the_pipes_are_tiny(self) -> None:
        """Pages used up: a pipe of 4 KiB, and 16 KiB from the proxy."""
        pipes = Pipes()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(pipe[1], F_SETPIPE_SZ, 4096)
        pipes.give_back(pipe, empty=True)
        early = os.urandom(16_384)
        with carried(pipes=pipes) as it:
            it.relay.preload(early)
            it.server.sendall(b"!")
            heard = b""
            while len(heard) < len(early) + 1:
                it.turn(0.01)
                ready, _, _ = select.select([it.program], [], [], 0)
                heard += it.program.recv(65536) if ready else b""
            assert heard == early + b"!"

    def test_and_is_not_lost_when_the_destination_has_closed(self) -> None:
        with carried() as it:
            it.server.close()
            it.relay.preload(b"early")
            it.settle()
            assert it.program.recv(10) == b"early" and it.program.recv(1) == b""


class TestDescriptors:
    def test_an_idle_flow_holds_no_pipe(self) -> None:
        pipes = Pipes(keep=0)
        before = held_pipes()
        with carried(pipes=pipes) as it:
            it.settle()
            assert held_pipes() == before
            it.program.sendall(b"x")
            it.settle()
            assert it.server.recv(1) == b"x"
            assert held_pipes() == before

    def test_a_blocked_flow_holds_one_and_gives_it_back(self) -> None:
        pipes = Pipes(keep=0)
        before = held_pipes()
        with carried(buffers=4096, pipes=pipes) as it:
            it.program.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    it.settle()
                    it.program.send(bytes(65536))
            assert held_pipes() == before + 2  # both ends of one
            reset(it.program)
            it.end()
            assert held_pipes() == before

    def test_a_pipe_with_bytes_left_in_it_never_serves_another_flow(self) -> None:
        pipes = Pipes()
        with carried(buffers=4096, pipes=pipes) as it:
            it.program.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    it.settle()
                    it.program.send(b"s" * 65536)
            reset(it.program)
            it.end()
            pipe = pipes.take()
            with pytest.raises(BlockingIOError):
                os.read(pipe[0], 1)
            pipes.give_back(pipe, empty=True)

    def test_no_descriptor_left_for_a_pipe_ends_the_flow_only(self) -> None:
        """EMFILE is this flow's end and not the forwarder's."""
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with carried() as it:
            it.settle()
            it.relay._pipes.close()
            it.program.sendall(b"x")
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                record = it.end()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert record.outcome is not Outcome.OK and record.error

    def test_the_stock_is_bounded(self) -> None:
        pipes = Pipes(keep=2)
        before = held_pipes()
        taken = [pipes.take() for _ in range(5)]
        for pipe in taken:
            pipes.give_back(pipe, empty=True)
        assert held_pipes() == before + 4
        pipes.close()
        assert held_pipes() == before

    def test_a_pipe_is_of_the_size_that_was_asked_for(self) -> None:
        pipes = Pipes()
        pipe = pipes.take()
        assert fcntl.fcntl(pipe[1], F_GETPIPE_SZ) == PIPE_SIZE
        pipes.give_back(pipe, empty=True)
        pipes.close()


class TestStop:
    """The workload has ended; whoever still holds the other end learns of it."""

    def test_in_the_middle(self) -> None:
        with carried() as it:
            it.program.sendall(b"abc")
            it.settle()
            it.relay.stop()
            assert (it.finished, it.flow.outcome, it.flow.bytes_sent) == (1, Outcome.WORKLOAD_GONE, 3)
            assert it.server.recv(10) == b"abc"
            with pytest.raises(ConnectionResetError):
                it.server.recv(1)

    def test_after_the_program_had_said_all(self) -> None:
        with carried() as it:
            it.program.shutdown(socket.SHUT_WR)
            it.settle()
            it.relay.stop()
            assert it.flow.outcome is Outcome.OK

    def test_twice_and_events_after_it(self) -> None:
        with carried() as it:
            it.relay.stop()
            it.relay.stop()
            assert it.relay.on_client(select.EPOLLIN) is False
            assert it.relay.on_upstream(0) is False
            assert it.finished == 1


def test_reset_on_close() -> None:
    one, two = connection()
    two.settimeout(WAIT)
    reset_on_close(one)
    one.close()
    with two, pytest.raises(ConnectionResetError):
        two.recv(1)


def test_reset_on_close_of_what_is_closed_already() -> None:
    one, two = connection()
    one.close()
    two.close()
    reset_on_close(one)  # nobody to tell, nothing to raise

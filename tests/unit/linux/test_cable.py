"""A wiring handed from one process to another over a Unix socket: every socket arrives, in its place, once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from netns_graft.linux.cable import Wiring

Channel = tuple[socket.socket, socket.socket]


@pytest.fixture
def channel() -> Iterator[Channel]:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield pair
    for sock in pair:
        sock.close()


def wiring(*, listeners: int = 2, resolvers: int = 2, hold: bool = True) -> Wiring:
    """Of sockets that are anything: what counts is that each is another."""
    ends = [os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)]
    it = Wiring(*ends, [], mark=b"\2markx")
    it.listeners = [socket.socket() for _ in range(listeners)]
    it.resolvers = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(resolvers)]
    if hold:
        it.tap_sock, it.inject_sock = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    return it


def close(it: Wiring) -> None:
    for sock in it.sockets():
        sock.close()
    os.close(it.forwarder_ns_fd)
    os.close(it.workload_ns_fd)


def identity(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def same_file(one_fd: int, other_fd: int) -> bool:
    return os.path.samestat(os.fstat(one_fd), os.fstat(other_fd))


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize(("listeners", "resolvers"), [(1, 0), (2, 0), (1, 1), (2, 2), (2, 50)])
def test_round_trip(channel: Channel, listeners: int, resolvers: int, hold: bool) -> None:
    sent = wiring(listeners=listeners, resolvers=resolvers, hold=hold)
    sent.send(channel[0])
    got = Wiring.receive(channel[1])
    assert got is not None
    assert same_file(got.forwarder_ns_fd, sent.forwarder_ns_fd)
    assert same_file(got.workload_ns_fd, sent.workload_ns_fd)
    assert not same_file(got.forwarder_ns_fd, got.workload_ns_fd)
    assert [identity(sock) for sock in got.sockets()] == [identity(sock) for sock in sent.sockets()]
    assert (len(got.listeners), len(got.resolvers)) == (listeners, resolvers)
    assert (got.tap_sock is not None) is (got.inject_sock is not None) is hold
    assert got.mark == sent.mark
    close(sent)
    close(got)


def test_what_arrives_is_not_inherited_and_does_not_block(channel: Channel) -> None:
    sent = wiring()
    sent.send(channel[0])
    got = Wiring.receive(channel[1])
    assert got is not None
    for sock in got.sockets():
        assert not os.get_inheritable(sock.fileno())
        assert not sock.getblocking()
    for fd in (got.forwarder_ns_fd, got.workload_ns_fd):
        assert not os.get_inheritable(fd)
    close(sent)
    close(got)


def test_more_than_a_message_carries(channel: Channel) -> None:
    sent = wiring(resolvers=60)
    with pytest.raises(ValueError, match="descriptors"):
        sent.send(channel[0])
    close(sent)


def test_nobody_sent_anything(channel: Channel) -> None:
    channel[0].close()
    assert Wiring.receive(channel[1]) is None


def test_the_builder_has_only_words(channel: Channel) -> None:
    """An empty message, then why: the reader tells the two apart."""
    channel[0].send(b"")
    channel[0].send(b"Operation not permitted")
    assert Wiring.receive(channel[1]) is None
    assert channel[1].recv(100) == b"Operation not permitted"

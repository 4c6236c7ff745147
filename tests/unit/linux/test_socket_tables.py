"""/proc/net/tcp and its like, read for real."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from netns_graft.linux.conntrack import Tuple
from netns_graft.linux.socket_tables import SocketTables

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
ADDRESS = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES = pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])


@pytest.fixture
def tables() -> Iterator[SocketTables]:
    it = SocketTables()
    yield it
    it.close()


def ends(sock: socket.socket, peer: tuple[str, int] | None = None) -> Tuple:
    own, far = sock.getsockname(), peer or sock.getpeername()
    return Tuple(packed(own[0]), own[1], packed(far[0]), far[1])


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def owner(sock: socket.socket) -> tuple[int, int]:
    return os.fstat(sock.fileno()).st_ino, os.getuid()


@FAMILIES
def test_both_ends_of_a_connection(tables: SocketTables, family: socket.AddressFamily) -> None:
    with socket.create_server((ADDRESS[family], 0), family=family) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        served, _ = listener.accept()
        with client, served:
            assert tables.find(TCP, ends(client), time.monotonic()) == [owner(client)]
            assert tables.find(TCP, ends(served), time.monotonic()) == [owner(served)]


def test_a_listener_is_no_answer(tables: SocketTables) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert tables.find(TCP, ends(listener, ("127.0.0.1", 9)), time.monotonic()) == []


def test_an_ipv4_mapped_socket(tables: SocketTables) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_INET6) as client:
        client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
        port = client.getsockname()[1]
        own = Tuple(packed("127.0.0.1"), port, packed("127.0.0.1"), listener.getsockname()[1])
        assert tables.find(TCP, own, time.monotonic()) == [owner(client)]


def test_a_text_read_later_serves_who_asked_before(tables: SocketTables) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as first,
    ):
        since = time.monotonic()
        assert tables.find(TCP, ends(first), since) == [owner(first)]
        with socket.create_connection(listener.getsockname()) as second:
            # That text is older than this socket, and is read again.
            assert tables.find(TCP, ends(second), time.monotonic()) == [owner(second)]
            # Yet for a question of the earlier time it would have done.
            text = tables._texts["tcp"]
            assert tables.find(TCP, ends(first), since) == [owner(first)]
            assert tables._texts["tcp"] is text


@FAMILIES
def test_who_may_have_sent_a_datagram(tables: SocketTables, family: socket.AddressFamily) -> None:
    address = ADDRESS[family]
    with socket.socket(family, socket.SOCK_DGRAM) as sock, socket.socket(family, socket.SOCK_DGRAM) as other:
        for it in (sock, other):
            it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((address, 0))
        peer = (address, 9)
        assert tables.find(UDP, ends(sock, peer), time.monotonic()) == [owner(sock)]
        other.bind(sock.getsockname())
        assert sorted(tables.find(UDP, ends(sock, peer), time.monotonic())) == sorted((owner(sock), owner(other)))
        other.connect(peer)  # now it is the one that talks to this peer
        assert tables.find(UDP, ends(sock, peer), time.monotonic()) == [owner(other)]

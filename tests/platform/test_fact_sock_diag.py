"""What sock_diag(7) answers. Should one of these fall, attribution (linux/sock_diag.py) names nobody, or a stranger."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ground.child import in_own_namespaces
from ground.frames import packed
from ground.network import PEER_MAC, Network, configure, neighbour, ready, veth

from netns_graft.linux import sock_diag

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
NETLINK_SOCK_DIAG = 4
FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
BY_NAME = [pytest.param(*family, id=name) for family, name in zip(FAMILIES, ("IPv4", "IPv6"), strict=True)]
REMOTE = {socket.AF_INET: "192.0.2.77", socket.AF_INET6: "2001:db8::77"}
OWN = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


@contextmanager
def diag() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as sock:
        sock.bind((0, 0))
        yield sock


def find(protocol: int, own: tuple[str, int], peer: tuple[str, int]) -> sock_diag.SocketOwner | None:
    with diag() as sock:
        return sock_diag.find(sock, protocol, packed(own[0]), own[1], packed(peer[0]), peer[1])


def owner(sock: socket.socket) -> sock_diag.SocketOwner:
    return sock_diag.SocketOwner(os.fstat(sock.fileno()).st_ino, os.getuid())


@contextmanager
def silent_network() -> Iterator[None]:
    """``OWN`` on a cable whose other end takes everything and answers nothing."""
    with Network() as other:
        veth("cable", "end", other)
        with other.inside():
            configure("end")
        configure("cable", f"{OWN[socket.AF_INET]}/24", f"{OWN[socket.AF_INET6]}/64")
        ready((None, "cable"), (other, "end"))
        for address in REMOTE.values():
            neighbour("cable", address, PEER_MAC)
        yield


@pytest.mark.parametrize(("family", "address"), BY_NAME)
@in_own_namespaces
def test_an_established_connection(family: int, address: str) -> None:
    """Its two ends are told apart by the order of the addresses."""
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind((address, 0))
        listener.listen()
        client.connect(listener.getsockname())
        served, _ = listener.accept()
        with served:
            mine, theirs = client.getsockname()[:2], listener.getsockname()[:2]
            assert find(TCP, mine, theirs) == owner(client)
            assert find(TCP, theirs, mine) == owner(served)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@in_own_namespaces
def test_a_socket_in_syn_sent(family: int) -> None:
    """Falls: a held SYN's process could not be known before the handshake, and so no verdict before it."""
    with silent_network(), socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        client.connect_ex((REMOTE[family], 80))
        assert find(TCP, client.getsockname()[:2], (REMOTE[family], 80)) == owner(client)


@in_own_namespaces
def test_an_ipv4_question_finds_an_ipv4_mapped_socket() -> None:
    """Falls: programs that connect by ::ffff:a.b.c.d (Java, many Go programs) have no process."""
    with (
        silent_network(),
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client,
    ):
        client.connect_ex(("::ffff:" + REMOTE[socket.AF_INET], 80))
        own = client.getsockname()
        assert own[0] == "::ffff:" + OWN[socket.AF_INET]
        assert find(TCP, (OWN[socket.AF_INET], own[1]), (REMOTE[socket.AF_INET], 80)) == owner(client)


@in_own_namespaces
def test_a_listener_is_no_answer() -> None:
    """The kernel falls back to whoever listens on the source port; that is not the socket that sent anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert find(TCP, listener.getsockname(), ("127.0.0.1", 9)) is None


@in_own_namespaces
def test_nobody() -> None:
    assert find(TCP, ("127.0.0.1", 4000), ("127.0.0.1", 9)) is None
    assert find(TCP, ("::1", 4000), ("::1", 9)) is None
    assert find(UDP, ("127.0.0.1", 4000), ("127.0.0.1", 9)) is None
    assert find(UDP, ("::1", 4000), ("::1", 9)) is None


@in_own_namespaces
def test_a_socket_in_time_wait_is_nobodys() -> None:
    """It has no inode any more."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
        own, peer = client.getsockname(), client.getpeername()
        client.close()
        assert served.recv(1) == b""
        served.close()
        assert find(TCP, own, peer) is None


# UDP: the kernel reads "source" as the sender of a packet that arrives, hence the exchange in sock_diag.find.


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@in_own_namespaces
def test_udp_connected(family: int) -> None:
    """Falls: DNS questions have no process. Two sockets on one port, told apart by their peers alone."""
    other = {socket.AF_INET: "192.0.2.78", socket.AF_INET6: "2001:db8::78"}
    with (
        silent_network(),
        socket.socket(family, socket.SOCK_DGRAM) as one,
        socket.socket(family, socket.SOCK_DGRAM) as two,
    ):
        for sock, peer in ((one, REMOTE[family]), (two, other[family])):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((OWN[family], 5000))
            sock.connect((peer, 53))
        assert find(UDP, (OWN[family], 5000), (REMOTE[family], 53)) == owner(one)
        assert find(UDP, (OWN[family], 5000), (other[family], 53)) == owner(two)
        assert find(UDP, (OWN[family], 5000), (other[family], 54)) is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("bound", [True, False])
@in_own_namespaces
def test_udp_unconnected(family: int, bound: bool) -> None:
    """Found by its own half, whether it is bound to an address or to none, whomever it sends to."""
    with silent_network(), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((OWN[family] if bound else "", 0))
        sock.sendto(b"?", (REMOTE[family], 53))
        port = sock.getsockname()[1]
        assert find(UDP, (OWN[family], port), (REMOTE[family], 53)) == owner(sock)


@in_own_namespaces
def test_udp_the_exchange_is_needed() -> None:
    """Asked the other way round the kernel would look for a socket on the peer's port. One listens there."""
    kind = socket.SOCK_DGRAM
    with silent_network(), socket.socket(socket.AF_INET, kind) as sock, socket.socket(socket.AF_INET, kind) as trap:
        trap.bind(("0.0.0.0", 53))
        sock.connect((REMOTE[socket.AF_INET], 53))
        assert find(UDP, sock.getsockname(), (REMOTE[socket.AF_INET], 53)) == owner(sock)


@in_own_namespaces
def test_udp_an_ipv4_question_finds_a_socket_of_both_families() -> None:
    with silent_network(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"?", ("::ffff:" + REMOTE[socket.AF_INET], 53))
        port = sock.getsockname()[1]
        assert find(UDP, (OWN[socket.AF_INET], port), (REMOTE[socket.AF_INET], 53)) == owner(sock)


@in_own_namespaces
def test_the_namespace_in_which_it_was_born_answers() -> None:
    """Falls: the forwarder would have to be in W to ask, and could not dial from the host."""
    with Network() as other:
        with other.inside():
            listener = socket.create_server(("127.0.0.1", 4001))
            client = socket.create_connection(("127.0.0.1", 4001))
            born_there = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        with listener, client, born_there, diag() as born_here:
            question = TCP, packed("127.0.0.1"), client.getsockname()[1], packed("127.0.0.1"), 4001
            assert sock_diag.find(born_there, *question) == owner(client)
            assert sock_diag.find(born_here, *question) is None


@pytest.mark.parametrize("protocol", [TCP, UDP])
@in_own_namespaces
def test_a_socket_bound_to_an_interface(protocol: int) -> None:
    """`curl --interface eth0`. Found only by who names the interface; a question that does finds any other too."""
    kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    with (
        silent_network(),
        socket.socket(socket.AF_INET, kind) as bound,
        socket.socket(socket.AF_INET, kind) as free,
    ):
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"cable")
        link = socket.if_nametoindex("cable")
        with diag() as sock:
            for each in (bound, free):
                each.setblocking(False)
                each.connect_ex((REMOTE[socket.AF_INET], 80))
                own, peer = packed(each.getsockname()[0]), packed(REMOTE[socket.AF_INET])
                ends = own, each.getsockname()[1], peer, 80
                assert sock_diag.find(sock, protocol, *ends, link) == owner(each)
                assert sock_diag.find(sock, protocol, *ends) == (None if each is bound else owner(each))

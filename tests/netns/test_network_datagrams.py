"""UDP of traced programs: questions to port 53 are answered as from the address that was asked, the rest is closed."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable

import pytest
from ground import raw_calls
from ground.carried import Carried, Seen
from ground.child import in_own_namespaces
from ground.network import HOST, HOST6, OTHER, UNREACHABLE, WEB, WEB6, internet
from ground.translated import translate_loopback

V4, V6 = socket.AF_INET, socket.AF_INET6
MAPPED = f"::ffff:{WEB}"
FORMS = pytest.mark.parametrize(
    ("family", "server", "own"), [(V4, WEB, HOST), (V6, WEB6, HOST6), (V6, MAPPED, f"::ffff:{HOST}")]
)
LOOPBACKS = {"127.0.0.1", "::1"}


def run(work: Callable[[], object], **network: object) -> Seen:
    with internet():
        return Carried(lambda _: work(), **network).finish()


def udp(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(20)
    return sock


def plain(address: str) -> str:
    return address.removeprefix("::ffff:")


@FORMS
@in_own_namespaces
def test_a_connected_socket(family: int, server: str, own: str) -> None:
    def work() -> None:
        with udp(family) as sock:
            sock.connect((server, 53))
            assert sock.getpeername()[:2] == (server, 53) and sock.getsockname()[0] == own
            for number in range(3):
                sock.send(b"question %d" % number)
                assert sock.recv(512) == b"re: question %d" % number
            sock.send(b"who?")
            payload, sender = sock.recvfrom(512)
            assert (payload, sender[:2]) == (b"re: who?", (server, 53))
            sock.sendall(b"and you?")
            payload, _, _, sender = sock.recvmsg(512)
            assert (payload, sender[:2]) == (b"re: and you?", (server, 53))

    seen = run(work)
    assert [payload for _, _, _, payload in seen.questions] == [
        b"question 0", b"question 1", b"question 2", b"who?", b"and you?"
    ]  # fmt: skip
    pids, sources, targets = ({question[at] for question in seen.questions} for at in (0, 1, 2))
    assert pids == {seen.ends[0]} and targets == {plain(server)}
    assert len(sources) == 1 and sources.pop()[0] in LOOPBACKS


@FORMS
@in_own_namespaces
def test_one_socket_asks_several_servers(family: int, server: str, own: str) -> None:
    """As musl's resolver does it, which looks at who answers."""
    others = {V4: (server, OTHER, "8.8.8.8"), V6: (server, "2001:db8::8", "2001:db8::9")}[family]

    def work() -> None:
        with udp(family) as sock:
            for other in others:
                assert sock.sendto(b"to " + other.encode(), (other, 53)) == 3 + len(other)
            answers = [sock.recvfrom(512) for _ in others[:2]]
            payload, _, _, sender = sock.recvmsg(512)
            answers.append((payload, sender))
            assert [(payload, sender[:2]) for payload, sender in answers] == [
                (b"re: to " + other.encode(), (other, 53)) for other in others
            ]
            sock.sendmsg([b"in ", b"", b"pieces"], [], 0, (server, 53))
            assert sock.recvfrom(512)[0] == b"re: in pieces"

    seen = run(work)
    assert [target for _, _, target, _ in seen.questions] == [*map(plain, others), plain(server)]
    assert len({source[1] for _, source, _, _ in seen.questions}) == 1


@FORMS
@in_own_namespaces
def test_several_messages_at_once(family: int, server: str, own: str) -> None:
    """glibc: one sendmmsg() of the questions for A and AAAA on a connected socket. And with addresses."""

    def work() -> None:
        name = raw_calls.inet(server, 53)
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((server, 53))
            assert raw_calls.sendmmsg(sock, (b"A?", None), (b"AAAA?", None)) == (2, [2, 5])
            answers = raw_calls.recvmmsg(sock, 2)
            assert [payload for payload, _ in answers] == [b"re: A?", b"re: AAAA?"]
            assert all(said == name for _, said in answers)
            assert raw_calls.sendmmsg(sock, (b"first", None), (b"second", name)) == (2, [5, 6])
            assert [payload for payload, _ in raw_calls.recvmmsg(sock, 2)] == [b"re: first", b"re: second"]
        with udp(family) as sock:
            assert raw_calls.sendmmsg(sock, (b"one", name), (b"two", name)) == (2, [3, 3])
            assert raw_calls.recvmmsg(sock, 2) == [(b"re: one", name), (b"re: two", name)]
            closed = raw_calls.inet(server, 54)
            assert raw_calls.sendmmsg(sock, (b"one", name), (b"two", closed))[0] == 1
            assert raw_calls.sendmmsg(sock, (b"two", closed), (b"one", name))[0] in (
                -errno.EHOSTUNREACH, -errno.EACCES
            )  # fmt: skip

    seen = run(work)
    assert len(seen.doors) == 2 and len(seen.questions) == 7


@FORMS
@in_own_namespaces
def test_other_udp_is_closed_to_sends(family: int, server: str, own: str) -> None:
    number = errno.EHOSTUNREACH if "." in server else errno.EACCES

    def work() -> None:
        with udp(family) as sock:
            for send in (lambda: sock.sendto(b"x", (server, 123)), lambda: sock.sendmsg([b"x"], [], 0, (server, 123))):
                with pytest.raises(OSError) as told:
                    send()
                assert told.value.errno == number

    seen = run(work)
    assert [(source[0], target, port) for _, source, target, port in seen.doors] == [
        (plain(own), plain(server), 123)
    ] * 2


@FORMS
@in_own_namespaces
def test_a_closed_door(family: int, server: str, own: str) -> None:
    """connect() succeeds; the first datagram is noted and the door gone."""

    def work() -> None:
        with udp(family) as sock:
            sock.connect((server, 443))
            assert sock.getpeername()[:2] == (server, 443) and sock.getsockname()[0] == own
            sock.send(b"x")
            assert select.select([sock], [], [], 0) is not None
            with pytest.raises(ConnectionRefusedError):
                while True:
                    sock.send(b"y")
            sock.connect((server, 53))
            sock.send(b"?")
            assert sock.recv(64) == b"re: ?"

    seen = run(work)
    [(pid, source, target, port)] = seen.doors
    assert (pid, target, port) == (seen.ends[0], plain(server), 443) and source[0] in LOOPBACKS


@in_own_namespaces
def test_multicast_and_broadcast_are_closed() -> None:
    def work() -> None:
        with udp(V4) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for address in ("224.0.0.251", "192.0.2.255", "255.255.255.255"):
                with pytest.raises(OSError) as told:
                    sock.sendto(b"x", (address, 5353))
                assert told.value.errno == errno.EHOSTUNREACH
        with udp(V6) as sock, pytest.raises(OSError) as told:
            sock.sendto(b"x", ("ff02::fb", 5353))
        assert told.value.errno == errno.EACCES

    assert len(run(work).doors) == 4


@in_own_namespaces
def test_the_hosts_own_services_are_left_alone() -> None:
    """A resolver on loopback, too, unless names are ours."""

    def work() -> None:
        with udp(V4) as server, udp(V4) as sock:
            server.bind(("127.0.0.53", 53))
            name = server.getsockname()
            sock.sendto(b"?", name)
            assert server.recvfrom(64) == (b"?", ("127.0.0.1", sock.getsockname()[1]))
            sock.connect(name)
            sock.send(b"!")
            assert server.recv(64) == b"!"

    def asks() -> None:
        with udp(V4) as server, udp(V4) as sock:
            server.bind(("127.0.0.53", 53))
            sock.sendto(b"?", server.getsockname())
            assert sock.recvfrom(64) == (b"re: ?", ("127.0.0.53", 53))

    with internet():
        assert Carried(lambda _: work(), dns=False).finish().questions == []
        assert len(Carried(lambda _: asks()).finish().questions) == 1


@in_own_namespaces
def test_questions_where_the_host_has_no_way_out() -> None:
    """The address that is asked need not be reachable: it is not asked."""

    def work() -> None:
        for connected in (True, False):
            with udp(V4) as sock:
                if connected:
                    sock.connect((UNREACHABLE, 53))
                    sock.send(b"?")
                else:
                    sock.sendto(b"?", (UNREACHABLE, 53))
                assert sock.recvfrom(64) == (b"re: ?", (UNREACHABLE, 53))

    run(work)


@in_own_namespaces
def test_askers_are_told_apart() -> None:
    """Connected sockets of several processes, all to one address."""

    def ask(number: int) -> None:
        with udp(V4) as sock:
            sock.connect((WEB, 53))
            for _ in range(20):
                sock.send(b"%d" % os.getpid())
                assert sock.recv(64) == b"re: %d" % os.getpid()

    def work() -> None:
        pids = []
        for number in range(6):
            pids.append(os.fork())
            if pids[-1] == 0:
                ask(number)
                os._exit(0)
        assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)

    seen = run(work)
    assert len(seen.questions) == 120
    assert all(payload == b"%d" % pid for pid, _, _, payload in seen.questions)


@in_own_namespaces
def test_many_askers_and_many_addresses() -> None:
    """More than are remembered: who comes late is served."""

    def work() -> None:
        with udp(V4) as sock:
            for number in range(300):
                server = f"198.51.{100 + number // 200}.{number % 200 + 1}"
                sock.sendto(b"?", (server, 53))
                assert sock.recvfrom(64) == (b"re: ?", (server, 53))
        for number in range(300):
            with udp(V4) as sock:
                sock.connect((f"198.51.100.{number % 250 + 1}", 80))

    seen = run(work)
    assert len(seen.questions) == 300


@pytest.mark.parametrize(
    ("rule", "family", "server"),
    [
        (f"ip saddr 127.0.0.1 snat to {HOST}", V4, WEB),
        ("ip saddr 127.0.0.1 masquerade", V4, WEB),
        (f"ip saddr 127.0.0.1 meta l4proto udp snat to {HOST}:40000-40999 fully-random", V4, WEB),
        (f"ip6 saddr ::1 snat to {HOST6}", V6, WEB6),
    ],
    ids=["snat", "masquerade", "other ports", "snat of IPv6"],
)
@in_own_namespaces
def test_questions_where_loopback_is_translated(rule: str, family: int, server: str) -> None:
    def work() -> None:
        with udp(family) as sock:
            sock.connect((server, 53))
            for number in range(3):
                sock.send(b"%d" % number)
                payload, sender = sock.recvfrom(64)
                assert (payload, sender[:2]) == (b"re: %d" % number, (server, 53))
        with udp(family) as sock:
            sock.sendto(b"?", (server, 53))
            payload, sender = sock.recvfrom(64)
            assert (payload, sender[:2]) == (b"re: ?", (server, 53))

    with internet():
        translate_loopback(rule)
        seen = Carried(lambda _: work()).finish()
    assert len(seen.questions) == 4
    assert {source[0] for _, source, _, _ in seen.questions} <= LOOPBACKS

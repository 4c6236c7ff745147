"""TCP where loopback is translated (SNAT): crossings do not pair, and programs see nothing of it."""

from __future__ import annotations

import errno
import os
import select
import socket

import pytest
from ground import raw_calls
from ground.carried import REFUSED_LATER, UNREACHABLE_LATER, Carried
from ground.child import eventually, in_own_namespaces
from ground.echo import served, talk
from ground.network import HOST, HOST6, WEB, WEB6
from ground.translated import translate_loopback

from netns_graft.linux import proc

V4, V6 = socket.AF_INET, socket.AF_INET6
RULES = pytest.mark.parametrize(
    ("rule", "web", "own"),
    [
        (f"ip saddr 127.0.0.1 snat to {HOST}", WEB, HOST),
        ("ip saddr 127.0.0.1 masquerade", WEB, HOST),
        (f"ip saddr 127.0.0.1 meta l4proto tcp snat to {HOST}:40000-40999 fully-random", WEB, HOST),
        (f"ip6 saddr ::1 snat to {HOST6}", WEB6, HOST6),
    ],
    ids=["snat", "masquerade", "other ports", "snat of IPv6"],
)


def family_of(web: str) -> int:
    return V6 if ":" in web else V4


@RULES
@in_own_namespaces
def test_connected(rule: str, web: str, own: str) -> None:
    """Waited for and polled. ``Connecting.source`` is what the program's socket has in the end."""

    def work() -> None:
        for blocking in (True, False, True):
            with socket.socket(family_of(web)) as sock:
                sock.setblocking(blocking)
                if sock.connect_ex((web, 80)):
                    assert not blocking and select.select([], [sock], [], 20)[1]
                    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                else:
                    assert raw_calls.connect(sock, raw_calls.inet(web, 80)) == -errno.EISCONN
                assert sock.getpeername()[:2] == (web, 80)
                assert sock.getsockname()[0] == own
                ports.append(sock.getsockname()[1])
                talk(sock, own)
        os.write(told_fd, repr(ports).encode())

    ports: list[int] = []
    told_fd = os.memfd_create("ports")
    with served():
        translate_loopback(rule)
        seen = Carried(lambda _: work()).finish()
    assert repr([port for _, port in seen.sources]).encode() == os.pread(told_fd, 100, 0)
    assert {address for address, _ in seen.sources} <= {"127.0.0.1", "::1"}
    os.close(told_fd)


@RULES
@in_own_namespaces
def test_a_port_that_was_bound_stays(rule: str, web: str, own: str) -> None:
    def work() -> None:
        with socket.socket(family_of(web)) as sock:
            sock.bind(("::" if ":" in web else "0.0.0.0", 4321))
            sock.connect((web, 80))
            assert sock.getsockname()[:2] == (own, 4321)
            talk(sock, own)

    with served():
        translate_loopback(rule)
        seen = Carried(lambda _: work()).finish()
    assert seen.sources[0][1] == 4321


@RULES
@in_own_namespaces
def test_failed(rule: str, web: str, own: str) -> None:
    def work(carried: Carried) -> None:
        with socket.socket(family_of(web)) as sock:
            assert raw_calls.connect(sock, raw_calls.inet(web, REFUSED_LATER)) == -errno.ECONNREFUSED
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            sock.setblocking(False)
            assert sock.connect_ex((web, UNREACHABLE_LATER)) == errno.EINPROGRESS
            carried.go()
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            assert poll.poll(20_000)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH
            assert sock.connect_ex((web, 80)) == errno.ECONNABORTED
            sock.setblocking(True)
            sock.connect((web, 80))
            talk(sock, own)

    with served():
        translate_loopback(rule)
        carried = Carried(work)
        assert eventually(lambda: proc.asleep(carried.pid) and proc.connecting(carried.pid) is not None)
        carried.go()
        carried.finish()

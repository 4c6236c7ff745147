"""Network calls of traced programs on a host with an Internet, carried: what the program sees is what it would see of
a direct connection, and what the carrier is told is the truth.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest
from ground.carried import DENIED, REFUSED_LATER, UNREACHABLE_LATER, Carried, Seen
from ground.child import in_own_namespaces
from ground.echo import served, talk
from ground.network import HOST, HOST6, WEB, WEB6

V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize(("family", "web", "own"), [(V4, WEB, HOST), (V6, WEB6, HOST6)])
MAPPED = f"::ffff:{WEB}"


def run(work: Callable[[], object], **network: Any) -> Seen:
    return Carried(lambda _: work(), **network).finish()


@FAMILIES
@in_own_namespaces
def test_a_blocking_connect(family: int, web: str, own: str) -> None:
    def work() -> None:
        with socket.socket(family) as sock:
            sock.connect((web, 80))
            assert sock.getpeername()[:2] == (web, 80)
            assert sock.getsockname()[0] == own
            talk(sock, own)

    with served():
        seen = run(work)
    [(pid, source, target)] = seen.connects
    assert target == (web, 80) and source[0] == ("127.0.0.1" if family == V4 else "::1")
    assert pid in seen.ends and seen.sources == [source]


@FAMILIES
@in_own_namespaces
def test_a_non_blocking_connect(family: int, web: str, own: str) -> None:
    def work() -> None:
        with socket.socket(family) as sock:
            sock.setblocking(False)
            assert sock.connect_ex((web, 80)) == errno.EINPROGRESS
            assert select.select([], [sock], [], 20)[1]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert sock.getpeername()[:2] == (web, 80)
            assert sock.getsockname()[0] == own
            talk(sock, own)

    with served():
        run(work)


@FAMILIES
@in_own_namespaces
def test_what_the_destination_says(family: int, web: str, own: str) -> None:
    """Dialled and refused; nothing of it reaches the program but the errno."""

    def work() -> None:
        with socket.socket(family) as sock:
            assert sock.connect_ex((web, 81)) == errno.ECONNREFUSED
            assert sock.connect_ex((web, 80)) == 0  # the same socket, as the kernel leaves it
            talk(sock, own)

    with served():
        seen = run(work)
    assert [target for _, _, target in seen.connects] == [(web, 81), (web, 80)]


@FAMILIES
@in_own_namespaces
def test_denied_before_the_call_goes_on(family: int, web: str, own: str) -> None:
    def work() -> None:
        for blocking in (True, False):
            with socket.socket(family) as sock:
                sock.setblocking(blocking)
                assert sock.connect_ex((web, DENIED)) == errno.EACCES
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                assert sock.getsockname()[0] in ("0.0.0.0", "::")
                sock.setblocking(True)
                assert sock.connect_ex((web, 80)) == 0
                talk(sock, own)

    with served():
        run(work)


@pytest.mark.parametrize(
    ("port", "number"), [(REFUSED_LATER, errno.ECONNREFUSED), (UNREACHABLE_LATER, errno.EHOSTUNREACH)]
)
@FAMILIES
@in_own_namespaces
def test_failed_while_it_is_polled(family: int, web: str, own: str, port: int, number: int) -> None:
    def work(carried: Carried) -> None:
        with socket.socket(family) as sock:
            sock.setblocking(False)
            assert sock.connect_ex((web, port)) == errno.EINPROGRESS
            assert sock.connect_ex((web, port)) == errno.EALREADY
            assert not select.select([], [sock], [], 0)[1]
            carried.go()
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            [(_, events)] = poll.poll(20_000)
            assert events & select.POLLERR and events & select.POLLHUP
            with pytest.raises(OSError) as told:
                sock.getpeername()
            assert told.value.errno == errno.ENOTCONN
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == number
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert sock.connect_ex((web, 80)) == errno.ECONNABORTED  # the kernel's own, of an error that was taken
            sock.setblocking(True)
            assert sock.connect_ex((web, 80)) == 0
            talk(sock, own)

    with served():
        Carried(work).finish()


@FAMILIES
@in_own_namespaces
def test_a_pending_error_is_the_next_connects(family: int, web: str, own: str) -> None:
    def work() -> None:
        with socket.socket(family) as sock:
            sock.setblocking(False)
            assert sock.connect_ex((web, UNREACHABLE_LATER)) == errno.EINPROGRESS
            assert select.select([], [sock], [], 20)[1]
            assert sock.connect_ex((web, 80)) == errno.EHOSTUNREACH
            assert sock.connect_ex((web, 80)) == errno.EINPROGRESS
            assert select.select([], [sock], [], 20)[1]
            talk(sock, own)

    with served():
        carried = Carried(lambda _: work())
        carried.go()
        carried.finish()


@in_own_namespaces
def test_ipv4_by_an_ipv6_socket() -> None:
    def work() -> None:
        with socket.socket(V6) as sock:
            sock.connect((MAPPED, 80))
            assert sock.getpeername() == (MAPPED, 80, 0, 0)
            assert sock.getsockname()[0] == f"::ffff:{HOST}"
            talk(sock, HOST)
        with socket.socket(V6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            assert sock.connect_ex((MAPPED, 80)) == errno.ENETUNREACH
            sock.connect((WEB6, 80))
            talk(sock, HOST6)

    with served():
        seen = run(work)
    assert [target for _, _, target in seen.connects] == [(WEB, 80), (WEB6, 80)]
    assert seen.connects[0][1][0] == "127.0.0.1"

"""Calls made direct and made carried give the same results, byte for byte: the kernel is the reference."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import Any

import pytest
from ground import raw_calls
from ground.child import in_own_namespaces
from ground.compared import same
from ground.echo import served
from ground.network import (
    FAR_UNREACHABLE,
    FAR_UNREACHABLE6,
    HOST,
    HOST6,
    PROHIBITED,
    PROHIBITED6,
    SILENT,
    UNREACHABLE,
    UNREACHABLE6,
    WEB,
    WEB6,
)

V4, V6 = socket.AF_INET, socket.AF_INET6
STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
MAPPED = f"::ffff:{WEB}"
FORMS = pytest.mark.parametrize(("family", "web"), [(V4, WEB), (V6, WEB6), (V6, MAPPED)])
ROOMS = (0, 1, 2, 3, 8, 15, 16, 17, 24, 28, 40, -1)
RESET = struct.pack("ii", 1, 0)
OWN_PORT = 4321  # so that direct and carried have the same


def made(family: int, kind: int = STREAM, *, port: int = 0, address: str | None = None) -> socket.socket:
    """A program's socket; its end is a reset, so that its port is free at once."""
    sock = socket.socket(family, kind)
    if kind == STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    if port or address:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address or ("::" if family == V6 else "0.0.0.0"), port))
    return sock


def names(sock: socket.socket) -> list[object]:
    """Both names into every room, and into none."""
    seen: list[object] = []
    for call in ("getsockname", "getpeername"):
        seen += [raw_calls.name_of(call, sock, room) for room in ROOMS]
        seen.append(raw_calls.name_of(call, sock, 28, place=raw_calls.BAD_ADDRESS)[0])  # type: ignore[index]
        seen.append(raw_calls.name_of(call, sock, 28, told=False)[0])  # type: ignore[index]
    return seen


def outcome(sock: socket.socket, name: bytes) -> int:
    """How a connect() ends in the end, whether it waits or is polled."""
    result = raw_calls.connect(sock, name)
    if result == -errno.EINPROGRESS:
        assert select.select([], [sock], [], 20)[1]
        result = -sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return result


@FORMS
@in_own_namespaces
def test_names_of_a_connection(family: int, web: str) -> None:
    def work() -> object:
        with made(family, port=OWN_PORT) as sock:
            before = raw_calls.name_of("getpeername", sock, 28)
            sock.connect((web, 80))
            return before, names(sock)

    with served():
        told, seen = same(work)
        assert len(seen.connects) == 1
        peer = told[1][len(ROOMS) + 2 + ROOMS.index(28)]
        assert peer[2][:16].startswith(raw_calls.inet(web, 80)[:16])


@pytest.mark.parametrize("address", ["127.0.0.1", HOST])
@in_own_namespaces
def test_names_of_a_socket_that_was_bound(address: str) -> None:
    """An address that the program chose. From 127.0.0.1 the kernel has no way out, and we neither."""

    def work() -> object:
        with made(V4, port=OWN_PORT, address=address) as sock:
            result = raw_calls.connect(sock, raw_calls.inet(WEB, 80))
            return (result, names(sock)) if address == HOST else None

    with served():
        same(work)


@FORMS
@in_own_namespaces
def test_names_of_udp(family: int, web: str) -> None:
    def work() -> object:
        with made(family, DGRAM, port=OWN_PORT) as sock:
            sock.connect((web, 4000))
            first = names(sock)
            sock.connect((web, 0))  # glibc orders addresses so
            second = names(sock)
            assert raw_calls.connect(sock, raw_calls.UNSPECIFIED) == 0
            return first, second, names(sock)

    with served():
        _, seen = same(work)
        assert seen.doors == []


@FORMS
@in_own_namespaces
def test_repeated_connects(family: int, web: str) -> None:
    def work() -> object:
        results = []
        for blocking in (True, False):
            with made(family) as sock:
                sock.setblocking(blocking)
                results.append(outcome(sock, raw_calls.inet(web, 80)))
                results += [raw_calls.connect(sock, raw_calls.inet(web, 80)) for _ in range(3)]
                results.append(raw_calls.connect(sock, raw_calls.UNSPECIFIED))
                results.append(raw_calls.name_of("getpeername", sock, 28))
                results.append(outcome(sock, raw_calls.inet(web, 80)))
                sock.setblocking(True)
                results.append(sock.recv(64))
        return results

    with served():
        _, seen = same(work)
        assert len(seen.connects) == 4


@pytest.mark.parametrize(
    ("target", "port"),
    [
        (WEB, 81), (WEB6, 81), (UNREACHABLE, 80), (UNREACHABLE6, 80), (PROHIBITED, 80), (PROHIBITED6, 80),
        (FAR_UNREACHABLE, 80), (FAR_UNREACHABLE6, 80), (MAPPED, 81),
    ],
)  # fmt: skip
@in_own_namespaces
def test_failures(target: str, port: int) -> None:
    def work() -> object:
        results = []
        for blocking in (True, False):
            with made(V6 if ":" in target else V4) as sock:
                sock.setblocking(blocking)
                results.append(outcome(sock, raw_calls.inet(target, port)))
                if target not in (FAR_UNREACHABLE, FAR_UNREACHABLE6):  # an ICMP error is told twice, now and then
                    results.append(raw_calls.error_of(sock))
                results.append(raw_calls.name_of("getpeername", sock, 28))
                if blocking:
                    results.append(sock.getsockname()[0])
                    results.append(outcome(sock, raw_calls.inet(target, port)))
        return results

    with served():
        same(work)


@pytest.mark.parametrize("room", [0, 1, 2, 3, 4, 5, 8, -1])
@in_own_namespaces
def test_the_error_of_a_socket(room: int) -> None:
    def work() -> object:
        with made(V4) as sock:
            sock.setblocking(False)
            assert raw_calls.connect(sock, raw_calls.inet(WEB, 81)) == -errno.EINPROGRESS
            assert select.select([], [sock], [], 20)[1]
            first = raw_calls.error_of(sock, room)
            return first, raw_calls.error_of(sock), raw_calls.connect(sock, raw_calls.inet(WEB, 80))

    with served():
        same(work)


@in_own_namespaces
def test_an_error_that_cannot_be_written() -> None:
    def work() -> object:
        with made(V4) as sock:
            sock.setblocking(False)
            raw_calls.connect(sock, raw_calls.inet(WEB, 81))
            assert select.select([], [sock], [], 20)[1]
            return raw_calls.error_of(sock, place=raw_calls.BAD_ADDRESS), raw_calls.error_of(sock)

    with served():
        same(work)


@pytest.mark.parametrize("kind", [STREAM, DGRAM])
@pytest.mark.parametrize("family", [V4, V6])
@in_own_namespaces
def test_addresses_that_are_none(family: int, kind: int) -> None:
    """Whatever is wrong with a sockaddr, the kernel says it."""
    name = raw_calls.inet(WEB6 if family == V6 else WEB, 80)
    other = raw_calls.inet(WEB if family == V6 else WEB6, 80)
    link_local = raw_calls.inet("fe80::1", 80)

    def attempt(name: Any, length: int, calls: tuple[str, ...] = ("connect", "sendto")) -> list[int]:
        results = []
        for call in calls:
            with made(family, kind) as sock:
                sock.setblocking(False)
                if call == "connect":
                    results.append(raw_calls.called("connect", sock.fileno(), name, length))
                elif length and kind == DGRAM:
                    results.append(raw_calls.called("sendto", sock.fileno(), b"x", 1, 0, name, length))
        return results

    def work() -> object:
        results = [attempt(name, length) for length in (0, 1, 2, 7, 15, 23, 129, 1000, -1) if length < len(name) - 4]
        results.append(attempt(b"\x01\0/tmp/x" + bytes(20), 20))
        results.append(attempt(b"\x7f\x7f" + bytes(30), 28))
        results.append(attempt(raw_calls.BAD_ADDRESS, 16))
        if (family, kind) != (V6, DGRAM):
            results.append(attempt(other, len(other)))
        if family == V6:
            results.append(attempt(link_local, 28, ("connect",)))
        read_fd, write_fd = os.pipe()
        results.append([raw_calls.called("connect", fd, name, len(name)) for fd in (read_fd, 9999, -1)])
        os.close(read_fd)
        os.close(write_fd)
        return results

    with served():
        same(work)


@in_own_namespaces
def test_a_time_limit_on_connect() -> None:
    """SO_SNDTIMEO: the call gives up, the connection does not."""

    def work() -> object:
        with made(V4) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 30_000))
            results = [raw_calls.connect(sock, raw_calls.inet(SILENT, 80)) for _ in range(3)]
            return results, sock.getsockname()[0], raw_calls.error_of(sock)

    with served():
        told, _ = same(work)
        assert told[0] == [-errno.EINPROGRESS, -errno.EALREADY, -errno.EALREADY] and told[1] == HOST


@in_own_namespaces
def test_no_ipv4_where_a_socket_is_ipv6_only() -> None:
    def work() -> object:
        results = []
        for kind in (STREAM, DGRAM):
            with made(V6, kind) as sock:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                results.append(raw_calls.connect(sock, raw_calls.inet(MAPPED, 80)))
                results.append(raw_calls.connect(sock, raw_calls.inet(WEB6, 80)))
                results.append(sock.getsockname()[0])
        return results

    with served():
        told, _ = same(work)
        assert told[2] == HOST6


@in_own_namespaces
def test_udp_where_there_is_no_way() -> None:
    def work() -> object:
        results = []
        for target in (UNREACHABLE, UNREACHABLE6, PROHIBITED, "255.255.255.255", "192.0.2.255"):
            with made(V6 if ":" in target else V4, DGRAM) as sock:
                results.append(raw_calls.connect(sock, raw_calls.inet(target, 9)))
        return results

    with served():
        same(work)


@in_own_namespaces
def test_local_destinations_are_left_alone() -> None:
    def work() -> object:
        results = []
        for address in ("127.0.0.1", "127.4.5.6", "0.0.0.0", HOST, "::1", "::", HOST6):
            family = V6 if ":" in address else V4
            with socket.create_server((address, 0), family=family) as listener:
                port = listener.getsockname()[1]
                with made(family) as sock, made(family, DGRAM) as udp:
                    sock.connect((address, port))
                    accepted, _ = listener.accept()
                    accepted.close()
                    udp.connect((address, port))
                    results += [sock.getpeername()[0], sock.getsockname()[0], udp.getpeername()[0]]
                    results.append(raw_calls.called("sendto", udp.fileno(), b"x", 1, 0, None, 0))
        return results

    with served():
        _, seen = same(work)
        assert seen.connects == [] and seen.doors == []

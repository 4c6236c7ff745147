"""Servers on a small Internet that say whom they see, then everything that they are told."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ground.child import end, fork
from ground.network import WEB, WEB6, Network, internet

PORT = 80


@contextmanager
def served(*addresses: str) -> Iterator[Network]:
    """``internet`` with such servers on ``PORT`` of ``addresses`` (WEB and WEB6 when none is given)."""
    with internet() as inet:
        listeners = [inet.listener(address, PORT, backlog=1024) for address in addresses or (WEB, WEB6)]
        pids = [fork(lambda listener=listener: serve(listener)) for listener in listeners]
        for listener in listeners:
            listener.close()
        try:
            yield inet
        finally:
            for pid in pids:
                end(pid)


def serve(listener: socket.socket) -> None:
    """For ever."""
    listener.settimeout(None)
    poll, socks = select.poll(), {}
    poll.register(listener, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                sock, peer = listener.accept()
                socks[sock.fileno()] = sock
                poll.register(sock, select.POLLIN)
                sock.setblocking(False)
                try:
                    sock.send(f"{peer[0]}\n".encode())
                except ConnectionError:
                    pass  # its end is told below
                continue
            try:
                data = socks[fd].recv(65536)
                if data:
                    socks[fd].send(data)
            except ConnectionError:
                data = b""
            if not data:
                poll.unregister(fd)
                socks.pop(fd).close()


def talk(sock: socket.socket, own: str) -> None:
    """Both directions of a connection with such a server, which sees ``own``, and its end."""
    sock.settimeout(20)
    with sock.makefile("rwb") as file:
        assert file.readline() == f"{own}\n".encode()
        file.write(b"hello\n")
        file.flush()
        assert file.readline() == b"hello\n"
        sock.shutdown(socket.SHUT_WR)
        assert file.read() == b""

"""What answers on the stage: web servers and an echo in its Internet, and on its host a private service and DNS.

One process, one thread: a handful of requests come, one after the other. Every web request is logged as a line of
JSON, ``{"host": …, "from": …}``, in one ``write(2)``, so that the story can say what the servers saw.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from netns_graft.graft.stage_sites import PAGES, ZONE
from netns_graft.wire import ProtocolError, dns

_TTL = 60  # seconds
_PATIENCE = 5.0  # seconds for a client to say what it wants
_DATAGRAM = 4096


@dataclass(slots=True)
class StageSockets:
    """Sockets born where they serve. Whoever holds them closes them."""

    web: list[socket.socket]  # listening
    echo: socket.socket  # UDP
    names: socket.socket  # UDP


def serve(sockets: StageSockets, log_fd: int, channel: socket.socket) -> None:
    """Until ``channel`` (where nobody sends) ends."""
    with selectors.DefaultSelector() as selector:
        for sock in sockets.web:
            selector.register(sock, selectors.EVENT_READ, _web_server(sock, log_fd).handle_request)
        selector.register(sockets.echo, selectors.EVENT_READ, _answering(sockets.echo, lambda data: data))
        selector.register(sockets.names, selectors.EVENT_READ, _answering(sockets.names, _resolve))
        selector.register(channel, selectors.EVENT_READ)
        while True:
            for key, _events in selector.select():
                if key.data is None:
                    return
                key.data()


def _web_server(listener: socket.socket, log_fd: int) -> HTTPServer:
    class Handler(_Handler):
        log = log_fd

    # Its own socket would have been bound in our namespace and named by a DNS question.
    server = HTTPServer(listener.getsockname()[:2], Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    return server


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    log: int

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        line = json.dumps({"host": host, "from": self.client_address[0].removeprefix("::ffff:")})
        os.write(self.log, line.encode() + b"\n")
        page = PAGES.get(host, "Nobody of that name lives here.").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: Any) -> None:
        """Not on stderr."""


def _answering(sock: socket.socket, answer: Callable[[bytes], bytes | None]) -> Callable[[], None]:
    def on_datagram() -> None:
        try:
            data, peer = sock.recvfrom(_DATAGRAM)
            reply = answer(data)
            if reply is not None:
                sock.sendto(reply, peer)
        except OSError:
            pass  # an ICMP error: whoever asked has left

    return on_datagram


def _resolve(data: bytes) -> bytes | None:
    try:
        question = dns.parse_query(data)
    except ProtocolError:
        return dns.answer_error(data, dns.error_for(data))
    addresses = ZONE.get(question.name)
    if addresses is None:
        return dns.answer_error(question, dns.NXDOMAIN)
    return dns.answer_addresses(question, addresses, _TTL)

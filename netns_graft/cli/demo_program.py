"""The program that ``netns-graft demo`` grafts: an ordinary one, that knows nothing of grafts, proxies or namespaces.

Usage: demo_program.py URL...     an URL is http://HOST[:PORT]/ or udp://HOST:PORT

Says its PID, then for each URL one line: the URL, a tab, and what came of it.
"""

import http.client
import os
import socket
import sys
from urllib.parse import urlsplit

PATIENCE = 3.0  # seconds


def fetch(host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    try:
        connection.request("GET", "/")
        reply = connection.getresponse()
        return f"{reply.status} {reply.read(1000).decode(errors='replace')}"
    finally:
        connection.close()


def echo(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect((host, port))
        sock.send(b"Anybody there?")
        return f"echo {sock.recv(1000).decode(errors='replace')}"


def visit(url: str) -> str:
    parts = urlsplit(url)
    try:
        if parts.scheme == "udp":
            return echo(parts.hostname or "", parts.port or 0)
        return fetch(parts.hostname or "", parts.port or 80)
    except OSError as error:
        return error.strerror or str(error)
    except http.client.HTTPException as error:
        return f"not HTTP: {error!r}"


if __name__ == "__main__":
    print(f"PID {os.getpid()}", flush=True)
    for url in sys.argv[1:]:
        print(f"{url}\t{visit(url)}", flush=True)

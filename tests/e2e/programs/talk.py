"""One TCP conversation of a kind that shows whether a relay is faithful. Usage: talk.py KIND ADDRESS PORT

Prints what it saw as JSON; the kinds are the functions below.
"""

import json
import os
import socket
import statistics
import struct
import sys
import time


def close_first(sock: socket.socket) -> object:
    """Our half ends first; what the server says afterwards must still come."""
    sock.sendall(b"x" * 300_000)
    sock.shutdown(socket.SHUT_WR)
    answer = b""
    while data := sock.recv(65536):
        answer += data
    return answer.decode()


def close_second(sock: socket.socket) -> object:
    """The server's half ends first; what we say afterwards must still arrive."""
    greeting = b""
    while data := sock.recv(65536):
        greeting += data
    sock.sendall(b"y" * 100_000)
    return greeting.decode()


def wait_for_reset(sock: socket.socket) -> object:
    """How the server's end looks from here."""
    seen = b""
    try:
        while data := sock.recv(1 << 16):
            seen += data
            sock.sendall(b"1")
    except ConnectionResetError:
        return {"seen": seen.decode(), "end": "reset"}
    return {"seen": seen.decode(), "end": "eof"}


def reset(sock: socket.socket) -> object:
    """We reset the connection once the server has certainly got something."""
    sock.sendall(b"12345")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return None


def pairs(sock: socket.socket) -> object:
    """The median seconds of a round of two small writes each way: Nagle's rule would make it 40 ms and
    more.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    rounds = []
    for _ in range(60):
        began = time.monotonic()
        sock.sendall(b"a")
        time.sleep(0.001)  # apart, or the kernel would make one segment of the two
        sock.sendall(b"b")
        got = b""
        while len(got) < 2:
            got += sock.recv(2)
        assert got == b"ab"
        rounds.append(time.monotonic() - began)
    return statistics.median(rounds[20:])  # after the kernel's first quick acknowledgements


def echo(sock: socket.socket) -> object:
    """A mebibyte there and back, in uneven pieces."""
    data = os.urandom(1 << 20)
    sent = back = 0
    received = bytearray()
    sock.setblocking(True)
    while back < len(data):
        if sent < len(data):
            sent += sock.send(data[sent : sent + 77_777])
        while back < sent and (piece := sock.recv(65536)):
            received += piece
            back += len(piece)
    return bytes(received) == data


kind, address, port = sys.argv[1:4]
with socket.create_connection((address, int(port)), timeout=20) as connection:
    result = {
        "close_first": close_first, "close_second": close_second, "wait_for_reset": wait_for_reset,
        "reset": reset, "pairs": pairs, "echo": echo,
    }[kind](connection)  # fmt: skip
print(json.dumps(result))

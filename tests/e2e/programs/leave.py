"""A client that leaves at each stage of a connection. Usage: leave.py ADDRESS PORT SILENT_ADDRESS HOLD_PORT

Says "warm" after one whole exchange, "left" after all the others, and waits for a line each time.
"""

import os
import signal
import socket
import struct
import sys

web, silent = (sys.argv[1], int(sys.argv[2])), (sys.argv[3], int(sys.argv[2]))
hold = (sys.argv[1], int(sys.argv[4]))
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def opened(where: tuple[str, int], *, wait: bool = True) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(20)
    if wait:
        sock.connect(where)
    else:
        sock.setblocking(False)
        sock.connect_ex(where)
    return sock


def end(sock: socket.socket, *, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def whole() -> None:
    with opened(web) as sock:
        sock.sendall(REQUEST)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    assert answer.endswith(b"hello from example.com\n")


def killed(where: tuple[str, int], *, wait: bool) -> None:
    """Another process connects, and is killed in the middle."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        sock = opened(where, wait=wait)
        os.write(writing, b"x")
        signal.pause()
        del sock
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


whole()
print("warm", flush=True)
sys.stdin.readline()
for reset in (False, True):
    for place in (web, silent, hold):
        end(opened(place, wait=False), reset=reset)  # after the SYN
    for place in (web, hold):
        end(opened(place), reset=reset)  # after the handshake
        sock = opened(place)
        sock.sendall(REQUEST[:7])  # after half a request
        end(sock, reset=reset)
    sock = opened(web)
    sock.sendall(b"GET /mebi HTTP/1.0\r\n\r\n")
    sock.recv(100)  # in the middle of the answer
    end(sock, reset=reset)
for place, wait in ((silent, False), (web, False), (web, True), (hold, True)):
    killed(place, wait=wait)
whole()
print("left", flush=True)
sys.stdin.readline()

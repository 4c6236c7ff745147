"""Short connections one after the other, with a stop before and after. Usage: one_by_one.py COUNT ADDRESS
PORT

Says "warm" after a first few, "done" after COUNT more, and waits for a line each time.
"""

import socket
import sys


def fetch(address: str, port: int) -> None:
    with socket.create_connection((address, port), timeout=20) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while data := sock.recv(65536):
            answer += data
        assert answer.endswith(b"hello from example.com\n"), answer


count, where, number = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for rounds, word in ((5, "warm"), (count, "done")):
    for _ in range(rounds):
        fetch(where, number)
    print(word, flush=True)
    sys.stdin.readline()

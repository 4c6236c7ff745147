"""UDP and ICMP by ordinary sockets: what comes back, and how soon. Usage: datagrams.py ADDRESS4 ADDRESS6

Prints JSON: for each try the error's name, "timeout" after 5 s, or what was received; and the seconds.
"""

import errno
import json
import socket
import sys
import time

four, six = sys.argv[1:3]
ECHO = b"\x08\0\xf7\xff\0\0\0\0"
ECHO6 = b"\x80\0\0\0\0\0\0\0"
tries = {
    "udp": (socket.AF_INET, socket.SOCK_DGRAM, 0, (four, 9999), b"anybody?"),
    "udp6": (socket.AF_INET6, socket.SOCK_DGRAM, 0, (six, 9999), b"anybody?"),
    "quic": (socket.AF_INET, socket.SOCK_DGRAM, 0, (four, 443), b"anybody?" * 150),
    "ping": (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP, (four, 0), ECHO),
    "ping6": (socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6, (six, 0), ECHO6),
    "raw ping": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP, (four, 0), ECHO),
    "raw 132": (socket.AF_INET, socket.SOCK_RAW, 132, (four, 0), b"sctp?" * 4),
    "raw 47": (socket.AF_INET, socket.SOCK_RAW, 47, (four, 0), b"\0\0\x08\0gre?"),
}


def attempt(family: int, kind: int, protocol: int, where: tuple[str, int], data: bytes) -> dict[str, object]:
    began = time.monotonic()
    result = "timeout"
    try:
        with socket.socket(family, kind, protocol) as sock:
            sock.settimeout(3)
            # A raw socket hears of an ICMP error only when it asked to; RECVERR does so for every kind.
            sock.setsockopt(*((41, 25) if family == socket.AF_INET6 else (0, 11)), 1)
            sock.connect(where)
            sock.send(data)
            result = "received " + sock.recv(2000).hex()
    except TimeoutError:
        pass
    except OSError as error:
        result = errno.errorcode[error.errno or 0]
    return {"result": result, "seconds": time.monotonic() - began}


print(json.dumps({name: attempt(*parts) for name, parts in tries.items()}))

"""Connects to ADDRESS PORT, once, and tells how that went as JSON: {"error": "ECONNREFUSED" or null,
"seconds": ...}

With a third argument the connection is given that many seconds at most ("error": "timeout").
"""

import errno
import json
import socket
import sys
import time

address, port = sys.argv[1], int(sys.argv[2])
limit = float(sys.argv[3]) if len(sys.argv) > 3 else 30.0
family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
with socket.socket(family, kind, protocol) as sock:
    sock.settimeout(limit)
    began = time.monotonic()
    error = None
    try:
        sock.connect(where)
    except TimeoutError as failure:
        error = errno.errorcode[failure.errno] if failure.errno else "timeout"
    except OSError as failure:
        error = errno.errorcode[failure.errno or 0]
    print(json.dumps({"error": error, "seconds": time.monotonic() - began}))

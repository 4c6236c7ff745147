from __future__ import annotations

import socket
import time


def front(listener: socket.socket, runtime: str, using_sock: socket.socket) -> None:
    time.sleep(1e6)

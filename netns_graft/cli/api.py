"""The broker's HTTP API as a client asks it: one GET for a connection, over its Unix socket, by h11.

h11 costs 12 ms to import, a third of what ``http.client`` and ``aiohttp`` do; and nothing where no broker runs.
Whatever goes wrong on the way is an ``OSError``: whoever asks has the forwarders' own sockets to turn to.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from typing import Any

from netns_graft.linux import control_sockets

_CHUNK = 1 << 16
_MOST = 64 << 20  # bytes of one answer


def sockets(runtime: str) -> list[str]:
    """Where brokers listen, or did: there is one for each user namespace that has containers."""
    found = []
    try:
        names = sorted(os.listdir(runtime))
    except OSError:
        return []
    for name in names:
        path = f"{runtime}/{name}/api.sock"
        if name.startswith("broker-") and os.path.exists(path):
            found.append(path)
    return found


class Exchange:
    """One GET. ``read`` gives the body as it comes. Owns its connection."""

    def __init__(self, path: str, target: str, seconds: float) -> None:
        import h11

        self._http = h11.Connection(h11.CLIENT)
        self._ended = False
        request = h11.Request(method="GET", target=target, headers=[("Host", "netns-graft"), ("Connection", "close")])
        self.sock: socket.socket = control_sockets.connect(path, seconds)
        try:
            self.sock.sendall((self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b""))
        except BaseException:
            self.sock.close()
            raise

    def read(self) -> bytes | None:
        """What there is of the body after one look at the socket, perhaps nothing; None at its end. OSError, also for
        an answer other than 200 and for one that was cut short.
        """
        import h11

        if self._ended:
            return None
        body = b""
        try:
            self._http.receive_data(self.sock.recv(_CHUNK))
            while not self._ended and (event := self._http.next_event()) is not h11.NEED_DATA:
                match event:
                    case h11.Response(status_code=200) | h11.InformationalResponse():
                        pass
                    case h11.Data(data=data):
                        body += data
                    case h11.EndOfMessage():
                        self._ended = True
                    case _:
                        raise OSError(errno.EPROTO, "the broker's answer is of no use")
        except h11.RemoteProtocolError as error:
            raise OSError(errno.EPROTO, str(error)) from None
        return body

    def close(self) -> None:
        self.sock.close()


def get(path: str, target: str, seconds: float) -> Any:
    """The JSON there. OSError."""
    exchange = Exchange(path, target, seconds)
    parts, size = [], 0
    try:
        while (part := exchange.read()) is not None:
            parts.append(part)
            size += len(part)
            if size > _MOST:
                raise OSError(errno.EMSGSIZE, "the broker's answer is too long")
    finally:
        exchange.close()
    try:
        return json.loads(b"".join(parts))
    except ValueError:
        raise OSError(errno.EPROTO, "the broker's answer is no JSON") from None

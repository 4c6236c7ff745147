"""A resolver reached as flows are: by TCP, through the proxies. ``--dns-server``."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable

from netns_graft.dialling import DialError, Target, Upstreams
from netns_graft.dialling.place import literal
from netns_graft.dns.resolv_conf import Nameserver

Reach = Callable[[Nameserver], Awaitable[tuple[socket.socket, str]]]


def reach_by(upstreams: Upstreams) -> Reach:
    """What connects to a resolver, whose ``address`` may be a name here: its socket, non-blocking and the caller's to
    close, and the label of the upstream that leads there. It raises ``OSError``.
    """

    async def reach(server: Nameserver) -> tuple[socket.socket, str]:
        address = literal(server.address)
        target = Target(server.port, address, None if address else server.address)
        try:
            dialled = await upstreams.dial(target, permits=lambda _address: True)
        except DialError as error:
            raise OSError(error.errno, str(error)) from error
        if dialled.early:
            dialled.sock.close()
            raise OSError(errno.EPROTO, "it speaks before it is asked")
        return dialled.sock, dialled.upstream

    return reach

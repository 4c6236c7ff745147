"""TCP connections from the host's namespace: non-blocking, the kernel's own errno, addresses tried in a race.

Every socket here is close-on-exec (Python's default), non-blocking and has TCP_NODELAY, and is closed on each
path that does not hand it to the caller, cancellation included.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Sequence

from netns_graft.dialling.outcome import Blame, DialError, connect_error
from netns_graft.dialling.place import host_port
from netns_graft.flow import Outcome

HEAD_START = 0.25  # seconds; the "connection attempt delay" that RFC 8305 recommends

# Of several failures the one that says most: somebody answered, nobody answered, there is no way.
_TELLING = (Outcome.REFUSED, Outcome.TIMEOUT, Outcome.UNREACHABLE)


async def connect(address: str, port: int) -> socket.socket:
    """A connection to a literal address, the caller's to close. Raises ``DialError``."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise connect_error(error, host_port(address, port)) from error
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, (address, port))
        if _met_itself(sock):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "connected to itself")
    except OSError as error:
        sock.close()
        raise connect_error(error, host_port(address, port)) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _met_itself(sock: socket.socket) -> bool:
    """On one machine a connect to a free port of the ephemeral range can meet itself (simultaneous open)."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # it was reset already: somebody else was there
        return False


async def connect_any(
    addresses: Sequence[str], port: int, *, time_limit: float | None = None, head_start: float = HEAD_START
) -> tuple[socket.socket, str]:
    """The first connection to any of ``addresses``, and its address; the caller owns the socket.

    They are tried in order, each with a head start over the next; a failure starts the next at once (RFC 8305
    in spirit). Both limits are in seconds; without ``time_limit`` the kernel's patience is the limit. Raises
    ``DialError``: of all failures the most telling one.
    """
    try:
        async with asyncio.timeout(time_limit):
            if len(addresses) == 1:
                return await connect(addresses[0], port), addresses[0]
            return await _race(addresses, port, head_start)
    except TimeoutError:
        text = f"connect to {host_port(addresses[0], port)}: no answer within {time_limit:g} s"
        raise DialError(text, Outcome.TIMEOUT, errno.ETIMEDOUT, Blame.WAY) from None


async def _race(addresses: Sequence[str], port: int, head_start: float) -> tuple[socket.socket, str]:
    running: dict[asyncio.Task[socket.socket], str] = {}
    failures: list[DialError] = []
    waiting = list(addresses)
    try:
        while waiting or running:
            if waiting:
                address = waiting.pop(0)
                running[asyncio.create_task(connect(address, port))] = address
            limit = head_start if waiting else None
            await asyncio.wait(running, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in running if task.done()]:
                address = running.pop(task)
                try:
                    sock = task.result()
                except DialError as error:
                    failures.append(error)
                else:
                    return await _alone(sock, running), address
        raise min(failures, key=lambda failure: _TELLING.index(failure.outcome))
    finally:
        await _abandon(running)


async def _alone(sock: socket.socket, running: dict[asyncio.Task[socket.socket], str]) -> socket.socket:
    """The winner, once the others are out of the way; closed with them when we are cancelled right then."""
    try:
        await _abandon(running)
    except BaseException:
        sock.close()
        raise
    return sock


async def _abandon(running: dict[asyncio.Task[socket.socket], str]) -> None:
    """Close what the losers have or may still get."""
    pending = []
    for task in running:
        if not task.done():
            task.cancel()  # from here on it closes its socket itself
            pending.append(task)
        elif not task.cancelled() and task.exception() is None:
            task.result().close()
    running.clear()
    await asyncio.gather(*pending, return_exceptions=True)


async def connect_proxy(addresses: Sequence[str], port: int, *, time_limit: float) -> socket.socket:
    """As ``connect_any``; what goes wrong is the proxy's fault."""
    try:
        sock, _ = await connect_any(addresses, port, time_limit=time_limit)
        return sock
    except DialError as error:
        raise DialError(str(error), Outcome.UPSTREAM_FAILED, error.errno, Blame.PROXY) from error

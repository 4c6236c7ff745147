"""The CONNECT handshake on a socket: ``wire.connect`` with I/O around it."""

from __future__ import annotations

import asyncio
import errno
import socket

from netns_graft.dialling.outcome import Blame, DialError
from netns_graft.dialling.url import Hop
from netns_graft.flow import Outcome
from netns_graft.wire import ProtocolError
from netns_graft.wire.connect import Connect, Refusal, Tunnel

_CHUNK = 16 * 1024


async def handshake(
    sock: socket.socket, hop: Hop, host: str, port: int, *, time_limit: float
) -> tuple[socket.socket, bytes]:
    """Ask ``hop``, at the other end of ``sock``, for ``host`` (a name or a canonical address) and ``port``.

    Takes ``sock`` over and gives it back with the bytes of the destination that were read with the answer.
    Raises ``DialError``.
    """
    try:
        async with asyncio.timeout(time_limit):
            answer = await _exchange(sock, hop, host, port)
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError) and error.errno is None:
            raise DialError(
                f"no answer within {time_limit:g} s", Outcome.UPSTREAM_FAILED, errno.ETIMEDOUT, Blame.PROXY
            ) from None
        if isinstance(error, OSError):
            raise _broken(f"the connection broke: {(error.strerror or str(error)).lower()}") from error
        if isinstance(error, ProtocolError):
            raise _broken(f"it {error}") from error
        raise
    if isinstance(answer, Tunnel):
        return sock, answer.early
    sock.close()
    raise _refusal(hop, answer)


async def _exchange(sock: socket.socket, hop: Hop, host: str, port: int) -> Tunnel | Refusal:
    loop = asyncio.get_running_loop()
    login = hop.login
    username, password = (login.username, login.password or "") if login else (None, "")
    asked = Connect(host, port, username=username, password=password)
    await loop.sock_sendall(sock, asked.request)
    while True:
        answer = asked.receive(await loop.sock_recv(sock, _CHUNK))
        if answer is not None:
            return answer


def _refusal(hop: Hop, answer: Refusal) -> DialError:
    """Final, for a proxy answers for the destination with 4xx and 5xx; but 407 is about us.

    And so is 401, which tinyproxy says to a wrong password: the destination has not been asked anything yet.
    """
    text = f"it says: {answer.status} {hop.scrub(answer.reason)}".rstrip()
    if answer.status in (401, 407):
        if hop.login is None:
            text = f"it wants a user name and a password, none is given ({text})"
        return DialError(text, Outcome.UPSTREAM_AUTH, errno.ECONNREFUSED, Blame.PROXY)
    if answer.status == 504:
        return DialError(text, Outcome.TIMEOUT, errno.ETIMEDOUT, Blame.TARGET)
    return DialError(text, Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET)


def _broken(text: str) -> DialError:
    return DialError(text, Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.PROXY)

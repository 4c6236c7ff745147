"""SOCKS4a and SOCKS5 handshakes by python-socks, over a connection that we made.

python-socks tells a refused destination by its reply code, but everything else that goes wrong by text alone.
What the proxy thinks of our credentials is too important for that, so the socket that python-socks reads from
remembers the first four bytes it gave (RFC 1928: version, method; RFC 1929: version, status).

python-socks asks for exactly the bytes that a reply still lacks, so the destination's first bytes stay in the
socket. ``tests/unit/dialling/test_socks.py`` holds it to that.
"""

from __future__ import annotations

import errno
import socket
from typing import Any

from python_socks import ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio import Proxy

from netns_graft.dialling.outcome import Blame, DialError
from netns_graft.dialling.url import Hop, Scheme
from netns_graft.flow import Outcome

# SOCKS5 reply code → what it says of the destination (RFC 1928, section 6). All final, but for the first:
# servers say "general failure" of themselves and of names that they cannot resolve alike.
_SOCKS5_REPLIES = {
    0x01: ("general failure", Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.WAY),
    0x02: ("not allowed by its rules", Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
    0x03: ("network unreachable", Outcome.UNREACHABLE, errno.ENETUNREACH, Blame.TARGET),
    0x04: ("host unreachable", Outcome.UNREACHABLE, errno.EHOSTUNREACH, Blame.TARGET),
    0x05: ("connection refused", Outcome.REFUSED, errno.ECONNREFUSED, Blame.TARGET),
    0x06: ("timed out", Outcome.TIMEOUT, errno.ETIMEDOUT, Blame.TARGET),
    0x07: ("command not supported", Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
    0x08: ("kind of address not supported", Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
}
# SOCKS4 has one code for every failure, and two for the user id.
_SOCKS4_REPLIES = {
    0x5B: ("rejected or failed", Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.TARGET),
    0x5C: ("no identd to ask for the user name", Outcome.UPSTREAM_AUTH, errno.ECONNREFUSED, Blame.PROXY),
    0x5D: ("wrong user name", Outcome.UPSTREAM_AUTH, errno.ECONNREFUSED, Blame.PROXY),
}


class _Remembering(socket.socket):
    """A socket that remembers the first four bytes it gave, in ``seen``."""

    __slots__ = ("seen",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.setblocking(False)
        self.seen = b""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = super().recv(bufsize, flags)
        if len(self.seen) < 4:
            self.seen += data[: 4 - len(self.seen)]
        return data


class _Connected:
    """What python-socks calls the previous proxy: here a connection that is already there."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def connect(self, dest_host: str, dest_port: int, **_: Any) -> socket.socket:
        return self._sock


async def handshake(sock: socket.socket, hop: Hop, host: str, port: int, *, time_limit: float) -> socket.socket:
    """Ask ``hop``, at the other end of ``sock``, for ``host`` (a name or a canonical address) and ``port``.

    Takes ``sock`` over and gives back the one to go on with. Raises ``DialError``.
    """
    if hop.scheme is Scheme.SOCKS4A and (":" in host or host.startswith("0.")):
        # SOCKS4 has four bytes for an address, and 0.0.0.x there says that a name follows.
        sock.close()
        text = "SOCKS4a cannot reach an IPv6 address" if ":" in host else f"SOCKS4a cannot reach {host}"
        raise DialError(text, Outcome.UNREACHABLE, errno.ENETUNREACH, Blame.WAY)
    remembering = _Remembering(sock)
    login = hop.login
    proxy = Proxy(
        ProxyType.SOCKS4 if hop.scheme is Scheme.SOCKS4A else ProxyType.SOCKS5,
        hop.host,
        hop.port,
        username=login.username if login else None,
        password=login.password if login else None,
        rdns=True,  # whether a name is resolved here or there was decided before: never by python-socks
        forward=_Connected(remembering),  # type: ignore[arg-type]
    )
    try:
        await proxy.connect(host, port, timeout=time_limit)
        made = socket.socket(remembering.family, remembering.type, fileno=remembering.detach())
        made.setblocking(False)
        return made
    except ProxyTimeoutError:
        raise _silence(hop, remembering.seen, time_limit) from None
    except ProxyError as error:
        raise _refusal(hop, remembering.seen, error) from error
    except OSError as error:
        raise _broken(f"the connection broke: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:  # UnicodeError among them: the address that it bound may be a name
        raise _broken("it sent an answer that cannot be read") from error
    finally:
        remembering.close()  # once more, or nothing at all when it was handed on


def _silence(hop: Hop, seen: bytes, time_limit: float) -> DialError:
    """The time ran out. A SOCKS5 proxy that has let us in is alive: it waits for the destination."""
    let_in = hop.scheme is not Scheme.SOCKS4A and (seen[1:2] == b"\0" or seen[3:4] == b"\0")
    blame = Blame.WAY if let_in else Blame.PROXY
    return DialError(f"no answer within {time_limit:g} s", Outcome.UPSTREAM_FAILED, errno.ETIMEDOUT, blame)


def _refusal(hop: Hop, seen: bytes, error: ProxyError) -> DialError:
    """What the proxy meant by an answer that is not "granted", or by what is no answer."""
    if hop.scheme is Scheme.SOCKS4A:
        replies, speaks = _SOCKS4_REPLIES, seen[:1] in (b"", b"\0")
    else:
        replies, speaks = _SOCKS5_REPLIES, seen[:1] in (b"", b"\5")
        method, auth_version, status = seen[1:2], seen[2:3], seen[3:4]
        if speaks and method == b"\xff":
            return _no_entry(
                "it wants another way to log in" if hop.login else "it wants a way to log in, none is given"
            )
        if speaks and method == b"\2" and hop.login is None:
            return _no_entry("it wants a user name and a password, none is given")
        if speaks and method == b"\2" and auth_version == b"\1" and status not in (b"", b"\0"):
            return _no_entry("it refused the user name or the password")
    if error.error_code in replies:
        text, outcome, number, blame = replies[error.error_code]
        return DialError(f"it says: {text}", outcome, number, blame)
    if not speaks:
        return _broken(f"it does not speak {'SOCKS4' if hop.scheme is Scheme.SOCKS4A else 'SOCKS5'}")
    return _broken(str(error))  # python-socks' own words; of the proxy's bytes they quote numbers only


def _no_entry(text: str) -> DialError:
    return DialError(text, Outcome.UPSTREAM_AUTH, errno.ECONNREFUSED, Blame.PROXY)


def _broken(text: str) -> DialError:
    return DialError(text, Outcome.UPSTREAM_FAILED, errno.ECONNREFUSED, Blame.PROXY)
